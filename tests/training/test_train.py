"""Training an SAE: what moves, what stays, and what is written."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from fixtures import ROOT
from fixtures.training import LAYER, POINTS, SETTINGS, Prepared, initial_sae, read_history, train_point
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tsae.profile import config
from tsae.profile.point import Point
from tsae.profile.sweep import Job
from tsae.profile.training import Training
from tsae.residuals.read import ResidualCache, open_residuals
from tsae.residuals.unigrams import load_unigrams
from tsae.sae.checkpoint import load, load_last_fired
from tsae.store import files
from tsae.store.tensors import load_tensors
from tsae.training.loop import history_steps
from tsae.training.train import FORMAT, train


def initial_table(prepared: Prepared, cache: ResidualCache) -> Tensor:
    return 0.5 * (load_unigrams(prepared.unigrams) / cache.scale)


def test_less_than_one_batch_is_refused() -> None:
    data = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    config.parse(data)
    data["training"]["tokens"] = data["training"]["batch_size"] - 1
    with pytest.raises(ValueError, match=r"training\.tokens"):
        config.parse(data)


def test_b_dec_starts_at_the_mean_of_what_the_table_leaves(
    prepared: Prepared, train_cache: ResidualCache, tmp_path: Path
) -> None:
    # At a learning rate of nothing a trained SAE is the initial one.
    settings = SETTINGS.model_copy(update={"tokens": 128, "lr": 1e-30, "lr_end": 0.0, "table_lr": 1e-30})
    for point in POINTS.values():
        train(Job(layer=LAYER, point=point, seed=0), settings, prepared.residuals, prepared.unigrams, tmp_path)
        b_dec = load_tensors(tmp_path / "sae.safetensors")["b_dec"]
        rows = train_cache.kept_rows()
        left = rows.residuals / train_cache.scale
        if point.table != "none":
            left = left - initial_table(prepared, train_cache)[rows.tokens.long()]
        torch.testing.assert_close(b_dec, left.mean(0), rtol=1e-4, atol=1e-4)


def seen_in_training(cache: ResidualCache) -> Tensor:
    return cache.kept_rows().tokens.bincount(minlength=512) > 0


@pytest.mark.parametrize("name", ["learned", "relu-learned", "gated-learned", "nounigram"])
def test_learned_rows_of_seen_tokens_move_and_no_others(
    prepared: Prepared, train_cache: ResidualCache, trained: dict[str, Path], name: str
) -> None:
    table = load_tensors(trained[name] / "sae.safetensors")["W_lookup"]
    start = initial_table(prepared, train_cache)
    seen = seen_in_training(train_cache)
    assert 10 < seen.sum() < 502
    assert torch.equal((table != start).any(1), seen)
    assert torch.equal(table[~seen], start[~seen])
    assert (table - start)[seen].norm(dim=1).min() > 1e-3


@pytest.mark.parametrize("name", ["fixed", "relu-fixed"])
def test_fixed_tables_stay(prepared: Prepared, train_cache: ResidualCache, trained: dict[str, Path], name: str) -> None:
    tensors = load_tensors(trained[name] / "sae.safetensors")
    assert torch.equal(tensors["W_lookup"], initial_table(prepared, train_cache))
    start = initial_sae(name, prepared, train_cache)
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
    prepared: Prepared, train_cache: ResidualCache, trained: dict[str, Path]
) -> None:
    directions = load_tensors(trained["nounigram"] / "sae.safetensors")["unigram_directions"]
    unigrams = load_unigrams(prepared.unigrams)
    centred = unigrams - train_cache.token_counts(len(unigrams)) / train_cache.n_kept @ unigrams
    torch.testing.assert_close(directions, centred / centred.norm(dim=1, keepdim=True))


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
    penalised = POINTS[name].penalty > 0
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


def test_a_topk_has_as_many_active_features_as_it_may(trained: dict[str, Path]) -> None:
    for name in ("none", "learned"):
        assert all(3.5 < row["l0"] <= 4 for row in read_history(trained[name]))


def test_config_tells_how_the_sae_was_made(
    prepared: Prepared, train_cache: ResidualCache, trained: dict[str, Path]
) -> None:
    metadata = json.loads((trained["learned"] / "config.json").read_text())
    assert metadata["hook_point"] == "blocks.2.hook_resid_pre"
    assert (metadata["seed"], metadata["layer"], metadata["scale"]) == (0, LAYER, train_cache.scale)
    assert Point(**metadata["point"]) == POINTS["learned"]
    assert Training(**metadata["training"]) == SETTINGS
    assert (metadata["n_features"], metadata["d_model"]) == (64, 32)
    assert (metadata["step"], metadata["tokens_trained"], metadata["format"]) == (100, 12_800, FORMAT)
    assert metadata["final"] == read_history(trained["learned"])[-1]
    assert metadata["residuals"]["tokens"]["train"]["sha256"] == files.sha256(prepared.train_tokens)
    assert metadata["residuals"]["model"] == json.loads((prepared.model / "source.json").read_text())
    assert (metadata["residuals"]["max_norm"], metadata["residuals"]["kept"]) == (
        train_cache.max_norm,
        train_cache.n_kept,
    )
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


def test_last_fired_is_written(trained: dict[str, Path]) -> None:
    last_fired = load_last_fired(trained["none"])
    assert (last_fired.shape, last_fired.dtype) == ((64,), torch.int64)
    assert last_fired.max() == 12_800
    assert (last_fired[last_fired >= 0] % 128 == 0).all()


def test_training_imports_no_model_library() -> None:
    code = "import sys, tsae.training.train; print(*{'transformers', 'transformer_lens'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.split() == []
