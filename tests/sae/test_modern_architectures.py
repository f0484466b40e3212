"""BatchTopK, Matryoshka, AuxK and JumpReLU, by hand and against dense twins."""

import math

import pytest
import torch
from fixtures.architectures import (
    B_ENC,
    EXPLAINED,
    PENALTY,
    TARGET,
    W_DEC,
    W_ENC,
    D,
    F,
    N,
    X,
    explaining,
    leaves,
    normal,
    spread,
)

from tsae.compute import kernels
from tsae.profile.point import Point
from tsae.sae.architectures.auxk import COEFFICIENT, DEAD_AFTER, AuxK
from tsae.sae.architectures.base import Architecture
from tsae.sae.architectures.batchtopk import BATCHES, BatchTopK
from tsae.sae.architectures.jumprelu import BANDWIDTH, JumpReLU
from tsae.sae.architectures.matryoshka import Matryoshka

K = 3
PRE = X @ W_ENC.T + B_ENC


@pytest.fixture(params=[0.0, 1.0], ids=["dense product", "sum of rows"], autouse=True)
def dense_share(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here runs with each way of computing a product."""
    monkeypatch.setattr(kernels, "DENSE_SHARE", request.param)


def point(architecture: str) -> Point:
    sparsity = {"l0_penalty": 1} if architecture == "jumprelu" else {"k": K}
    return Point.model_validate({"architecture": architecture, "expansion": F / D, "table": "none"} | sparsity)


def make_batchtopk() -> BatchTopK:
    return BatchTopK(point("batchtopk"), F).double()


def make_matryoshka() -> Matryoshka:
    return Matryoshka(point("matryoshka"), F).double()


def make_auxk() -> AuxK:
    return AuxK(point("auxk"), F).double()


def make_jumprelu() -> JumpReLU:
    made = JumpReLU(point("jumprelu"), F).double()
    made.log_threshold.data.copy_((normal(F, seed=7) / 4).abs().log())
    return made


def test_batchtopk_keeps_the_largest_of_the_batch() -> None:
    active = make_batchtopk()(X, W_ENC, B_ENC)
    kept = sorted(PRE.flatten().tolist())[-K * N :]
    assert kept[0] > 0
    expected = [[value if value >= kept[0] else 0.0 for value in row] for row in PRE.tolist()]
    assert [pytest.approx(row, abs=1e-12) for row in expected] == spread(active)
    # Tokens share the features unequally.
    assert len(set(active.rows.bincount(minlength=N).tolist())) > 1


def test_batchtopk_keeps_no_negative_pre_activation() -> None:
    negative = B_ENC - 100
    negative[0] = 0.0
    active = make_batchtopk()(X, W_ENC, negative)
    assert set(active.features.tolist()) == {0}
    assert (active.values > 0).all()
    assert len(active.values) == int((X @ W_ENC[0] > 0).sum()) < K * N


def test_batchtopk_learns_a_threshold_and_uses_it() -> None:
    batchtopk, smallest = make_batchtopk(), []
    for shift in (0.0, 0.3, -0.2):
        smallest.append(batchtopk(X, W_ENC, B_ENC + shift).values.min().item())
    assert batchtopk.threshold.item() == pytest.approx(sum(smallest) / 3, rel=1e-12)
    batchtopk.eval()
    active = batchtopk(X, W_ENC, B_ENC)
    expected = [[value if value > sum(smallest) / 3 else 0.0 for value in row] for row in PRE.tolist()]
    assert [pytest.approx(row, abs=1e-12) for row in expected] == spread(active)
    assert batchtopk.n_batches == 3
    # A token's features do not depend on the tokens beside it.
    alone = batchtopk(X[:1], W_ENC, B_ENC)
    assert alone.features.tolist() == active.features[active.rows == 0].tolist()
    batchtopk.n_batches.fill_(10 * BATCHES)
    before, found = batchtopk.threshold.item(), batchtopk.train()(X, W_ENC, B_ENC + 5).values.min().item()
    assert batchtopk.threshold.item() == pytest.approx(before + (found - before) / BATCHES, rel=1e-12)


def test_matryoshkas_nested_loss_and_its_gradients() -> None:
    matryoshka = make_matryoshka()
    assert matryoshka.widths == [1, 2, 4, 8]
    W_enc, b_enc, W_dec, b_dec, rows = leaves(W_ENC, B_ENC, W_DEC, normal(D, seed=8), normal(N, D, seed=9))
    active = matryoshka(X, W_enc, b_enc)
    explained = EXPLAINED._replace(b_dec=b_dec, token_biases=rows)
    loss = matryoshka.extra_loss(active, W_dec, explained, 0.0)

    twins = leaves(W_ENC, B_ENC, W_DEC, normal(D, seed=8), normal(N, D, seed=9))
    pre = X @ twins[0].T + twins[1]
    acts = pre * (pre >= PRE.flatten().topk(K * N).values[-1] - 1e-9)
    nested = [acts[:, :width] @ twins[2][:width] + twins[3] + twins[4] for width in (1, 2, 4, 8)]
    twin = torch.stack([(x_hat - TARGET).square().sum(1).mean() for x_hat in nested]).sum()
    torch.testing.assert_close(loss, twin, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(loss, (W_enc, b_enc, W_dec, b_dec, rows)),
        torch.autograd.grad(twin, twins),
        rtol=1e-10,
        atol=1e-12,
    )


def test_auxk_lets_dead_features_explain_the_error() -> None:
    auxk, dead = make_auxk(), [1, 4, 5, 9, 12]
    W_enc, W_dec = leaves(W_ENC, W_DEC)
    never = B_ENC.clone()
    never[dead] = -100.0
    active = auxk(X, W_ENC, never)
    assert auxk.extra_loss(active, W_dec, EXPLAINED, 0.0) is None
    fired = active.features[active.values > 0].unique()
    assert (auxk.silent[fired] == 0).all()
    assert auxk.silent[dead].tolist() == [N] * len(dead)

    auxk.silent[dead] = DEAD_AFTER
    x_hat = normal(N, D, seed=8)
    explained = explaining(TARGET, lambda features: (X @ W_enc.T + B_ENC)[:, features])._replace(x_hat=x_hat)
    loss = auxk.extra_loss(active, W_dec, explained, 0.0)
    assert loss is not None
    # The three dead features, of width 6, with the largest pre-activations at each token.
    total = 0.0
    for row, error in zip(PRE.tolist(), (TARGET - x_hat).tolist(), strict=True):
        best = sorted(dead, key=lambda feature: row[feature])[-D // 2 :]
        for i in range(D):
            total += (sum(max(row[f], 0.0) * W_DEC[f, i].item() for f in best) - error[i]) ** 2
    assert loss.item() == pytest.approx(COEFFICIENT * total / N, rel=1e-12)
    # It reaches the encoder of dead features, and of no other.
    loss.backward()
    for part in (W_enc, W_dec):
        assert part.grad is not None
        assert set(part.grad.abs().sum(1).nonzero().flatten().tolist()) == set(dead)


def test_auxk_counts_for_less_with_few_dead_features() -> None:
    auxk = make_auxk()
    active = auxk(X, W_ENC, B_ENC)
    explained = explaining(TARGET, lambda features: torch.zeros(N, len(features), dtype=torch.float64))
    for n_dead, share in ((1, 1 / 3), (2, 2 / 3), (3, 1.0), (6, 1.0)):
        auxk.silent.zero_()
        silent = [feature for feature in range(F) if feature not in set(active.features[active.values > 0].tolist())]
        chosen = (silent + list(range(F)))[:n_dead]
        auxk.silent[chosen] = DEAD_AFTER + N
        values = active.values.masked_fill(torch.isin(active.features, torch.tensor(chosen)), 0.0)
        loss = auxk.extra_loss(active._replace(values=values), W_DEC, explained, 0.0)
        assert loss is not None
        assert loss.item() == pytest.approx(COEFFICIENT * share * TARGET.square().sum(1).mean().item(), rel=1e-12)


def test_jumprelu_by_hand() -> None:
    jumprelu = make_jumprelu().eval()
    thresholds = jumprelu.log_threshold.exp().tolist()
    active = jumprelu(X, W_ENC, B_ENC)
    for found, pre in zip(spread(active), PRE.tolist(), strict=True):
        expected = [value if value > threshold else 0.0 for value, threshold in zip(pre, thresholds, strict=True)]
        assert found == pytest.approx(expected, abs=1e-12)
    assert (active.values != 0).all()
    # In training features just below their threshold are there too, at zero.
    training = jumprelu.train()(X, W_ENC, B_ENC)
    assert spread(training) == spread(active)
    assert len(training.values) >= len(active.values)


def test_jumprelus_penalty_is_on_the_number_of_active_features() -> None:
    jumprelu = make_jumprelu()
    n_active = int((jumprelu.log_threshold.exp() < PRE).sum())
    loss = jumprelu.extra_loss(jumprelu(X, W_ENC, B_ENC), W_DEC, EXPLAINED, PENALTY)
    assert loss.item() == pytest.approx(PENALTY * n_active / N, rel=1e-12)


def test_gradients_of_jumprelus_whole_loss() -> None:
    jumprelu = make_jumprelu()
    # Thresholds close to the pre-activations of some token, above and below.
    jumprelu.log_threshold.data.copy_((PRE.abs()[0] + BANDWIDTH * torch.linspace(-1, 1, F)).clamp(min=1e-3).log())
    W_enc, b_enc, W_dec = leaves(W_ENC, B_ENC, W_DEC)
    active = jumprelu(X, W_enc, b_enc)
    x_hat = kernels.decode(active.values, active.indices, W_dec)
    loss = (x_hat - TARGET).square().sum(1).mean() + jumprelu.extra_loss(active, W_dec, EXPLAINED, PENALTY)
    found = torch.autograd.grad(loss, (W_enc, b_enc, W_dec, jumprelu.log_threshold))

    # The paper's pseudo-derivatives, in dense tensors: -threshold K / bandwidth of an activation, -K / bandwidth of the count.
    W_enc, b_enc, W_dec = leaves(W_ENC, B_ENC, W_DEC)
    pre, thresholds = X @ W_enc.T + b_enc, jumprelu.log_threshold.detach().exp()
    on, near = (pre > thresholds).double(), ((pre - thresholds).abs() < BANDWIDTH / 2).double() / BANDWIDTH
    assert near.sum() > 0 and (near * on).any() and (near * (1 - on)).any()
    acts = pre * on
    twin = (acts @ W_dec - TARGET).square().sum(1).mean()
    acts.retain_grad()
    expected = torch.autograd.grad(twin, (W_enc, b_enc, W_dec), retain_graph=True)
    (for_acts,) = torch.autograd.grad(twin, acts)
    for_thresholds = -(near * (thresholds * for_acts + PENALTY / N)).sum(0)
    torch.testing.assert_close(found, (*expected, for_thresholds * thresholds), rtol=1e-10, atol=1e-12)


def test_the_gradient_of_a_threshold_is_that_of_the_expected_loss() -> None:
    """Pre-activations spread evenly around a threshold: the mean over them has a derivative, which the kernel estimates."""
    n, threshold, penalty, step = 200_001, 0.4, 2.0, 1e-3
    pre = torch.linspace(threshold - 0.3, threshold + 0.3, n, dtype=torch.float64)

    def mean_loss(at: float) -> float:
        return ((pre * (pre > at) - 1.0).square() + penalty * (pre > at)).mean().item()

    jumprelu = JumpReLU(point("jumprelu"), 1).double()
    jumprelu.log_threshold.data.fill_(math.log(threshold))
    active = jumprelu(pre[:, None], torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    x_hat = kernels.decode(active.values, active.indices, torch.ones(1, 1, dtype=torch.float64))
    loss = (x_hat - 1.0).square().sum(1).mean() + jumprelu.extra_loss(active, W_DEC, EXPLAINED, penalty)
    (found,) = torch.autograd.grad(loss, jumprelu.log_threshold)
    expected = threshold * (mean_loss(threshold + step) - mean_loss(threshold - step)) / (2 * step)
    assert found.item() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("make", [make_batchtopk, make_matryoshka, make_auxk, make_jumprelu])
def test_rescaled_activations_are_those_of_longer_residuals(make: type) -> None:
    architecture: Architecture = make()
    architecture(X, W_ENC, B_ENC)  # a batch of training, for a threshold
    architecture.eval()  # type: ignore[attr-defined]
    before = architecture(X, W_ENC, B_ENC)
    # A power of two changes no rounding: the least activation of the batch is as large as the threshold.
    architecture.rescale_(4)
    after = architecture(4 * X, W_ENC, 4 * B_ENC)
    assert len(before.values)
    torch.testing.assert_close(after.values, 4 * before.values)
    assert torch.equal(after.features, before.features)
    assert torch.equal(after.rows, before.rows)


@pytest.mark.parametrize("make", [make_batchtopk, make_matryoshka, make_auxk, make_jumprelu])
def test_saelens_weights_are_thresholds(make: type) -> None:
    architecture = make().eval()
    if isinstance(architecture, AuxK):
        assert architecture.saelens_weights(F) == {}
        return
    ((name, thresholds),) = architecture.saelens_weights(F).items()
    assert (name, thresholds.shape) == ("threshold", (F,))
