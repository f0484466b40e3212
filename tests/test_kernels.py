from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tsae.kernels import decode, dense_decode, dense_encode_topk, encode_topk, group_by_feature

N, D, F = 40, 12, 30
CASES = ["random", "duplicate rows", "ties", "silent features", "negative"]
# Relative, in the Frobenius norm.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


class Inputs(NamedTuple):
    x: Tensor
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    k: int


def make_inputs(case: str, dtype: torch.dtype) -> Inputs:
    generator = torch.Generator().manual_seed(CASES.index(case))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    x, W_enc, b_enc, W_dec, b_dec = normal(N, D), normal(F, D), normal(F), normal(F, D), normal(D)
    k = 5
    match case:
        case "duplicate rows":
            x = x[:4].repeat(N // 4, 1)
        case "ties":
            # Small integers, so that every order of summation gives the same number.
            x, W_enc, b_enc, b_dec = (part.round() for part in (x, W_enc, b_enc, b_dec))
            W_enc[F // 2 :], b_enc[F // 2 :] = W_enc[: F // 2], b_enc[: F // 2]
        case "silent features":
            b_enc[::2] = -1e3
        case "negative":
            k = F - 3
    return Inputs(x, W_enc, b_enc, W_dec, b_dec, k)


def relative_error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    assert expected.norm() > 0
    return ((found - expected).norm() / expected.norm()).item()


def spread(values: Tensor, indices: Tensor) -> Tensor:
    """(N, F), so that the order of the active features does not matter."""
    return torch.zeros(len(values), F, dtype=values.dtype).scatter_add(1, indices, values)


def run(inputs: Inputs, relu: bool, fast: bool, auxiliary: bool) -> tuple[dict[str, Tensor], Tensor]:
    x, W_enc, b_enc, W_dec, b_dec = (part.clone().requires_grad_() for part in inputs[:5])
    values, indices = (encode_topk if fast else dense_encode_topk)(x - b_dec, W_enc, b_enc, inputs.k, relu)
    values.retain_grad()
    x_hat = (decode if fast else dense_decode)(values, indices, W_dec) + b_dec
    loss = (x_hat - x.detach()).square().sum(1).mean()
    if auxiliary:
        # Reaches the encoder through the values alone.
        loss = loss + (values * torch.linspace(-1, 1, F, dtype=x.dtype)[indices]).sum() + values.square().mean()
    loss.backward()
    gradients = {
        name: part.grad
        for name, part in {"x": x, "W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}.items()
    }
    assert values.grad is not None
    found = {"values": spread(values, indices), "x_hat": x_hat, "values' gradient": spread(values.grad, indices)}
    return {name: part.detach() for name, part in (gradients | found).items() if part is not None}, indices


@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_the_dense_twins(case: str, dtype: torch.dtype, relu: bool, auxiliary: bool) -> None:
    inputs = make_inputs(case, dtype)
    found, indices = run(inputs, relu, fast=True, auxiliary=auxiliary)
    expected, _ = run(inputs, relu, fast=False, auxiliary=auxiliary)
    assert indices.shape == (N, inputs.k)
    assert (
        set(found) == set(expected) == {"x", "W_enc", "b_enc", "W_dec", "b_dec", "values", "x_hat", "values' gradient"}
    )
    errors = {name: relative_error(found[name], expected[name]) for name in expected}
    assert max(errors.values()) <= TOLERANCE[dtype], errors
    assert {part.dtype for part in found.values()} == {dtype}

    silent = torch.bincount(indices.flatten(), minlength=F) == 0
    match case:
        case "silent features":
            assert silent[::2].all()
            for name in ("W_enc", "W_dec", "b_enc"):
                assert not found[name][silent].any()
        case "negative" if relu:
            assert (found["values"] != 0).sum() < N * inputs.k
        case "negative":
            assert (found["values"] < 0).any()
            assert (found["values"] != 0).sum() == N * inputs.k
        case "ties":
            pre_activations = (inputs.x - inputs.b_dec) @ inputs.W_enc.T + inputs.b_enc
            kept = pre_activations.gather(1, indices).min(1).values
            assert ((pre_activations == kept[:, None]).sum(1) > 1).any()


@pytest.mark.parametrize("relu", [True, False])
def test_gradients_are_the_finite_differences(relu: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, W_enc, b_enc, W_dec = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((3, 2), (6, 2), (6,), (6, 2))
    )

    def reconstruct(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor) -> tuple[Tensor, Tensor]:
        values, indices = encode_topk(x, W_enc, b_enc, k=5, relu=relu)
        return torch.zeros(3, 6, dtype=torch.float64).scatter(1, indices, values), decode(values, indices, W_dec)

    assert (reconstruct(x, W_enc, b_enc, W_dec)[0] < 0).any() == (not relu)
    assert torch.autograd.gradcheck(reconstruct, (x, W_enc, b_enc, W_dec))


def test_weights_have_gradients_where_x_has_none() -> None:
    inputs = make_inputs("random", torch.float64)
    gradients = []
    for encode in (encode_topk, dense_encode_topk):
        W_enc, b_enc = inputs.W_enc.clone().requires_grad_(), inputs.b_enc.clone().requires_grad_()
        encode(inputs.x, W_enc, b_enc, 5)[0].square().sum().backward()
        gradients.append((W_enc.grad, b_enc.grad))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_decode_sums_a_feature_that_a_token_names_twice() -> None:
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(0, 4, (N, 6), generator=generator)
    weights = torch.randn(N, D, generator=generator, dtype=torch.float64)
    results = []
    for function in (decode, dense_decode):
        values = torch.linspace(-1, 1, N * 6, dtype=torch.float64).view(N, 6).requires_grad_()
        W_dec = make_inputs("random", torch.float64).W_dec.requires_grad_()
        x_hat = function(values, indices, W_dec)
        (x_hat * weights).sum().backward()
        results.append((x_hat.detach(), values.grad, W_dec.grad))
    torch.testing.assert_close(results[0], results[1])


def test_topk_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0], [-1.0, 0.0]])
    W_enc = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, -3.0]])
    b_enc = torch.tensor([0.0, 0.5, -1.0, 0.0])
    # Pre-activations: 1, 2.5, 2, -7 and -1, 0.5, -2, 1.
    values, indices = encode_topk(x, W_enc, b_enc, k=3)
    dense = torch.zeros(2, 4).scatter(1, indices, values)
    assert dense.tolist() == [[1.0, 2.5, 2.0, 0.0], [0.0, 0.5, 0.0, 1.0]]
    values, indices = encode_topk(x, W_enc, b_enc, k=3, relu=False)
    dense = torch.zeros(2, 4).scatter(1, indices, values)
    assert dense.tolist() == [[1.0, 2.5, 2.0, 0.0], [-1.0, 0.5, 0.0, 1.0]]


def test_groups_by_hand() -> None:
    groups = group_by_feature(torch.tensor([[2, 0], [2, 1], [0, 4]]), n_features=6)
    # Feature 0 is active at slots 1 and 4, 1 at 3, 2 at 0 and 2, 4 at 5; 3 and 5 are silent.
    assert groups.slots.tolist() == [1, 4, 3, 0, 2, 5]
    assert groups.tokens.tolist() == [0, 2, 1, 0, 1, 2]
    assert groups.offsets.tolist() == [0, 2, 3, 5, 5, 6]
