import copy
import math
import re
from typing import Any

import pytest
import torch
from fixtures.architectures import B_ENC, EXPLAINED, PENALTY, TARGET, W_DEC, W_ENC, D, F, N, X, leaves, normal, spread

from tsae.compute import kernels
from tsae.profile.architectures import ARCHITECTURES, about, label_of, read_about
from tsae.profile.point import Point
from tsae.profile.sweep import Grid
from tsae.sae.architectures import make_architecture
from tsae.sae.architectures.base import Architecture
from tsae.sae.architectures.gated import Gated
from tsae.sae.architectures.relu import ReLU
from tsae.sae.architectures.topk import TopK


@pytest.fixture(params=[0.0, 1.0], ids=["dense product", "sum of rows"], autouse=True)
def dense_share(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here runs with each way of computing a product."""
    monkeypatch.setattr(kernels, "DENSE_SHARE", request.param)


def make_relu() -> ReLU:
    return ReLU(Point(architecture="relu", l1=1, expansion=F / D, table="none"), F)


def make_gated() -> Gated:
    gated = Gated(Point(architecture="gated", l1=1, expansion=F / D, table="none"), F).double()
    gated.r_mag.data.copy_(normal(F, seed=5) / 2)
    gated.b_mag.data.copy_(normal(F, seed=6))
    return gated


def make_topk(relu: bool = True) -> TopK:
    return TopK(Point(k=F // 2, expansion=F / D, table="none", topk_relu=relu), F)


def gates_by_hand() -> list[list[float]]:
    """x W_enc^T + b_enc in plain loops."""
    return [
        [
            sum(w * entry for w, entry in zip(weights, x, strict=True)) + bias
            for weights, bias in zip(W_ENC.tolist(), B_ENC.tolist(), strict=True)
        ]
        for x in X.tolist()
    ]


def lengths_by_hand() -> list[float]:
    return [math.sqrt(sum(entry**2 for entry in row)) for row in W_DEC.tolist()]


def test_every_architecture_of_the_sweep_is_made_by_its_module() -> None:
    offered = Grid.model_json_schema()["properties"]["architecture"]["enum"]
    assert offered == list(ARCHITECTURES)
    for name, cls in {"topk": TopK, "relu": ReLU, "gated": Gated}.items():
        sparsity = {about(name).sparsity: 1}
        point = Point.model_validate({"architecture": name, "expansion": 2, "table": "none"} | sparsity)
        assert isinstance(make_architecture(point, F), cls)
    for told in (lambda a: a.order, lambda a: a.label):
        assert len({told(found) for found in ARCHITECTURES.values()}) == len(ARCHITECTURES)


def test_an_unknown_architecture_is_named() -> None:
    assert label_of("gated") == "gated"
    with pytest.raises(ValueError, match=f"unknown architecture 'topp'; there are {', '.join(ARCHITECTURES)}, see"):
        label_of("topp")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, "label: this key is required"),
        ({"colour": "red"}, "colour: unknown key"),
        ({"saelens": {"architecture": "x", "name": "x"}}, "saelens.name: unknown key"),
        ({"sparsity": "l0"}, "sparsity: Input should be 'k', 'l1' or 'l0_penalty' (got 'l0')"),
    ],
)
def test_what_an_architecture_forgets_to_say_is_named(change: dict[str, Any], message: str) -> None:
    complete = {"class": "New", "order": 99, "sparsity": "k", "label": "new", "description": "new"}
    assert read_about("new", complete).class_name == "New"
    literal = {key: value for key, value in (complete | change).items() if value is not None}
    with pytest.raises(ValueError, match=rf"sae/architectures/new\.py: ABOUT: .*{re.escape(message)}"):
        read_about("new", literal)


@pytest.mark.parametrize("relu", [True, False])
def test_topk_by_hand(relu: bool) -> None:
    active = make_topk(relu)(X, W_ENC, B_ENC)
    for found, gates in zip(spread(active), gates_by_hand(), strict=True):
        kept = sorted(range(F), key=lambda i: gates[i])[-F // 2 :]
        expected = [(max(gates[i], 0) if relu else gates[i]) if i in kept else 0.0 for i in range(F)]
        assert found == pytest.approx(expected, abs=1e-12)
    assert (active.pre < 0).any()
    assert (active.values < 0).any() == (not relu)


def test_relu_by_hand() -> None:
    active = make_relu()(X, W_ENC, B_ENC)
    for found, gates in zip(spread(active), gates_by_hand(), strict=True):
        assert found == pytest.approx([max(gate, 0.0) for gate in gates], abs=1e-12)
    assert (active.values > 0).all()


def test_gated_by_hand() -> None:
    gated = make_gated()
    active = gated(X, W_ENC, B_ENC)
    r_mag, b_mag, b_enc = gated.r_mag.tolist(), gated.b_mag.tolist(), B_ENC.tolist()
    shut = closed = 0
    for found, gates in zip(spread(active), gates_by_hand(), strict=True):
        expected = []
        for i, gate in enumerate(gates):
            magnitude = math.exp(r_mag[i]) * (gate - b_enc[i]) + b_mag[i]
            expected.append(max(magnitude, 0.0) if gate > 0 else 0.0)
            shut += gate <= 0 < magnitude
            closed += magnitude <= 0 < gate
        assert found == pytest.approx(expected, abs=1e-12)
    # A feature is off if its gate is shut, and if its magnitude is negative.
    assert min(shut, closed) > 0
    assert (active.pre > 0).all()
    assert (active.values == 0).sum() == closed


def test_gated_starts_as_a_relu_where_the_encoder_has_no_bias() -> None:
    gated = Gated(Point(architecture="gated", l1=1, expansion=F / D, table="none"), F)
    found, expected = (sae(X, W_ENC, torch.zeros_like(B_ENC)) for sae in (gated, make_relu()))
    torch.testing.assert_close(found.values.detach(), expected.values)
    torch.testing.assert_close(found.pre.detach(), expected.pre)
    assert torch.equal(found.features, expected.features)
    assert torch.equal(found.rows, expected.rows)


def test_topk_adds_nothing_to_the_loss() -> None:
    topk: Architecture = make_topk()
    assert topk.extra_loss(topk(X, W_ENC, B_ENC), W_DEC, EXPLAINED, PENALTY) is None


def l1_by_hand() -> float:
    """Mean over tokens of the L1 norm of ReLU(x W_enc^T + b_enc), weighted by the length of decoder rows."""
    lengths = lengths_by_hand()
    return (
        sum(max(gate, 0.0) * length for gates in gates_by_hand() for gate, length in zip(gates, lengths, strict=True))
        / N
    )


def test_relus_penalty_by_hand() -> None:
    relu = make_relu()
    active = relu(X, W_ENC, B_ENC)
    for penalty in (PENALTY, 2 * PENALTY, 0.0):
        found = relu.extra_loss(active, W_DEC, EXPLAINED, penalty).item()
        assert found == pytest.approx(penalty * l1_by_hand(), rel=1e-12)


def test_relus_penalty_is_not_escaped_by_growing_rows() -> None:
    relu = make_relu()
    active = relu(X, W_ENC, B_ENC)
    scales = torch.linspace(0.1, 3, F, dtype=torch.float64)
    moved = active._replace(values=active.values / scales[active.features])
    torch.testing.assert_close(
        relu.extra_loss(moved, scales[:, None] * W_DEC, EXPLAINED, PENALTY),
        relu.extra_loss(active, W_DEC, EXPLAINED, PENALTY),
    )


def test_gateds_loss_by_hand() -> None:
    gated = make_gated()
    found = gated.extra_loss(gated(X, W_ENC, B_ENC), W_DEC, EXPLAINED, PENALTY).item()
    squared = 0.0
    for gates, target in zip(gates_by_hand(), TARGET.tolist(), strict=True):
        for i in range(D):
            reconstruction = sum(max(gate, 0.0) * row[i] for gate, row in zip(gates, W_DEC.tolist(), strict=True))
            squared += (reconstruction - target[i]) ** 2
    assert found == pytest.approx(PENALTY * l1_by_hand() + squared / N, rel=1e-12)


def test_gradients_of_relus_whole_loss() -> None:
    x, W_enc, b_enc, W_dec = leaves(X, W_ENC, B_ENC, W_DEC)
    relu = make_relu()
    active = relu(x, W_enc, b_enc)
    x_hat = kernels.decode(active.values, active.indices, W_dec)
    loss = (x_hat - TARGET).square().sum(1).mean() + relu.extra_loss(active, W_dec, EXPLAINED, PENALTY)

    twins = leaves(X, W_ENC, B_ENC, W_DEC)
    acts = (twins[0] @ twins[1].T + twins[2]).relu()
    twin = (acts @ twins[3] - TARGET).square().sum(1).mean() + PENALTY * (acts * twins[3].norm(dim=1)).sum(1).mean()
    torch.testing.assert_close(
        torch.autograd.grad(loss, (x, W_enc, b_enc, W_dec)), torch.autograd.grad(twin, twins), rtol=1e-10, atol=1e-12
    )


def test_gradients_of_gateds_whole_loss() -> None:
    x, W_enc, b_enc, W_dec = leaves(X, W_ENC, B_ENC, W_DEC)
    gated = make_gated()
    active = gated(x, W_enc, b_enc)
    x_hat = kernels.decode(active.values, active.indices, W_dec)
    loss = (x_hat - TARGET).square().sum(1).mean() + gated.extra_loss(active, W_dec, EXPLAINED, PENALTY)

    twins = leaves(X, W_ENC, B_ENC, W_DEC, gated.r_mag, gated.b_mag)
    centred = twins[0] @ twins[1].T
    gate = centred + twins[2]
    acts = (gate > 0) * (twins[4].exp() * centred + twins[5]).relu()
    twin = (
        (acts @ twins[3] - TARGET).square().sum(1).mean()
        + PENALTY * (gate.relu() * W_DEC.norm(dim=1)).sum(1).mean()
        + (gate.relu() @ W_DEC - TARGET).square().sum(1).mean()
    )
    torch.testing.assert_close(
        torch.autograd.grad(loss, (x, W_enc, b_enc, W_dec, gated.r_mag, gated.b_mag)),
        torch.autograd.grad(twin, twins),
        rtol=1e-10,
        atol=1e-12,
    )


def test_gateds_extra_loss_trains_the_gate_alone() -> None:
    W_enc, b_enc, W_dec = leaves(W_ENC, B_ENC, W_DEC)
    gated = make_gated()
    gated.extra_loss(gated(X, W_enc, b_enc), W_dec, EXPLAINED, PENALTY).backward()
    assert W_enc.grad is not None
    assert b_enc.grad is not None
    assert W_enc.grad.any()
    assert b_enc.grad.any()
    for part in (W_dec, gated.r_mag, gated.b_mag):
        assert part.grad is None


def test_gateds_reconstruction_trains_the_gates_weights_but_not_its_bias() -> None:
    W_enc, b_enc, W_dec = leaves(W_ENC, B_ENC, W_DEC)
    gated = make_gated()
    active = gated(X, W_enc, b_enc)
    kernels.decode(active.values, active.indices, W_dec).square().sum().backward()
    for part in (W_enc, W_dec, gated.r_mag, gated.b_mag):
        assert part.grad is not None
        assert part.grad.any()
    assert b_enc.grad is not None
    assert b_enc.grad.abs().max() < 1e-10


@pytest.mark.parametrize("architecture", [make_topk(), make_relu(), make_gated()], ids=["topk", "relu", "gated"])
def test_rescaled_activations_are_those_of_longer_residuals(architecture: Architecture) -> None:
    architecture = copy.deepcopy(architecture)
    before = architecture(X, W_ENC, B_ENC)
    architecture.rescale_(2.5)
    after = architecture(2.5 * X, W_ENC, 2.5 * B_ENC)
    torch.testing.assert_close(after.values, 2.5 * before.values)
    torch.testing.assert_close(after.pre, 2.5 * before.pre)
    assert torch.equal(after.features, before.features)
    assert torch.equal(after.rows, before.rows)


def test_only_b_mag_is_rescaled() -> None:
    gated = make_gated()
    gated.rescale_(2.5)
    assert torch.equal(gated.b_mag, 2.5 * make_gated().b_mag)
    assert torch.equal(gated.r_mag, make_gated().r_mag)
