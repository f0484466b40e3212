"""The loop of training: its loss, its penalty, and what it records."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fixtures.training import LAYER, SETTINGS, Prepared, initial_sae, never, write_cache
from torch import Tensor

from tsae.profile.point import Point
from tsae.profile.training import Training
from tsae.residuals.read import ResidualCache, open_residuals
from tsae.sae.architectures.base import Active, Explained
from tsae.sae.architectures.relu import ReLU
from tsae.sae.sae import SAE
from tsae.store.tensors import load_metadata, load_tensors, save_tensors
from tsae.training.batches import training_batches
from tsae.training.loop import history_steps, train_sae
from tsae.training.resume import NotFiniteError

# Every step has the loss of the initial SAE, but for what depends on the step.
FROZEN = SETTINGS.model_copy(update={"tokens": 1280, "lr": 1e-12, "lr_end": 0.0, "table_lr": 1e-12})


def test_history_steps() -> None:
    assert history_steps(1000, 3) == {10, 100, 1000}
    assert history_steps(1, 20) == {1}
    assert history_steps(3, 20) == {1, 2, 3}
    for n_steps, n_points in itertools.product((7, 100, 12_345), (2, 20)):
        steps = history_steps(n_steps, n_points)
        assert max(steps) == n_steps
        assert min(steps) >= 1
        assert 2 <= len(steps) <= n_points


@pytest.mark.parametrize("name", ["none", "learned", "nounigram"])
def test_loss_is_the_mean_squared_error_since_the_last_record(
    prepared: Prepared, train_cache: ResidualCache, name: str
) -> None:
    settings = FROZEN.model_copy(update={"history_points": 2})
    sae = initial_sae(name, prepared, train_cache)
    losses = [
        (sae(*batch) - batch.residuals).square().mean().item() for batch in training_batches(train_cache, settings, 3)
    ]
    heldout = open_residuals(prepared.residuals, "heldout", LAYER)
    history = train_sae(sae, train_cache, heldout, settings, seed=3, label="test", at_checkpoint=never).history
    assert [row["step"] for row in history] == [1, 10]
    assert history[0]["loss"] == pytest.approx(losses[0], rel=1e-5)
    assert history[1]["loss"] == pytest.approx(sum(losses[1:]) / 9, rel=1e-5)


@pytest.mark.parametrize("name", ["relu-none", "relu-learned", "gated-none", "gated-learned"])
def test_the_loss_of_the_other_architectures_has_its_penalty(
    prepared: Prepared, train_cache: ResidualCache, name: str
) -> None:
    settings = FROZEN.model_copy(update={"history_points": 30, "l1_warmup": 0.4})
    sae = initial_sae(name, prepared, train_cache)
    point = sae.point
    assert point.l1 is not None
    expected, active = [], []
    for step, (x, tokens) in enumerate(training_batches(train_cache, settings, 3), start=1):
        table = 0 if sae.W_lookup is None else sae.W_lookup[tokens]
        gate = sae.tokenized_activations(x).detach().relu()
        # At the start, magnitudes are the gate, and the reconstruction from the gate is the reconstruction.
        squared = (gate @ sae.W_dec + sae.b_dec + table - x).square().sum(1).mean().item()
        l1 = (gate * sae.W_dec.norm(dim=1)).sum(1).mean().item()
        total = (2 if point.architecture == "gated" else 1) * squared + min(1, step / 4) * point.l1 * l1
        expected.append(total / x.shape[1])
        active.append((gate > 0).sum(1).float().mean().item())
    heldout = open_residuals(prepared.residuals, "heldout", LAYER)
    history = train_sae(sae, train_cache, heldout, settings, seed=3, label="test", at_checkpoint=never).history
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
    prepared: Prepared,
    train_cache: ResidualCache,
    monkeypatch: pytest.MonkeyPatch,
    l1_warmup: float,
    expected: list[float],
) -> None:
    penalties = []
    extra_loss = ReLU.extra_loss

    def record(self: ReLU, active: Active, W_dec: Tensor, explained: Explained, penalty: float) -> Tensor:
        penalties.append(penalty)
        return extra_loss(self, active, W_dec, explained, penalty)

    monkeypatch.setattr(ReLU, "extra_loss", record)
    sae = initial_sae("relu-learned", prepared, train_cache)
    sae.point = sae.point.model_copy(update={"l1": 2.0})
    settings = SETTINGS.model_copy(update={"tokens": 1280, "l1_warmup": l1_warmup})
    train_sae(sae, train_cache, train_cache, settings, seed=3, label="test", at_checkpoint=never)
    assert penalties == pytest.approx(expected, rel=1e-12)


def test_a_larger_penalty_leaves_fewer_active_features(prepared: Prepared, train_cache: ResidualCache) -> None:
    heldout = open_residuals(prepared.residuals, "heldout", LAYER)
    for name in ("relu-learned", "gated-learned"):
        counts = []
        for l1 in (0.1, 2.0):
            sae = initial_sae(name, prepared, train_cache)
            sae.point = sae.point.model_copy(update={"l1": l1})
            history = train_sae(sae, train_cache, heldout, SETTINGS, seed=3, label="test", at_checkpoint=never).history
            counts.append(history[-1]["l0"])
        assert counts[1] < 0.7 * counts[0]


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


@pytest.mark.refused("NaN in residuals")
def test_residuals_that_are_not_finite_are_named_as_the_cause(
    prepared: Prepared, train_cache: ResidualCache, tmp_path: Path
) -> None:
    damaged = tmp_path / "shard-00000.safetensors"
    columns = load_tensors(train_cache.shards[0])
    columns["residuals"] = torch.full_like(columns["residuals"], torch.nan)
    save_tensors(damaged, columns, load_metadata(train_cache.shards[0]))
    broken = replace(train_cache, shards=[damaged, *train_cache.shards[1:]])
    heldout = open_residuals(prepared.residuals, "heldout", LAYER)
    sae = initial_sae("none", prepared, train_cache)
    with pytest.raises(NotFiniteError, match="residuals of its batch are not either: remove the residual cache"):
        train_sae(sae, broken, heldout, SETTINGS, 3, "test", never)
