"""The configuration: its SAEs, checkpoints and sizes, and its forms as JSON and schema."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from fixtures import ROOT
from fixtures.configuration import FILES, error_of, with_value

from tsae.profile import config


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_shipped_configuration_is_valid(path: Path) -> None:
    assert config.load(path).jobs()


def test_a_shared_point_is_trained_once(data: dict[str, Any]) -> None:
    first = config.parse(data)
    assert [job.id for job in first.jobs("init")] == [
        "layer12/topk-k32-x4-learned-lookup0.25-s0",
        "layer12/topk-k32-x4-learned-s0",
    ]
    # Two SAEs of pareto are headline SAEs, one of expansion, one of init, two of encoder, two of centre, two of growth, two of tables.
    assert len(first.jobs()) == 18 + (6 - 2) + (4 - 1) + (2 - 1) + (4 - 2) + (4 - 2) + (4 - 2) + (3 - 2)
    assert len({job.id for job in first.jobs()}) == len(first.jobs())
    assert {job for block in data["sweep"] for job in first.jobs(block)} == set(first.jobs())
    data["sweep"]["more"] = [{"layers": [12], "k": [8, 16], "expansion": [4], "table": ["none", "learned"]}]
    added = [job.id for job in config.parse(data).jobs() if job not in first.jobs()]
    assert added == ["layer12/topk-k8-x4-none-s0", "layer12/topk-k8-x4-learned-s0"]


def test_a_block_is_all_of_its_grids(data: dict[str, Any]) -> None:
    parsed = config.parse(data)
    assert [job.point.id for job in parsed.jobs("pareto")] == [
        "topk-k16-x4-none",
        "topk-k16-x4-learned",
        "topk-k32-x4-none",
        "topk-k32-x4-learned",
        "relu-l1_1-x4-none",
        "gated-l1_1-x4-none",
    ]
    assert {job.layer for job in parsed.jobs("pareto")} == {12}
    assert {(job.layer, job.seed) for job in parsed.jobs("headline")} == {
        (layer, seed) for layer in (6, 12, 18) for seed in (0, 1, 2)
    }


def test_the_headline_is_the_reference_and_its_baseline(data: dict[str, Any]) -> None:
    assert config.parse(data).headline() == ("topk-k32-x4-none", "topk-k32-x4-learned", None)
    remainder = {"k": [32], "expansion": [4], "table": ["learned"], "encoder_input": ["remainder"]}
    data["sweep"]["headline"].append(remainder)
    assert config.parse(data).headline().remainder == "topk-k32-x4-learned-remainder"
    data["sweep"]["headline"].append({"k": [8], "expansion": [2], "table": ["none", "fixed"], "start": ["authors"]})
    data["evaluation"]["token_biases"] = "topk-k8-x2-fixed-authors"
    assert config.parse(data).headline() == ("topk-k8-x2-none-authors", "topk-k8-x2-fixed-authors", None)
    # The reference has the paper's form.
    data["evaluation"]["token_biases"] = "topk-k32-x4-learned-remainder"
    assert "is no tokenized point of sweep.headline in the paper's form" in error_of(data)
    # The reference is in the headline block.
    data["evaluation"]["token_biases"] = "topk-k16-x4-learned"
    assert "'topk-k16-x4-learned' is no tokenized point of sweep.headline" in error_of(data)


def test_the_reference_table_is_of_the_same_seed_if_there_is_one(data: dict[str, Any]) -> None:
    data["sweep"]["more"] = [{"k": [8], "expansion": [4], "table": ["none"], "seeds": [7]}]
    parsed = config.parse(data)
    for seed, reference in ((2, 2), (7, 0)):
        job = parsed.token_bias_reference(12, seed)
        assert job and job.id == f"layer12/topk-k32-x4-learned-s{reference}"


def checkpoint_steps(data: dict[str, Any], n_steps: int, **curves: Any) -> list[int]:
    """Checkpoints of a training one token short of n_steps + 1 batches."""
    training = data["training"] | {"tokens": (n_steps + 1) * 512 - 1, "batch_size": 512}
    return config.parse(data | {"training": training, "curves": curves}).checkpoint_steps()


def test_what_the_residuals_take_on_disk(data: dict[str, Any]) -> None:
    # 3 layers; sequences of 128 make 280064 training and 25088 held-out tokens; d_model 576. Shards are 32768 tokens.
    data["tokens"] = {"n_ctx": 128, "train": 280_000, "heldout": 25_000}
    assert config.parse(data).cache_bytes(streamed=False) == 3 * (280_064 + 25_088) * 1164
    assert not config.parse(data).streams
    small = with_value(data, "residuals.mean_tokens", 40_000)
    # Of a streamed token 4 bytes at each layer, and 4 once.
    streamed = 3 * (40_000 + 25_088) * 1164 + (3 + 1) * (280_064 - 40_000) * 4
    assert config.parse(small).cache_bytes(streamed=True) == streamed
    shard = 3 * (32_768 + 25_088) * 1164 + (3 + 1) * (280_064 - 32_768) * 4
    assert config.parse(with_value(data, "residuals.mean_tokens", 1)).cache_bytes(streamed=True) == shard
    for limit, streams in ((1.1, False), (1.0, True), (streamed / 1e9, True)):
        assert config.parse(with_value(small, "residuals.disk_gb", limit)).streams == streams
    with pytest.raises(
        ValueError,
        match=r"residuals\.disk_gb: 0\.23 GB are too few: .* take 0\.231 GB \(all residuals take 1\.07 GB\); raise it, or",
    ):
        config.parse(with_value(small, "residuals.disk_gb", 0.23))


def test_what_a_command_does_not_take_is_left_out(data: dict[str, Any]) -> None:
    residuals = config.parse(with_value(data, "residuals.disk_gb", 20.0)).residuals
    text = config.to_json(residuals, exclude=["disk_gb", "jobs"])
    assert config.Residuals.model_validate_json(text) == residuals.model_copy(update={"disk_gb": None})


def test_checkpoints_are_evenly_spaced_in_log(data: dict[str, Any]) -> None:
    assert checkpoint_steps(data, 1024, checkpoints=6, first=1 / 32) == [32, 64, 128, 256, 512, 1024]
    assert checkpoint_steps(data, 1000, checkpoints=4, first=0.001) == [1, 10, 100, 1000]
    assert checkpoint_steps(data, 1000, checkpoints=2, first=0.25) == [250, 1000]


@pytest.mark.parametrize("n_steps", [1, 2, 3, 7, 40, 1093, 100_000])
@pytest.mark.parametrize("checkpoints", [2, 8, 50])
def test_checkpoints_increase_up_to_the_end_of_training(data: dict[str, Any], n_steps: int, checkpoints: int) -> None:
    for first in (1e-6, 1 / 32, 0.9):
        steps = checkpoint_steps(data, n_steps, checkpoints=checkpoints, first=first)
        assert steps == sorted(set(steps))
        assert 1 <= len(steps) <= checkpoints
        assert steps[0] == max(1, round(n_steps * first))
        assert steps[-1] == n_steps
        assert all(isinstance(step, int) for step in steps)


def test_settings_travel_as_json_unchanged(data: dict[str, Any]) -> None:
    parsed = config.parse(data)
    # All but sizes of wheels, which nothing but the plan reads.
    assert config.Config.model_validate_json(config.to_json(parsed)).model_dump() == parsed.model_dump()
    assert config.to_json(parsed.training) == config.to_json(config.parse(copy.deepcopy(data)).training)


def test_every_key_is_described_in_the_schema_file() -> None:
    path = ROOT / "workflow/schemas/config.schema.json"
    assert path.read_text() == config.json_schema(), "run `make docs`"
    schema = json.loads(path.read_text())
    for name, section in schema["$defs"].items():
        assert section["additionalProperties"] is False or name == "Name"
        for key, described in section["properties"].items():
            assert {"description", "$ref"} & set(described) or key == "source", f"{name}.{key}"
