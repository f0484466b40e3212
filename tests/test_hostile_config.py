"""Hostile configurations: what YAML can say beside data, names that are paths or shell, and five hundred mutated files."""

import copy
import json
import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_config import FILES, with_value

from tsae import config, plan
from tsae.config import MOST_SAES, Config
from tsae.section import Section
from tsae.validation import MOST_VALUES, read_yaml

ROOT = Path(__file__).parent.parent
DATA: dict[str, dict[str, Any]] = {path.stem: yaml.safe_load(path.read_text()) for path in FILES}
SMOKE = DATA["smoke"]
RATES = plan.read_rates()

# --- YAML ------------------------------------------------------------------------------------------------------------


def bomb(reference: str) -> str:
    """Ten lines that stand for ten billion values."""
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
        (bomb("[{}]"), f"over {MOST_VALUES} values, with what anchors repeat"),
        (bomb("{{<<: [{}]}}"), f"over {MOST_VALUES} values, with what anchors repeat"),
        ("a: &a {b: *a}\n", "an anchor that contains itself, line 1"),
        ("a: &a [*a]\n", "an anchor that contains itself"),
        ("a: &a {<<: *a}\n", "an anchor that contains itself"),
        ("a: 1\nb: 2\na: 3\n", "the key 'a' is given twice, line 3"),
        ("a: {<<: {b: 1, b: 2}}\n", "the key 'b' is given twice"),
        ("1: a\n'1': b\n", "the key '1' is given twice"),
        ("<<: {a: 1}\n<<: {b: 1}\n", "the key '<<' is given twice"),
        ("? [a]\n: 1\n", "a key that is no name, line 1"),
        ("? {a: b}\n: 1\n", "a key that is no name"),
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


def places(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a configuration below its top."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield (*where, key)
        yield from places(part, (*where, key))


def at(data: Any, where: tuple[Any, ...]) -> Any:
    for key in where:
        data = data[key]
    return data


# With every default spelt out.
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
            continue  # large, and a number
        data = copy.deepcopy(WHOLE)
        at(data, where[:-1])[where[-1]] = yaml.safe_load(value)
        with pytest.raises(ValueError, match=r"^mine: ") as error:
            config.parse(data, "mine")
        section, *_, last = [part for part in where if isinstance(part, str)]
        assert section in str(error.value) and last in str(error.value), where


# --- names -----------------------------------------------------------------------------------------------------------

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
    with pytest.raises(ValueError, match=rf"mine: sweep: .* spell 200000000\d\d SAEs, more than {MOST_SAES}"):
        config.parse(data, "mine")


# --- any configuration -----------------------------------------------------------------------------------------------

# What ends up in a file by mistake or on purpose.
JUNK: list[Any] = [
    *(None, True, False, 0, 1, 2, -1, 3, 7, 64, 100, 10**6, 10**9, 2**53, 2**63, 10**30, 10**400),
    *(0.0, 0.5, 1.0, 1e-300, 5e-324, 1e6, 1e15, 1e300, 1.7e308, -0.1, math.nan, math.inf, -math.inf),
    *(
        "",
        " ",
        "x",
        "1",
        "1e-3",
        "nan",
        "none",
        "learned",
        "topk",
        "../../x",
        "$(touch x)",
        "a\nb",
        "{x}",
        "\ud800",
        "é",
        "x" * 5000,
    ),
    *(
        [],
        {},
        [[]],
        [None],
        [0],
        [1],
        [1, 1],
        [2, 4],
        [0.1, 0.2],
        ["none"],
        ["none", "learned"],
        {"a": 1},
        [{"a": 1}],
        list(range(300)),
    ),
]


MISTAKES = [
    *("junk", "junk", "delete", "misspell", "scale", "nudge", "nudge", "nudge"),
    *("swap", "copy", "repeat", "wrap", "add"),
]


def misspell(key: str, place: int) -> str:
    i = place % len(key)
    return (key[:i] + key[i + 1 :], key[:i] + key[i] * 2 + key[i + 1 :], key.upper(), f"{key} ")[place % 4] or "x"


class Mutated(NamedTuple):
    """A configuration with mistakes."""

    data: dict[str, Any]
    changed: list[tuple[Any, ...]]

    def __repr__(self) -> str:
        return str({where: value_at(self.data, where) for where in self.changed})


def value_at(data: Any, where: tuple[Any, ...]) -> Any:
    try:
        return at(data, where)
    except (LookupError, TypeError):
        return "(not there)"


@st.composite
def mutated(draw: st.DrawFn) -> Mutated:
    """A configuration of the project with one to three mistakes, and where they are."""
    data: Any = copy.deepcopy(DATA[draw(st.sampled_from(sorted(DATA)))])
    if draw(st.booleans()):
        data = json.loads(config.to_json(config.parse(data)))  # with every default spelt out
    changed = []
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        where = draw(st.sampled_from(list(places(data))))
        parent, key = at(data, where[:-1]), where[-1]
        junk = copy.deepcopy(draw(st.sampled_from(JUNK)))
        match draw(st.sampled_from(MISTAKES)):
            case "delete":
                del parent[key]
            case "misspell" if isinstance(key, str):
                misspelt = misspell(key, draw(st.integers(0, 40)))
                parent[misspelt] = parent.pop(key)
                changed.append((*where[:-1], misspelt))
            case "scale" if isinstance(parent[key], int | float) and abs(parent[key]) < 1e300:
                parent[key] *= draw(st.sampled_from([-1, 2, 10, 1000, 10**9, 0.5, 1e-9, 1e12]))
            case "nudge" if isinstance(parent[key], int | float) and abs(parent[key]) < 1e300:
                parent[key] += draw(st.sampled_from([-1, 1, -2, 2, 0.25, 0.5, -0.25, 5, 16]))
            case "swap":
                other = draw(st.sampled_from(list(parent) if isinstance(parent, dict) else range(len(parent))))
                parent[key], parent[other] = parent[other], parent[key]
                changed.append((*where[:-1], other))
            case "copy":
                parent[key] = copy.deepcopy(at(data, draw(st.sampled_from(list(places(data))))))
            case "repeat" if isinstance(parent, list):
                parent.insert(key, copy.deepcopy(parent[key]))
            case "wrap":
                parent[key] = draw(st.sampled_from([[parent[key]], {"a": parent[key]}, str(parent[key])]))
            case "add" if isinstance(parent, dict):
                key = draw(st.sampled_from(["extra", "../x", "", "seed", "k", 1, "pathvars", "a\nb", "y" * 300]))
                parent[key] = junk
            case _:
                parent[key] = junk
        changed.append((*where[:-1], key))
    return Mutated(data, changed)


def assert_it_plans(profile: Config) -> None:
    """Everything that the workflow and `tsae plan` compute from a configuration works, and fits the shell and the disk."""
    jobs = profile.jobs()
    ids = [job.id for job in jobs]
    assert jobs and len(set(ids)) == len(ids) <= MOST_SAES
    for name in ids:
        assert re.fullmatch(r"layer\d+/[A-Za-z0-9_.+-]+", name) and shlex.quote(name) == name
    assert set(profile.headline()) - {None} <= {job.point.id for job in profile.jobs("headline")}
    assert {profile.token_bias_reference(job.layer, job.seed) for job in jobs} <= set(profile.jobs("headline"))
    for block in profile.sweep:
        assert profile.jobs(block) and shlex.quote(block) == block
    steps = profile.checkpoint_steps()
    assert steps == sorted(set(steps)) and steps[0] >= 1 and len(steps) <= profile.curves.checkpoints
    assert steps[-1] == profile.training.tokens // profile.training.batch_size
    for name, section in profile:
        if isinstance(section, Section):
            assert type(section).model_validate_json(config.to_json(section)) == section, name
    assert Config.model_validate_json(config.to_json(profile)) == profile
    for job in jobs[:: max(1, len(jobs) // 5)]:
        assert type(job).model_validate_json(config.to_json(job)) == job
    assert plan.show(plan.plan(profile, RATES, plan.Machine()))


@settings(max_examples=700, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(mutated())
def test_any_configuration_either_plans_or_names_its_key(made: Mutated) -> None:
    try:
        profile = config.parse(made.data, "mine")
    except ValueError as error:
        for line in str(error).splitlines():
            assert line.startswith("mine: ") and len(line) < 1000
        # The key that was changed, or one that it must agree with and names its section.
        named = [str(part) for where in made.changed for part in where[:1] + where[-1:]]
        assert any(name in str(error) or repr(name)[:50] in str(error) for name in named)
    else:
        assert_it_plans(profile)
