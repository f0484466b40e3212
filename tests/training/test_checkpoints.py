"""Checkpoints written during a training."""

from pathlib import Path

import pytest
import torch
from fixtures.training import LAYER, POINTS, SETTINGS, Prepared, read_history

from tsae.profile.sweep import Job
from tsae.residuals.read import open_residuals
from tsae.sae.checkpoint import load, load_last_fired
from tsae.store.tensors import load_tensors
from tsae.training.train import train


@pytest.mark.parametrize("name", ["learned", "nounigram", "gated-none"])
def test_checkpoints_are_written_at_the_given_steps_and_change_nothing(
    trained: dict[str, Path], with_checkpoints: dict[str, Path], name: str
) -> None:
    folder = with_checkpoints[name]
    assert {path.name for path in folder.iterdir() if path.suffix != ".sha256"} == {
        "sae.safetensors",
        "history.csv",
        "config.json",
        "checkpoints",
    }
    steps = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert steps == ["step00000001", "step00000010", "step00000037", "step00000100"]
    for file in ("sae.safetensors", "history.csv", "config.json"):
        assert (folder / file).read_bytes() == (trained[name] / file).read_bytes()


@pytest.mark.parametrize("name", ["learned", "nounigram", "gated-none"])
def test_a_checkpoint_is_the_sae_of_its_step(prepared: Prepared, with_checkpoints: dict[str, Path], name: str) -> None:
    rows = open_residuals(prepared.residuals, "heldout", LAYER).kept_rows()
    history = {int(row["step"]): row for row in read_history(with_checkpoints[name])}
    recorded = 0
    for step in (1, 10, 37, 100):
        folder = with_checkpoints[name] / f"checkpoints/step{step:08d}"
        assert {path.name for path in folder.glob("[!.]*")} == {"sae.safetensors", "config.json"}
        tensors = load_tensors(folder / "sae.safetensors")
        for part, tensor in tensors.items():
            tables, counts = ("W_lookup", "unigram_directions"), ("last_fired",)
            dtype = torch.float16 if part in tables else torch.int64 if part in counts else torch.float32
            assert tensor.dtype == dtype
        sae = load(folder)
        assert (sae.metadata["step"], sae.metadata["tokens_trained"]) == (step, 128 * step)
        assert load_last_fired(folder).max() == 128 * step
        if step in history:
            recorded += 1
            assert sae.metadata["final"] == history[step]
            x_hat = sae(rows.residuals, rows.tokens)
            nmse = ((rows.residuals - x_hat).norm(dim=1) / rows.residuals.norm(dim=1)).square().mean().item()
            assert history[step]["heldout_nmse"] == pytest.approx(nmse, rel=1e-3)
    assert recorded >= 3


def test_the_last_checkpoint_is_the_trained_sae(with_checkpoints: dict[str, Path]) -> None:
    folder = with_checkpoints["learned"]
    last, final = (load_tensors(path / "sae.safetensors") for path in (folder / "checkpoints/step00000100", folder))
    assert last.keys() == final.keys()
    assert final["W_lookup"].dtype == torch.float32
    for part, tensor in final.items():
        assert torch.equal(last[part], tensor.half() if part == "W_lookup" else tensor)
    configs = [(path / "config.json").read_bytes() for path in (folder / "checkpoints/step00000100", folder)]
    assert configs[0] == configs[1]


def test_stale_checkpoints_are_removed(prepared: Prepared, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"tokens": 640})
    for job, steps in (
        (Job(layer=LAYER, point=POINTS["learned"], seed=0), (1, 2, 5)),
        (Job(layer=LAYER, point=POINTS["none"], seed=0), (2, 3)),
        (Job(layer=LAYER, point=POINTS["none"], seed=0), ()),
    ):
        train(job, settings, prepared.residuals, prepared.unigrams, tmp_path, steps)
        found = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
        assert found == [f"step{step:08d}" for step in steps]
        for name in found:
            assert load(tmp_path / "checkpoints" / name).point == job.point
