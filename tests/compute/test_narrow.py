"""Products of 8-bit integers choose what float32 products choose."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tsae.compute import narrow, rounding
from tsae.compute.kernels import SelectTopK, encode


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unlike(kind: str, n_tokens: int, d_model: int, n_features: int) -> tuple[Tensor, Tensor, Tensor]:
    """Residuals, encoder and biases of a kind that rounding could mistreat."""
    x, W, bias = normal(n_tokens, d_model), normal(n_features, d_model, seed=1), normal(n_features, seed=2)
    match kind:
        case "a few large columns":
            x[:, 3] *= 1000
            W[:, 5] *= 100
        case "rows of any length":
            x *= normal(n_tokens, 1, seed=3).mul(3).exp()
            W *= normal(n_features, 1, seed=4).mul(3).exp()
        case "mostly zeros":
            x *= normal(n_tokens, d_model, seed=3) > 1.5
            W *= normal(n_features, d_model, seed=4) > 1.5
            x[0], W[1] = 0, 0
        case "a common direction":
            x += 30 * normal(1, d_model, seed=3)
            W += normal(1, d_model, seed=4)
        case "one value":
            x, W = x.sign(), W.sign()
        case "very small":
            x, W, bias = x * 1e-18, W * 1e-18, bias * 0
        case "large biases":
            bias *= 1000
    return x, W, bias


def largest(x: Tensor, W: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    found = narrow.largest(x, W, bias, k)
    assert found is not None
    return found


KINDS = [
    "normal",
    "a few large columns",
    "rows of any length",
    "mostly zeros",
    "a common direction",
    "one value",
    "very small",
    "large biases",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("n_tokens", "d_model", "n_features", "k"),
    [(300, 96, 1500, 16), (1, 7, 40, 40), (257, 64, 5000, 1), (3, 1030, 130, 7)],
)
def test_the_choice_is_that_of_exact_products(kind: str, n_tokens: int, d_model: int, n_features: int, k: int) -> None:
    x, W, bias = unlike(kind, n_tokens, d_model, n_features)
    features, values = largest(x, W, bias, k)
    assert (features.sort(1).values.diff(dim=1) > 0).all()  # each once
    exact = x.double() @ W.double().T + bias
    rounding = 1e-6 * (x.norm(dim=1, keepdim=True) * W.norm(dim=1).max() + bias.abs().max())
    assert ((values - exact.gather(1, features)).abs() <= rounding).all()
    least = exact.gather(1, features).min(1, keepdim=True).values
    assert (exact.topk(k, dim=1).values[:, -1:] - least <= rounding).all()


@pytest.mark.parametrize("kind", KINDS)
def test_errors_of_rounding_are_within_their_bound_and_not_far_from_it(kind: str) -> None:
    x, W, _ = unlike(kind, 400, 200, 2000)
    generator = np.random.default_rng(5)
    of_x, of_W = generator.uniform(-0.5, 0.5, (2, 200)).astype(np.float32)
    columns = rounding.columns_of(x, W)
    tokens = rounding.rounded(x, (1 / columns).numpy(), of_x, of_W, 1)
    features = rounding.rounded(W, columns.numpy(), of_W, of_x, 1)
    written = [
        torch.from_numpy(rows.scales[:, None].astype(float) * (rows.integers - dither))
        for rows, dither in ((tokens, of_x), (features, of_W))
    ]
    error = (written[0] @ written[1].T - x.double() @ W.double().T).abs().numpy()
    radius = rounding.RADIUS * np.hypot(
        tokens.scales[:, None] * features.norms, tokens.norms[:, None] * features.scales
    )
    # Nine standard deviations: of 800 000 pairs none is beyond six.
    deviations = 9 * error / radius
    assert deviations.max() < 6
    assert math.sqrt((deviations**2).mean()) > 0.6
    of_tokens, of_features = rounding.bounds_of(tokens, features)
    bounds = of_tokens[:, :2] @ of_features + of_tokens[:, 2:]
    assert (bounds >= 0.9999 * radius).all()
    # A feature much shorter than others has a wide bound; its pre-activations are small.
    assert kind == "rows of any length" or np.median(bounds / radius) < 1.2


def test_neither_threads_nor_blocks_change_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    x, W, bias = unlike("normal", 600, 96, 1000)
    before = torch.get_num_threads()
    found = []
    try:
        for n_threads, block in ((1, 512), (3, 128), (2, 50), (1, 100)):
            monkeypatch.setattr(narrow, "BLOCK", block)
            torch.set_num_threads(n_threads)
            found.append(largest(x, W, bias, 16))
    finally:
        torch.set_num_threads(before)
    for features, values in found[1:]:
        assert torch.equal(features, found[0][0])
        assert torch.equal(values, found[0][1])


def test_among_equals_each_feature_is_chosen_once() -> None:
    x, W = normal(20, 32), normal(1, 32, seed=1).repeat(500, 1)
    features, values = largest(x, W, torch.zeros(500), 40)
    assert all(len(row) == 40 for row in map(set, features.tolist()))
    assert torch.equal(values, values[:, :1].expand(-1, 40))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("where", range(3))
def test_what_cannot_be_rounded_is_left_to_float32(number: float, where: int) -> None:
    inputs = unlike("normal", 5, 16, narrow.MIN_FEATURES)
    inputs[where].view(-1)[7] = number
    if number != 3e38 or where < 2:
        assert narrow.largest(*inputs, k=4) is None
    x, W, bias = inputs
    pre, indices = encode(x, W, bias, SelectTopK(4))
    exact = (x @ W.T + bias)[indices.rows, indices.features]
    assert torch.equal(pre.isnan(), exact.isnan())
    assert len(pre) == 20


def test_more_features_than_there_are_are_refused() -> None:
    with pytest.raises(ValueError, match="k = 5 of 4 features"):
        narrow.largest(torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4), 5)


@pytest.mark.skipif(not narrow.AVAILABLE, reason="this processor has no 8-bit dot products")
def test_encode_takes_it_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    x, W, bias = unlike("normal", 300, 64, narrow.MIN_FEATURES)
    pre, indices = encode(x, W, bias, SelectTopK(8), torch.ones(64))
    monkeypatch.setattr(narrow, "AVAILABLE", False)
    expected_pre, expected = encode(x, W, bias, SelectTopK(8), torch.ones(64))
    order, expected_order = indices.places.argsort(), expected.places.argsort()
    assert torch.equal(indices.places[order], expected.places[expected_order])
    assert torch.allclose(pre[order], expected_pre[expected_order], rtol=1e-5)
    assert not torch.equal(pre[order], expected_pre[expected_order])  # that is, the first was not computed in float32
