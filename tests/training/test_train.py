import csv
import itertools
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fixtures import ROOT
from fixtures.faults import flip_a_bit
from fixtures.training import LAYER, POINTS, SETTINGS, Prepared, train_point, write_cache
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tsae.profile import config
from tsae.profile.point import Point
from tsae.profile.sweep import Job
from tsae.profile.training import Training
from tsae.residuals.read import ResidualCache, open_residuals
from tsae.residuals.unigrams import load_embedding, load_unigrams
from tsae.sae.architectures.base import Active
from tsae.sae.architectures.relu import ReLU
from tsae.sae.checkpoint import load, load_last_fired
from tsae.sae.sae import SAE
from tsae.store import files
from tsae.store.tensors import load_metadata, load_tensors, save_tensors
from tsae.training.batches import Batch, training_batches
from tsae.training.loop import history_steps, train_sae
from tsae.training.resume import NotFiniteError, Progress, Saved
from tsae.training.start import start_from
from tsae.training.train import FORMAT, train
from tsae.training.trainer import Step, Trainer


@pytest.fixture(scope="module")
def cache(prepared: Prepared) -> ResidualCache:
    return open_residuals(prepared.residuals, "train", LAYER)


@pytest.fixture(scope="module")
def trained(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: train_point(prepared, tmp_path_factory.mktemp("saes") / name, name) for name in POINTS}


def test_less_than_one_batch_is_refused() -> None:
    data = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    config.parse(data)
    data["training"]["tokens"] = data["training"]["batch_size"] - 1
    with pytest.raises(ValueError, match=r"training\.tokens"):
        config.parse(data)


def initial_table(prepared: Prepared, cache: ResidualCache) -> Tensor:
    return 0.5 * (load_unigrams(prepared.unigrams) / cache.scale)


def initial_sae(name: str, prepared: Prepared, cache: ResidualCache) -> SAE:
    embedding = load_embedding(prepared.embedding)
    start = start_from(POINTS[name], cache, load_unigrams(prepared.unigrams), seed=0, embedding=embedding)
    return SAE.initialise(POINTS[name], start, seed=0)


def test_b_dec_starts_at_the_mean_of_what_the_table_leaves(
    prepared: Prepared, cache: ResidualCache, tmp_path: Path
) -> None:
    # At a learning rate of nothing a trained SAE is the initial one.
    settings = SETTINGS.model_copy(update={"tokens": 128, "lr": 1e-30, "lr_end": 0.0, "table_lr": 1e-30})
    for point in POINTS.values():
        train(Job(layer=LAYER, point=point, seed=0), settings, prepared.residuals, prepared.unigrams, tmp_path)
        b_dec = load_tensors(tmp_path / "sae.safetensors")["b_dec"]
        rows = cache.kept_rows()
        left = rows.residuals / cache.scale
        if point.table != "none":
            left = left - initial_table(prepared, cache)[rows.tokens.long()]
        torch.testing.assert_close(b_dec, left.mean(0), rtol=1e-4, atol=1e-4)


def seen_in_training(cache: ResidualCache) -> Tensor:
    return cache.kept_rows().tokens.bincount(minlength=512) > 0


@pytest.mark.parametrize("name", ["learned", "relu-learned", "gated-learned", "nounigram"])
def test_learned_rows_of_seen_tokens_move_and_no_others(
    prepared: Prepared, cache: ResidualCache, trained: dict[str, Path], name: str
) -> None:
    table = load_tensors(trained[name] / "sae.safetensors")["W_lookup"]
    start = initial_table(prepared, cache)
    seen = seen_in_training(cache)
    assert 10 < seen.sum() < 502
    assert torch.equal((table != start).any(1), seen)
    assert torch.equal(table[~seen], start[~seen])
    assert (table - start)[seen].norm(dim=1).min() > 1e-3


@pytest.mark.parametrize("name", ["fixed", "relu-fixed"])
def test_fixed_tables_stay(prepared: Prepared, cache: ResidualCache, trained: dict[str, Path], name: str) -> None:
    tensors = load_tensors(trained[name] / "sae.safetensors")
    assert torch.equal(tensors["W_lookup"], initial_table(prepared, cache))
    start = initial_sae(name, prepared, cache)
    for part in ("W_enc", "W_dec", "b_enc", "b_dec"):
        assert not torch.equal(tensors[part], getattr(start, part))


@pytest.mark.parametrize("name", ["none", "relu-none", "gated-none"])
def test_baselines_have_no_table(trained: dict[str, Path], name: str) -> None:
    assert "W_lookup" not in load_tensors(trained[name] / "sae.safetensors")
    assert load(trained[name]).W_lookup is None


@pytest.mark.parametrize("name", ["gated-none", "gated-learned"])
def test_the_magnitudes_of_a_gated_sae_are_trained(trained: dict[str, Path], name: str) -> None:
    tensors = load_tensors(trained[name] / "sae.safetensors")
    for part in ("r_mag", "b_mag"):
        assert (tensors[f"activation.{part}"] != 0).float().mean() > 0.5


def test_unigram_directions_stay_those_of_the_unigram_residuals(
    prepared: Prepared, cache: ResidualCache, trained: dict[str, Path]
) -> None:
    directions = load_tensors(trained["nounigram"] / "sae.safetensors")["unigram_directions"]
    unigrams = load_unigrams(prepared.unigrams)
    centred = unigrams - cache.token_counts(len(unigrams)) / cache.n_kept @ unigrams
    torch.testing.assert_close(directions, centred / centred.norm(dim=1, keepdim=True))


def read_history(folder: Path) -> list[dict[str, float]]:
    with (folder / "history.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", ["none", "learned", "relu-learned", "gated-none"])
def test_same_seed_same_bytes(prepared: Prepared, trained: dict[str, Path], tmp_path: Path, name: str) -> None:
    again, other = (train_point(prepared, tmp_path / str(seed), name, seed) for seed in (0, 1))
    written = {"sae.safetensors", "history.csv", "config.json"}
    assert {path.name for path in again.iterdir() if path.suffix != ".sha256"} == written | {"checkpoints"}
    assert not list((again / "checkpoints").iterdir())
    for file in written:
        assert (again / file).read_bytes() == (trained[name] / file).read_bytes()
        assert (other / file).read_bytes() != (again / file).read_bytes()


@pytest.mark.parametrize("name", list(POINTS))
def test_history_falls(prepared: Prepared, trained: dict[str, Path], name: str) -> None:
    history = read_history(trained[name])
    assert [row["step"] for row in history] == sorted(history_steps(100, 5))
    assert [row["tokens"] for row in history] == [128 * row["step"] for row in history]
    # With a penalty, which grows at first, the loss is another one at every step.
    penalised = POINTS[name].l1 is not None
    for column in ("heldout_nmse", "heldout_fvu", *(() if penalised else ("loss",))):
        assert history[-1][column] < 0.7 * history[0][column]
    assert history[-1]["lr"] == pytest.approx(SETTINGS.lr_end, rel=1e-9)

    # The last row is what the written checkpoint does; there are fewer held-out tokens than history_tokens.
    rows = open_residuals(prepared.residuals, "heldout", LAYER).kept_rows()
    x_hat = load(trained[name])(rows.residuals, rows.tokens)
    nmse = ((rows.residuals - x_hat).norm(dim=1) / rows.residuals.norm(dim=1)).square().mean().item()
    variance = (rows.residuals - rows.residuals.mean(0)).square().sum()
    assert history[-1]["heldout_nmse"] == pytest.approx(nmse, rel=1e-4)
    assert history[-1]["heldout_fvu"] == pytest.approx(
        ((rows.residuals - x_hat).square().sum() / variance).item(), rel=1e-4
    )


def never(_: Progress) -> None:
    raise AssertionError("no checkpoint was asked for")


# Every step has the loss of the initial SAE, but for what depends on the step.
FROZEN = SETTINGS.model_copy(update={"tokens": 1280, "lr": 1e-12, "lr_end": 0.0, "table_lr": 1e-12})


@pytest.mark.parametrize("name", ["none", "learned", "nounigram"])
def test_loss_is_the_mean_squared_error_since_the_last_record(
    prepared: Prepared, cache: ResidualCache, name: str
) -> None:
    settings = FROZEN.model_copy(update={"history_points": 2})
    sae = initial_sae(name, prepared, cache)
    losses = [(sae(*batch) - batch.residuals).square().mean().item() for batch in training_batches(cache, settings, 3)]
    heldout = open_residuals(prepared.residuals, "heldout", LAYER)
    history = train_sae(sae, cache, heldout, settings, seed=3, label="test", at_checkpoint=never).history
    assert [row["step"] for row in history] == [1, 10]
    assert history[0]["loss"] == pytest.approx(losses[0], rel=1e-5)
    assert history[1]["loss"] == pytest.approx(sum(losses[1:]) / 9, rel=1e-5)


@pytest.mark.parametrize("name", ["relu-none", "relu-learned", "gated-none", "gated-learned"])
def test_the_loss_of_the_other_architectures_has_its_penalty(
    prepared: Prepared, cache: ResidualCache, name: str
) -> None:
    settings = FROZEN.model_copy(update={"history_points": 30, "l1_warmup": 0.4})
    sae = initial_sae(name, prepared, cache)
    point = sae.point
    assert point.l1 is not None
    expected, active = [], []
    for step, (x, tokens) in enumerate(training_batches(cache, settings, 3), start=1):
        table = 0 if sae.W_lookup is None else sae.W_lookup[tokens]
        gate = sae.tokenized_activations(x).detach().relu()
        # At the start, magnitudes are the gate, and the reconstruction from the gate is the reconstruction.
        squared = (gate @ sae.W_dec + sae.b_dec + table - x).square().sum(1).mean().item()
        l1 = (gate * sae.W_dec.norm(dim=1)).sum(1).mean().item()
        total = (2 if point.architecture == "gated" else 1) * squared + min(1, step / 4) * point.l1 * l1
        expected.append(total / x.shape[1])
        active.append((gate > 0).sum(1).float().mean().item())
    heldout = open_residuals(prepared.residuals, "heldout", LAYER)
    history = train_sae(sae, cache, heldout, settings, seed=3, label="test", at_checkpoint=never).history
    assert [row["step"] for row in history] == list(range(1, 11))
    assert [row["loss"] for row in history] == pytest.approx(expected, rel=1e-5)
    assert [row["l0"] for row in history] == pytest.approx(active, rel=1e-3)


@pytest.mark.parametrize(
    ("l1_warmup", "expected"),
    [
        (0.0, [2.0] * 10),
        (0.01, [2.0] * 10),
        (0.4, [0.5, 1.0, 1.5, *[2.0] * 7]),
        (1.0, [0.2 * step for step in range(1, 11)]),
    ],
)
def test_the_penalty_grows_linearly_and_stays(
    prepared: Prepared, cache: ResidualCache, monkeypatch: pytest.MonkeyPatch, l1_warmup: float, expected: list[float]
) -> None:
    penalties = []
    extra_loss = ReLU.extra_loss

    def record(self: ReLU, active: Active, W_dec: Tensor, target: Callable[[], Tensor], penalty: float) -> Tensor:
        penalties.append(penalty)
        assert not target().requires_grad
        return extra_loss(self, active, W_dec, target, penalty)

    monkeypatch.setattr(ReLU, "extra_loss", record)
    sae = initial_sae("relu-learned", prepared, cache)
    sae.point = sae.point.model_copy(update={"l1": 2.0})
    settings = SETTINGS.model_copy(update={"tokens": 1280, "l1_warmup": l1_warmup})
    train_sae(sae, cache, cache, settings, seed=3, label="test", at_checkpoint=never)
    assert penalties == pytest.approx(expected, rel=1e-12)


def test_a_larger_penalty_leaves_fewer_active_features(prepared: Prepared, cache: ResidualCache) -> None:
    heldout = open_residuals(prepared.residuals, "heldout", LAYER)
    for name in ("relu-learned", "gated-learned"):
        counts = []
        for l1 in (0.1, 2.0):
            sae = initial_sae(name, prepared, cache)
            sae.point = sae.point.model_copy(update={"l1": l1})
            history = train_sae(sae, cache, heldout, SETTINGS, seed=3, label="test", at_checkpoint=never).history
            counts.append(history[-1]["l0"])
        assert counts[1] < 0.7 * counts[0]


def test_a_topk_has_as_many_active_features_as_it_may(trained: dict[str, Path]) -> None:
    for name in ("none", "learned"):
        assert all(3.5 < row["l0"] <= 4 for row in read_history(trained[name]))


def test_config_tells_how_the_sae_was_made(prepared: Prepared, cache: ResidualCache, trained: dict[str, Path]) -> None:
    metadata = json.loads((trained["learned"] / "config.json").read_text())
    assert metadata["hook_point"] == "blocks.2.hook_resid_pre"
    assert (metadata["seed"], metadata["layer"], metadata["scale"]) == (0, LAYER, cache.scale)
    assert Point(**metadata["point"]) == POINTS["learned"]
    assert Training(**metadata["training"]) == SETTINGS
    assert (metadata["n_features"], metadata["d_model"]) == (64, 32)
    assert (metadata["step"], metadata["tokens_trained"], metadata["format"]) == (100, 12_800, FORMAT)
    assert metadata["final"] == read_history(trained["learned"])[-1]
    assert metadata["residuals"]["tokens"]["train"]["sha256"] == files.sha256(prepared.train_tokens)
    assert metadata["residuals"]["model"] == json.loads((prepared.model / "source.json").read_text())
    assert (metadata["residuals"]["max_norm"], metadata["residuals"]["kept"]) == (cache.max_norm, cache.n_kept)
    assert metadata["unigrams"]["sha256"] == files.sha256(prepared.unigrams)
    assert metadata["unigrams"]["prefix"] == ""


@pytest.fixture
def learning_rates() -> Iterator[dict[str, list[float]]]:
    """The learning rate at every step of every optimizer, by its name."""
    rates: dict[str, list[float]] = {}

    def record(optimizer: torch.optim.Optimizer, *_: object) -> None:
        rates.setdefault(type(optimizer).__name__, []).append(optimizer.param_groups[0]["lr"])

    handle = register_optimizer_step_pre_hook(record)
    yield rates
    handle.remove()


def test_learning_rates_follow_the_cosine(
    prepared: Prepared, tmp_path: Path, learning_rates: dict[str, list[float]]
) -> None:
    train_point(prepared, tmp_path, "learned")
    cosine = [(1 + math.cos(math.pi * step / 100)) / 2 for step in range(100)]
    assert set(learning_rates) == {"Adam", "RowAdam"}
    assert learning_rates["Adam"] == pytest.approx([3e-4 + (3e-3 - 3e-4) * part for part in cosine], rel=1e-9)
    assert learning_rates["RowAdam"] == pytest.approx([1e-3 + (1e-2 - 1e-3) * part for part in cosine], rel=1e-9)


def test_history_steps() -> None:
    assert history_steps(1000, 3) == {10, 100, 1000}
    assert history_steps(1, 20) == {1}
    assert history_steps(3, 20) == {1, 2, 3}
    for n_steps, n_points in itertools.product((7, 100, 12_345), (2, 20)):
        steps = history_steps(n_steps, n_points)
        assert max(steps) == n_steps
        assert min(steps) >= 1
        assert 2 <= len(steps) <= n_points


def test_last_fired_by_hand(tmp_path: Path) -> None:
    d_model = 4
    # Rows along the axes 0, 1, 2, and one that axis 3 is chosen for with an activation of 0; BOS and an outlier along axis 3.
    residuals = torch.zeros(2, 5, d_model)
    residuals[:, 0, 3] = 5.0
    residuals[0, 1, 0] = residuals[0, 2, 1] = residuals[0, 3, 2] = residuals[1, 1, 0] = 5.0
    residuals[0, 4, 3] = 2000.0
    residuals[1, 2] = torch.tensor([-5.0, -5.0, -5.0, -1.0])
    residuals[1, 3, 1] = residuals[1, 4, 1] = 5.0
    cache = write_cache(tmp_path, residuals, torch.zeros(2, 5, dtype=torch.int32))
    assert cache.n_kept == 7
    settings = Training(tokens=7, batch_size=1, lr=1e-9, lr_end=0, table_lr=1e-9, buffer_tokens=100)
    identity = torch.eye(d_model)
    point = Point(k=1, expansion=1, table="none")
    sae = SAE(point, identity.clone(), identity.clone(), torch.zeros(d_model), torch.zeros(d_model))
    expected = [-1] * d_model
    for step, batch in enumerate(training_batches(cache, settings, seed=4), start=1):
        if batch.residuals.max() > 0:
            expected[int(batch.residuals.argmax())] = step
    last_fired = train_sae(sae, cache, cache, settings, seed=4, label="test", at_checkpoint=never).last_fired
    assert last_fired.tolist() == expected
    assert expected[3] == -1
    assert len(set(expected)) == 4

    # In batches of two, the count is that of the tokens up to the end of the batch.
    pairs = settings.model_copy(update={"tokens": 6, "batch_size": 2})
    expected = [-1] * d_model
    for step, batch in enumerate(training_batches(cache, pairs, seed=4), start=1):
        for row in batch.residuals[batch.residuals.max(1).values > 0]:
            expected[int(row.argmax())] = 2 * step
    last_fired = train_sae(sae, cache, cache, pairs, seed=4, label="test", at_checkpoint=never).last_fired
    assert last_fired.tolist() == expected
    assert set(expected) <= {-1, 2, 4, 6}


def test_last_fired_is_written(trained: dict[str, Path]) -> None:
    last_fired = load_last_fired(trained["none"])
    assert (last_fired.shape, last_fired.dtype) == ((64,), torch.int64)
    assert last_fired.max() == 12_800
    assert (last_fired[last_fired >= 0] % 128 == 0).all()


@pytest.mark.parametrize("name", ["none", "relu-none", "gated-none"])
def test_a_loss_that_is_not_finite_leaves_the_last_good_sae(
    prepared: Prepared, cache: ResidualCache, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = SETTINGS.model_copy(update={"lr": 1e30})
    job = Job(layer=LAYER, point=POINTS[name], seed=0)
    train(job, settings, prepared.residuals, prepared.unigrams, tmp_path / "sae", checkpoints=[1])
    failed = load(tmp_path / "sae")
    assert (failed.metadata["failed"]["step"], "training.lr" in failed.metadata["failed"]["why"]) == (2, True)
    assert "layer2" in caplog.text
    # It never saved, so what is left is the SAE at initialisation.
    assert failed.metadata["step"] == 0
    initial = initial_sae(name, prepared, cache)
    torch.testing.assert_close(failed.W_enc, initial.W_enc)
    assert (tmp_path / "sae/checkpoints/step00000001/config.json").is_file()
    assert (tmp_path / "sae/history.csv").read_text().splitlines()[0].startswith("step,tokens")


@pytest.mark.parametrize(
    "name, table_adam",
    [(name, "rows") for name in ("none", "learned", "nounigram", "relu-learned", "gated-learned")]
    + [("learned", "dense")],
)
def test_an_interrupted_training_gives_what_a_whole_one_gives(
    prepared: Prepared, cache: ResidualCache, name: str, table_adam: str, tmp_path: Path, one_thread: None
) -> None:
    heldout = open_residuals(prepared.residuals, "heldout", LAYER)
    settings = SETTINGS.model_copy(update={"table_adam": table_adam})
    whole = initial_sae(name, prepared, cache)
    expected = train_sae(whole, cache, heldout, settings, seed=3, label="test", at_checkpoint=never)

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    # Each goes on from the last step before it that was saved, which every step is.
    for moment in (1, 4, 5, 40):
        saved = Saved(tmp_path / "state.safetensors", {"settings": 1}, every_s=0)
        sae = initial_sae(name, prepared, cache)
        with pytest.raises(KeyboardInterrupt):
            train_sae(sae, cache, heldout, settings, 3, "test", interrupt, checkpoints=[moment], saved=saved)
        found = saved.read()
        assert (None if found is None else found[1].step) == (None if moment == 1 else moment - 1)
    sae = initial_sae(name, prepared, cache)
    resumed = train_sae(
        sae, cache, heldout, settings, 3, "test", never, saved=Saved(tmp_path / "state.safetensors", {"settings": 1}, 5)
    )
    assert resumed.history == expected.history
    assert torch.equal(resumed.last_fired, expected.last_fired)
    for parameter, tensor in whole.state_dict().items():
        assert torch.equal(sae.state_dict()[parameter], tensor), parameter


def test_what_another_training_saved_is_not_gone_on_from(
    prepared: Prepared, cache: ResidualCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state.safetensors"
    trainer = Trainer(initial_sae("none", prepared, cache), SETTINGS)
    trainer.step(next(iter(training_batches(cache, SETTINGS, 3))))
    progress = Progress(1, [], [0.5], [3.0], torch.zeros(trainer.sae.n_features, dtype=torch.int64))
    Saved(path, {"lr": 1}, 0).write(trainer.state(), progress)
    assert Saved(path, {"lr": 2}, 0).read() is None
    assert "state.safetensors: training starts anew (it is of other settings, inputs, code" in caplog.text
    caplog.clear()
    found = Saved(path, {"lr": 1}, 0).read()
    assert found is not None
    assert found[1].losses == [0.5]
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    assert Saved(path, {"lr": 1}, 0).read() is None
    assert "training starts anew" in caplog.text


@pytest.mark.refused("NaN in the state of a training")
def test_numbers_that_are_not_finite_are_not_saved(prepared: Prepared, cache: ResidualCache, tmp_path: Path) -> None:
    trainer = Trainer(initial_sae("none", prepared, cache), SETTINGS)
    with torch.no_grad():
        trainer.sae.b_dec[3] = torch.nan
    saved = Saved(tmp_path / "state.safetensors", {}, 0)
    with pytest.raises(NotFiniteError, match=r"stopped at step 7: sae\.b_dec is not finite"):
        saved.write(trainer.state(), Progress(7, [], [], [], torch.zeros(1, dtype=torch.int64)))
    assert saved.read() is None


@pytest.fixture(scope="module")
def with_checkpoints(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: train_point(prepared, tmp_path_factory.mktemp("saes") / name, name, checkpoints=(1, 10, 37, 100))
        for name in ("learned", "nounigram", "gated-none")
    }


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


def test_an_interrupted_training_leaves_the_files_of_a_whole_one(
    prepared: Prepared, with_checkpoints: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps = (1, 10, 37, 100)
    expected = contents(with_checkpoints["learned"])
    caplog.set_level("INFO")
    interrupt_training(prepared, tmp_path / "sae", 50, steps)
    interrupt_training(prepared, tmp_path / "sae", 30, steps)
    resume(prepared, tmp_path / "sae", steps)
    assert "goes on after step 49 of 100" in caplog.text
    assert "goes on after step 78 of 100" in caplog.text
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
    assert "step00000010 is not there, or damaged: training starts anew" in caplog.text
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


@pytest.mark.refused("infinity in parameters, made by a step")
def test_numbers_that_the_last_step_made_infinite_are_found(prepared: Prepared, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"tokens": 128, "lr": 1e39})
    job = Job(layer=LAYER, point=POINTS["learned"], seed=0)
    train(job, settings, prepared.residuals, prepared.unigrams, tmp_path)
    failed = load(tmp_path).metadata["failed"]
    assert failed["step"] == 1
    assert "is not finite after it; the SAE has diverged" in failed["why"]


@pytest.mark.refused("NaN in residuals")
def test_residuals_that_are_not_finite_are_named_as_the_cause(
    prepared: Prepared, cache: ResidualCache, tmp_path: Path
) -> None:
    damaged = tmp_path / "shard-00000.safetensors"
    columns = load_tensors(cache.shards[0])
    columns["residuals"] = torch.full_like(columns["residuals"], torch.nan)
    save_tensors(damaged, columns, load_metadata(cache.shards[0]))
    broken = replace(cache, shards=[damaged, *cache.shards[1:]])
    heldout = open_residuals(prepared.residuals, "heldout", LAYER)
    sae = initial_sae("none", prepared, cache)
    with pytest.raises(NotFiniteError, match="residuals of its batch are not either: remove the residual cache"):
        train_sae(sae, broken, heldout, SETTINGS, 3, "test", never)


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


def test_training_imports_no_model_library() -> None:
    code = "import sys, tsae.training.train; print(*{'transformers', 'transformer_lens'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.split() == []
