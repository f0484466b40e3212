"""Hostile configurations: YAML beyond plain data, names that are paths or shell, and 700 mutated files."""

import copy
import json
from pathlib import Path

import pytest
import yaml
from fixtures.configuration import with_value
from fixtures.hostile import DATA, Mutated, assert_it_plans, at, mutated, places
from hypothesis import HealthCheck, given, settings

from tsae.profile import config
from tsae.profile.consistency import MOST_SAES
from tsae.profile.validation import MOST_VALUES, read_yaml

SMOKE = DATA["smoke"]


def bomb(reference: str) -> str:
    """Ten lines that expand to ten billion values."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {reference.format(', '.join([f'*a{i - 1}'] * 10))}" for i in range(1, 11)]
    return "\n".join(lines) + "\n"


@pytest.mark.refused("tags, bombs and keys given twice in YAML")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "x: !!python/object/apply:os.system ['touch code-ran']\n",
            r"the tag !!python/object/apply:os\.system .*line 1",
        ),
        ("x: !!python/object/new:os.system ['touch code-ran']\n", r"the tag !!python/object/new:os\.system .*line 1"),
        ("x:\n  y: !!python/name:os.system\n", r"the tag !!python/name:os\.system .*line 2"),
        ("x: !!python/tuple [1]\n", "the tag !!python/tuple"),
        ("x: !mine 1\n", "the tag !mine"),
        ("k: !!set {a, b}\n", "the tag !!set"),
        ("k: !!binary c21va2U=\n", "the tag !!binary"),
        ("!!python/name:os.system : 1\n", "the tag !!python/name"),
        (
            "__use_yte__: true\nx: ?__import__('os').system('touch code-ran')\n",
            "'__use_yte__' would have Snakemake run",
        ),
        (bomb("[{}]"), f"over {MOST_VALUES} values, with anchors expanded"),
        (bomb("{{<<: [{}]}}"), f"over {MOST_VALUES} values, with anchors expanded"),
        ("a: &a {b: *a}\n", "an anchor that contains itself, line 1"),
        ("a: &a [*a]\n", "an anchor that contains itself"),
        ("a: &a {<<: *a}\n", "an anchor that contains itself"),
        ("a: 1\nb: 2\na: 3\n", "the key 'a' is given twice, line 3"),
        ("a: {<<: {b: 1, b: 2}}\n", "the key 'b' is given twice"),
        ("1: a\n'1': b\n", "the key '1' is given twice"),
        ("<<: {a: 1}\n<<: {b: 1}\n", "the key '<<' is given twice"),
        ("? [a]\n: 1\n", "a key that is not a name, line 1"),
        ("? {a: b}\n: 1\n", "a key that is not a name"),
        ("a: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("a: " + "9" * 5000 + "\n", "digits"),
        ("a: 2020-99-99\n", "month must be in"),
        ("a: \0\n", "special characters"),
        ("a: 1\n---\nb: 2\n", "another document"),
        ("a: *b\n", "undefined alias 'b'"),
    ],
    ids=lambda text: text[:24],
)
def test_what_yaml_can_say_beside_data_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        config.load(path)
    assert str(error.value).startswith(f"{path}: not valid YAML: ") and "\n" not in str(error.value)
    assert not Path("code-ran").exists()


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"profile: \xff\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: not valid YAML: 'utf-8' codec"):
        config.load(tmp_path / "mine.yaml")


def test_anchors_and_merge_keys_that_share_settings_stay_useful(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("a: &a {k: [1], seeds: [2]}\nb: {<<: *a, k: [3]}\nc: [*a, *a]\n")
    shared = {"k": [1], "seeds": [2]}
    assert read_yaml(path) == {"a": shared, "b": {"k": [3], "seeds": [2]}, "c": [shared, shared]}


# With all defaults.
WHOLE = json.loads(config.to_json(config.parse(SMOKE)))
NUMBERS = [
    where
    for where in places(WHOLE)
    if isinstance(at(WHOLE, where), int | float) and at(WHOLE, where) not in (True, False)
]


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "true", f"{10**30}", "'nan'"])
def test_no_number_is_infinite_or_none_or_a_switch(value: str) -> None:
    assert len(NUMBERS) > 60
    for where in NUMBERS:
        if value.isdigit() and isinstance(at(WHOLE, where), float):
            continue  # a large float is allowed
        data = copy.deepcopy(WHOLE)
        at(data, where[:-1])[where[-1]] = yaml.safe_load(value)
        with pytest.raises(ValueError, match=r"^mine: ") as error:
            config.parse(data, "mine")
        section, *_, last = [part for part in where if isinstance(part, str)]
        assert section in str(error.value) and last in str(error.value), where


NO_NAMES = (
    "../../x",
    "..",
    "/etc",
    "a/b",
    "a b",
    "a'b",
    'a"b',
    "$(touch x)",
    "`x`",
    "a;b",
    "a\nb",
    "a\n",
    "-rf",
    "",
    "{x}",
    "<x>",
)


@pytest.mark.refused("names in a configuration that are paths or shell")
@pytest.mark.parametrize("name", NO_NAMES)
def test_names_are_no_paths_and_no_shell(name: str) -> None:
    sweep = SMOKE["sweep"]
    for key, data in {
        "profile": SMOKE | {"profile": name},
        "sweep": SMOKE | {"sweep": sweep | {name: sweep["headline"]}},
        "figures.0": SMOKE | {"figures": [name]},
        "evaluation.token_biases": with_value(SMOKE, "evaluation.token_biases", name),
    }.items():
        with pytest.raises(ValueError, match=rf"^mine: {key}"):
            config.parse(data, "mine")


@pytest.mark.parametrize("name", ["sources", "Sources", "tiny", "bench", "README.md"])
def test_a_profile_is_no_folder_of_something_else(name: str) -> None:
    with pytest.raises(ValueError, match=f"mine: profile: results/{name} is for something else"):
        config.parse(SMOKE | {"profile": name}, "mine")


@pytest.mark.parametrize("path", ["a{x}", "a}", "<results>/x", "a\nb", "a\0b", "a\ud800", "a\x1b[31m"])
def test_a_path_that_the_workflow_would_take_for_another_is_refused(path: str) -> None:
    sources = [{"kind": "files", "paths": [path], "format": "lines"}]
    for key, data in {
        "model.source.folder.path": with_value(SMOKE, "model.source.path", path),
        "corpus.sources.0.files.paths.0": with_value(SMOKE, "corpus.sources", sources),
        "released.folder": SMOKE | {"released": {"folder": path}},
    }.items():
        with pytest.raises(ValueError, match=rf"^mine: {key}: .*which the workflow cannot take") as error:
            config.parse(data, "mine")
        assert len(str(error.value).splitlines()) == 1


def test_two_points_of_one_name_are_refused() -> None:
    data = with_value(SMOKE, "sweep.expansion.0.expansion", [2, 4, 4.0000001])
    with pytest.raises(ValueError, match=r"mine: sweep: two SAEs would both be called layer2/topk-k4-x4-none-s0"):
        config.parse(data, "mine")


def test_a_sweep_that_no_one_can_spell_out_is_refused_at_once() -> None:
    data = copy.deepcopy(SMOKE)
    many = list(range(1, 101))
    data["sweep"]["more"] = [
        {"k": many, "expansion": many, "table": ["learned"], "lookup_scale": many, "encoder_scale": many, "seeds": many}
    ]
    with pytest.raises(ValueError, match=rf"mine: sweep: .* have 200000000\d\d SAEs, more than {MOST_SAES}"):
        config.parse(data, "mine")


@settings(max_examples=700, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(mutated())
def test_any_configuration_either_plans_or_names_its_key(made: Mutated) -> None:
    try:
        profile = config.parse(made.data, "mine")
    except ValueError as error:
        for line in str(error).splitlines():
            assert line.startswith("mine: ") and len(line) < 1000
        # The message names the changed key, or its section.
        named = [str(part) for where in made.changed for part in where[:1] + where[-1:]]
        assert any(name in str(error) or repr(name)[:50] in str(error) for name in named)
    else:
        assert_it_plans(profile)
