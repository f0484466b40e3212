"""Trainings that are interrupted, or that fail."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.faults import flip_a_bit
from fixtures.training import LAYER, POINTS, SETTINGS, Prepared, initial_sae, never

from tsae.profile.sweep import Job
from tsae.residuals.read import ResidualCache, open_residuals
from tsae.sae.checkpoint import load
from tsae.store.tensors import save_tensors
from tsae.training.batches import Batch, training_batches
from tsae.training.loop import train_sae
from tsae.training.resume import NotFiniteError, Progress, Saved
from tsae.training.train import train
from tsae.training.trainer import Step, Trainer


def interrupt_training(prepared: Prepared, folder: Path, at: int, steps: Sequence[int]) -> None:
    """A training that saves at every step, and ends midway."""
    done = 0
    step = Trainer.step

    def interrupted(self: Trainer, batch: Batch) -> Step:
        nonlocal done
        done += 1
        if done == at:
            raise KeyboardInterrupt
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "step", interrupted)
        resume(prepared, folder, steps)


def resume(prepared: Prepared, folder: Path, steps: Sequence[int]) -> None:
    job = Job(layer=LAYER, point=POINTS["learned"], seed=0)
    settings = SETTINGS.model_copy(update={"save_minutes": 0})
    train(job, settings, prepared.residuals, prepared.unigrams, folder, steps)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name, table_adam",
    [(name, "rows") for name in ("none", "learned", "nounigram", "relu-learned", "gated-learned")]
    + [(name, "rows") for name in ("batchtopk-learned", "matryoshka-learned", "auxk-none", "jumprelu-learned")]
    + [("learned", "dense")],
)
def test_an_interrupted_training_gives_what_a_whole_one_gives(
    prepared: Prepared, train_cache: ResidualCache, name: str, table_adam: str, tmp_path: Path, one_thread: None
) -> None:
    heldout = open_residuals(prepared.residuals, "heldout", LAYER)
    settings = SETTINGS.model_copy(update={"table_adam": table_adam})
    whole = initial_sae(name, prepared, train_cache)
    expected = train_sae(whole, train_cache, heldout, settings, seed=3, label="test", at_checkpoint=never)

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    # Each continues from the last saved step before it; every step is saved.
    for moment in (1, 4, 5, 40):
        saved = Saved(tmp_path / "state.safetensors", {"settings": 1}, every_s=0)
        sae = initial_sae(name, prepared, train_cache)
        with pytest.raises(KeyboardInterrupt):
            train_sae(sae, train_cache, heldout, settings, 3, "test", interrupt, checkpoints=[moment], saved=saved)
        found = saved.read()
        assert (None if found is None else found[1].step) == (None if moment == 1 else moment - 1)
    sae = initial_sae(name, prepared, train_cache)
    resumed = train_sae(
        sae,
        train_cache,
        heldout,
        settings,
        3,
        "test",
        never,
        saved=Saved(tmp_path / "state.safetensors", {"settings": 1}, 5),
    )
    assert resumed.history == expected.history
    assert torch.equal(resumed.last_fired, expected.last_fired)
    for parameter, tensor in whole.state_dict().items():
        assert torch.equal(sae.state_dict()[parameter], tensor), parameter


def test_what_another_training_saved_is_not_gone_on_from(
    prepared: Prepared, train_cache: ResidualCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state.safetensors"
    trainer = Trainer(initial_sae("none", prepared, train_cache), SETTINGS)
    trainer.step(next(iter(training_batches(train_cache, SETTINGS, 3))))
    progress = Progress(1, [], [0.5], [3.0], torch.zeros(trainer.sae.n_features, dtype=torch.int64))
    Saved(path, {"lr": 1}, 0).write(trainer.state(), progress)
    assert Saved(path, {"lr": 2}, 0).read() is None
    assert "state.safetensors: training starts from step 0 (it is of other settings, inputs, code" in caplog.text
    caplog.clear()
    found = Saved(path, {"lr": 1}, 0).read()
    assert found is not None
    assert found[1].losses == [0.5]
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    assert Saved(path, {"lr": 1}, 0).read() is None
    assert "training starts from step 0" in caplog.text


def test_an_interrupted_training_leaves_the_files_of_a_whole_one(
    prepared: Prepared, with_checkpoints: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps = (1, 10, 37, 100)
    expected = contents(with_checkpoints["learned"])
    caplog.set_level("INFO")
    interrupt_training(prepared, tmp_path / "sae", 50, steps)
    interrupt_training(prepared, tmp_path / "sae", 30, steps)
    resume(prepared, tmp_path / "sae", steps)
    assert "continues after step 49 of 100" in caplog.text
    assert "continues after step 78 of 100" in caplog.text
    assert contents(tmp_path / "sae") == expected


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("", shutil.rmtree),
        ("sae.safetensors", Path.unlink),
        ("sae.safetensors", flip_a_bit),
        ("config.json", flip_a_bit),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_made_anew(
    prepared: Prepared,
    with_checkpoints: dict[str, Path],
    name: str,
    harm: Callable[[Path], None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    steps = (1, 10, 37, 100)
    interrupt_training(prepared, tmp_path, 50, steps)
    harm(tmp_path / ".training/checkpoints/step00000010" / name)
    resume(prepared, tmp_path, steps)
    assert "step00000010 is not there, or damaged: training starts from step 0" in caplog.text
    assert contents(tmp_path) == contents(with_checkpoints["learned"])


def test_checkpoints_are_those_asked_for_last(prepared: Prepared, tmp_path: Path) -> None:
    for name, steps in (("fewer", (10, 100)), ("others", (1, 20, 100))):
        interrupt_training(prepared, tmp_path / name, 50, (1, 10, 100))
        resume(prepared, tmp_path / name, steps)
        found = sorted(path.name for path in (tmp_path / name / "checkpoints").iterdir())
        assert found == [f"step{step:08d}" for step in steps]


def test_a_full_disk_at_the_end_loses_nothing(
    prepared: Prepared, with_checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fills is the disk under the last file: the SAE itself."""
    steps = (1, 10, 37, 100)
    saved = save_tensors

    def full(path: Path, *args: Any) -> None:
        if path.parent.name == "done":
            raise OSError("No space left on device")
        saved(path, *args)

    interrupt_training(prepared, tmp_path, 50, steps)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("tsae.sae.checkpoint.save_tensors", full)
        resume(prepared, tmp_path, steps)
    for name in ("checkpoints", "history.csv", "sae.safetensors"):
        assert not (tmp_path / name).exists()
    resume(prepared, tmp_path, steps)
    assert contents(tmp_path) == contents(with_checkpoints["learned"])


@pytest.mark.refused("NaN in the state of a training")
def test_numbers_that_are_not_finite_are_not_saved(
    prepared: Prepared, train_cache: ResidualCache, tmp_path: Path
) -> None:
    trainer = Trainer(initial_sae("none", prepared, train_cache), SETTINGS)
    with torch.no_grad():
        trainer.sae.b_dec[3] = torch.nan
    saved = Saved(tmp_path / "state.safetensors", {}, 0)
    with pytest.raises(NotFiniteError, match=r"stopped at step 7: sae\.b_dec is not finite"):
        saved.write(trainer.state(), Progress(7, [], [], [], torch.zeros(1, dtype=torch.int64)))
    assert saved.read() is None


@pytest.mark.refused("infinity in parameters, made by a step")
def test_numbers_that_the_last_step_made_infinite_are_found(prepared: Prepared, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"tokens": 128, "lr": 1e39})
    job = Job(layer=LAYER, point=POINTS["learned"], seed=0)
    train(job, settings, prepared.residuals, prepared.unigrams, tmp_path)
    failed = load(tmp_path).metadata["failed"]
    assert failed["step"] == 1
    assert "is not finite after it; the SAE has diverged" in failed["why"]


@pytest.mark.parametrize("name", ["none", "relu-none", "gated-none"])
def test_a_loss_that_is_not_finite_leaves_the_last_good_sae(
    prepared: Prepared, train_cache: ResidualCache, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = SETTINGS.model_copy(update={"lr": 1e30})
    job = Job(layer=LAYER, point=POINTS[name], seed=0)
    train(job, settings, prepared.residuals, prepared.unigrams, tmp_path / "sae", checkpoints=[1])
    failed = load(tmp_path / "sae")
    assert (failed.metadata["failed"]["step"], "training.lr" in failed.metadata["failed"]["why"]) == (2, True)
    assert "layer2" in caplog.text
    # It never saved, so what is left is the SAE at initialisation.
    assert failed.metadata["step"] == 0
    initial = initial_sae(name, prepared, train_cache)
    torch.testing.assert_close(failed.W_enc, initial.W_enc)
    assert (tmp_path / "sae/checkpoints/step00000001/config.json").is_file()
    assert (tmp_path / "sae/history.csv").read_text().splitlines()[0].startswith("step,tokens")
