"""Sparse products against their dense twins: values, gradients, and the choice between both ways."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tsae.compute import kernels
from tsae.compute.kernels import (
    Indices,
    Select,
    SelectTopK,
    decode,
    dense_decode,
    dense_encode,
    encode,
    select_positive,
)

N, D, F = 40, 12, 30
CASES = ["random", "duplicate rows", "ties", "silent features", "silent tokens", "nearly all"]
SELECTIONS = ["topk", "topk with relu", "positive"]
SILENT_TOKENS = [0, 7, 8, N - 1]
# Relative, in the Frobenius norm.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.fixture(params=["sum of rows", "dense product"])
def branch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Force one of the two ways of computing a product."""

    def refuse(*_: object, **__: object) -> Tensor:
        raise AssertionError(f"not the {request.param}")

    if request.param == "sum of rows":
        monkeypatch.setattr(kernels, "DENSE_SHARE", 1.0)
        monkeypatch.setattr(kernels, "_scatter", refuse)
    else:
        monkeypatch.setattr(kernels, "DENSE_SHARE", 0.0)
        monkeypatch.setattr(torch.nn.functional, "embedding_bag", refuse)
    name: str = request.param
    return name


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
        case "silent tokens":
            W_enc[:, 0] = W_enc[:, 0].abs() + 0.1
            x[SILENT_TOKENS, 0] = -1e3
        case "nearly all":
            # TopK keeps negative pre-activations too.
            b_enc += 3
            k = F - 3
    return Inputs(x, W_enc, b_enc, W_dec, b_dec, k)


def relative_error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    assert expected.norm() > 0
    return ((found - expected).norm() / expected.norm()).item()


def spread(values: Tensor, indices: Indices) -> Tensor:
    """As a matrix (N, F), in which the order of active features does not matter."""
    dense = torch.zeros(indices.n_tokens, F, dtype=values.dtype)
    return dense.index_put((indices.rows, indices.features), values)


class Run(NamedTuple):
    found: dict[str, Tensor]  # values and gradients
    indices: Indices


def run(inputs: Inputs, selection: str, fast: bool, auxiliary: bool) -> Run:
    x, W_enc, b_enc, W_dec, b_dec = (part.clone().requires_grad_() for part in inputs[:5])
    select = select_positive if selection == "positive" else SelectTopK(inputs.k)
    pre, indices = (encode if fast else dense_encode)(x - b_dec, W_enc, b_enc, select)
    values = pre.relu() if selection == "topk with relu" else pre * 1
    pre.retain_grad()
    values.retain_grad()
    x_hat = (decode if fast else dense_decode)(values, indices, W_dec) + b_dec
    loss = (x_hat - x.detach()).square().sum(1).mean()
    if auxiliary:
        # Reaches the encoder only through pre-activations, negative ones included.
        loss = loss + (pre * torch.linspace(-1, 1, F, dtype=x.dtype)[indices.features]).sum() + pre.square().mean()
    loss.backward()
    gradients = {
        name: part.grad
        for name, part in {"x": x, "W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}.items()
    }
    assert pre.grad is not None
    assert values.grad is not None
    found = {
        "pre": spread(pre, indices),
        "x_hat": x_hat,
        "pre's gradient": spread(pre.grad, indices),
        "values' gradient": spread(values.grad, indices),
    }
    found |= {name: part for name, part in gradients.items() if part is not None}
    return Run({name: part.detach() for name, part in found.items()}, indices)


@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_the_dense_twins(
    case: str, selection: str, dtype: torch.dtype, auxiliary: bool, branch: str
) -> None:
    inputs = make_inputs(case, dtype)
    found, indices = run(inputs, selection, fast=True, auxiliary=auxiliary)
    expected, expected_indices = run(inputs, selection, fast=False, auxiliary=auxiliary)
    assert set(found) == set(expected)
    assert {"x", "W_enc", "b_enc", "W_dec", "b_dec"} <= set(found)
    errors = {name: relative_error(found[name], expected[name]) for name in expected}
    assert max(errors.values()) <= TOLERANCE[dtype], errors
    assert {part.dtype for part in found.values()} == {dtype}
    features, offsets = indices.features, indices.offsets
    assert torch.equal(offsets, expected_indices.offsets)
    assert features.dtype == offsets.dtype == torch.int64

    counts = torch.diff(offsets, append=torch.tensor([len(features)]))
    silent = torch.bincount(features, minlength=F) == 0
    pre = (inputs.x - inputs.b_dec) @ inputs.W_enc.T + inputs.b_enc
    if selection == "positive":
        assert torch.equal(counts, (pre > 0).sum(1))
    else:
        assert (counts == inputs.k).all()
    match case, selection:
        case "silent features", _:
            assert silent[::2].all()
            for name in ("W_enc", "W_dec", "b_enc"):
                assert not found[name][silent].any()
        case "silent tokens", "positive":
            assert (counts == 0).nonzero().flatten().tolist() == SILENT_TOKENS
            assert torch.equal(found["x_hat"][SILENT_TOKENS], inputs.b_dec.expand(4, D))
            assert not found["x"][SILENT_TOKENS].any()
        case "nearly all", "topk" | "topk with relu":
            assert (found["pre"] < 0).any()
        case "nearly all", _:
            assert len(features) > 0.7 * N * F
        case "ties", "topk" | "topk with relu":
            kept = pre.gather(1, features.view(N, inputs.k)).min(1).values
            assert ((pre == kept[:, None]).sum(1) > 1).any()
        case "ties", _:
            assert (pre == 0).any()


@pytest.mark.parametrize("select", [SelectTopK(5), select_positive], ids=["topk", "positive"])
def test_gradients_are_the_finite_differences(select: Select, branch: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, W_enc, b_enc, W_dec = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((3, 2), (6, 2), (6,), (6, 2))
    )
    assert (x @ W_enc.T + b_enc).abs().min() > 1e-3

    def reconstruct(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor) -> tuple[Tensor, Tensor]:
        pre, indices = encode(x, W_enc, b_enc, select)
        return spread(pre, indices), decode(pre, indices, W_dec)

    assert (reconstruct(x, W_enc, b_enc, W_dec)[0] < 0).any() == (select is not select_positive)
    assert torch.autograd.gradcheck(reconstruct, (x, W_enc, b_enc, W_dec))


def test_the_gradients_of_plain_sums_by_hand(branch: str) -> None:
    inputs = make_inputs("random", torch.float64)
    x, W_enc, b_enc, W_dec = (part.requires_grad_() for part in inputs[:4])
    pre, indices = encode(x, W_enc, b_enc, select_positive)
    # An expanded gradient: all entries are one number in memory.
    pre.sum().backward()
    values = torch.linspace(-1, 1, len(indices), dtype=torch.float64).requires_grad_()
    decode(values, indices, W_dec).sum().backward()

    expected = {name: torch.zeros_like(part) for name, part in {"x": x, "W_enc": W_enc, "W_dec": W_dec}.items()}
    expected_b_enc, expected_values = torch.zeros_like(b_enc), torch.zeros_like(values)
    with torch.no_grad():
        for slot, (token, feature) in enumerate(zip(indices.rows.tolist(), indices.features.tolist(), strict=True)):
            expected["x"][token] += W_enc[feature]
            expected["W_enc"][feature] += x[token]
            expected["W_dec"][feature] += values[slot]
            expected_b_enc[feature] += 1
            expected_values[slot] = W_dec[feature].sum()
    for part, name in ((x, "x"), (W_enc, "W_enc"), (W_dec, "W_dec")):
        torch.testing.assert_close(part.grad, expected[name])
    torch.testing.assert_close(b_enc.grad, expected_b_enc)
    torch.testing.assert_close(values.grad, expected_values)


@pytest.mark.parametrize("select", [SelectTopK(5), select_positive], ids=["topk", "positive"])
def test_weights_have_gradients_where_x_has_none(select: Select, branch: str) -> None:
    inputs = make_inputs("random", torch.float64)
    gradients = []
    for function in (encode, dense_encode):
        W_enc, b_enc = inputs.W_enc.clone().requires_grad_(), inputs.b_enc.clone().requires_grad_()
        function(inputs.x, W_enc, b_enc, select)[0].square().sum().backward()
        gradients.append((W_enc.grad, b_enc.grad))
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("select", [SelectTopK(5), select_positive], ids=["topk", "positive"])
@pytest.mark.parametrize("x_has_gradient", [True, False])
def test_b_dec_has_the_gradient_of_its_dense_twin(select: Select, x_has_gradient: bool, branch: str) -> None:
    for case in CASES:
        inputs = make_inputs(case, torch.float64)
        gradients = []
        for function in (encode, dense_encode):
            parts = {name: part.clone().requires_grad_() for name, part in inputs._asdict().items() if name != "k"}
            x = parts["x"] if x_has_gradient else inputs.x
            pre, indices = function(x, parts["W_enc"], parts["b_enc"], select, parts["b_dec"])
            (pre * torch.linspace(-1, 1, F, dtype=x.dtype)[indices.features]).square().sum().backward()
            gradients.append([parts[name].grad for name in ("x", "W_enc", "b_enc", "b_dec")])
        assert (gradients[0][0] is not None) == x_has_gradient
        torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("block", [1, 7 * F, 10**9])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_blocks_of_pre_activations_change_nothing(selection: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs("silent tokens", torch.float64)
    expected = run(inputs, selection, fast=False, auxiliary=True)
    monkeypatch.setattr(kernels, "BLOCK", block)
    found = run(inputs, selection, fast=True, auxiliary=True)
    assert torch.equal(found.indices.offsets, expected.indices.offsets)
    for name in expected.found:
        torch.testing.assert_close(found.found[name], expected.found[name])


def test_x_has_a_gradient_where_the_weights_have_none(branch: str) -> None:
    inputs = make_inputs("random", torch.float64)
    gradients = []
    for function in (encode, dense_encode):
        x = inputs.x.clone().requires_grad_()
        function(x, inputs.W_enc, inputs.b_enc, select_positive)[0].square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_second_derivatives_are_refused() -> None:
    inputs = make_inputs("random", torch.float64)
    x = inputs.x.clone().requires_grad_()
    pre, _ = encode(x, inputs.W_enc, inputs.b_enc, select_positive, inputs.b_dec.requires_grad_())
    (gradient,) = torch.autograd.grad(pre.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("case", ["random", "silent tokens", "nearly all"])
def test_without_the_loops_the_numbers_are_the_same(case: str, selection: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(case, torch.float64)
    expected = run(inputs, selection, fast=True, auxiliary=True)
    monkeypatch.setattr(kernels, "_looped", lambda _: False)
    monkeypatch.setattr(kernels, "loops", None)
    found = run(inputs, selection, fast=True, auxiliary=True)
    assert torch.equal(found.indices.offsets, expected.indices.offsets)
    for name in expected.found:
        torch.testing.assert_close(found.found[name], expected.found[name])


def test_half_precision() -> None:
    inputs = make_inputs("ties", torch.bfloat16)
    pre, _ = encode(inputs.x, inputs.W_enc, inputs.b_enc, SelectTopK(5))
    assert pre.dtype == torch.bfloat16
    products = inputs.x @ inputs.W_enc.T
    assert torch.equal(pre.view(N, 5).sort(descending=True).values, (products + inputs.b_enc).topk(5).values)


def test_values_have_gradients_where_the_decoder_has_none(branch: str) -> None:
    inputs = make_inputs("random", torch.float64)
    pre, indices = encode(inputs.x, inputs.W_enc, inputs.b_enc, select_positive)
    gradients = []
    for function in (decode, dense_decode):
        values, W_dec = pre.clone().requires_grad_(), inputs.W_dec.clone()
        function(values, indices, W_dec).square().sum().backward()
        assert W_dec.grad is None
        gradients.append(values.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("function", [decode, dense_decode])
def test_decode_sums_a_feature_that_a_token_names_twice(branch: str, function: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 7, (N,), generator=generator)
    features = torch.randint(0, 4, (int(counts.sum()),), generator=generator)
    offsets = counts.cumsum(0) - counts
    weights = torch.randn(N, D, generator=generator, dtype=torch.float64)
    values = torch.linspace(-1, 1, len(features), dtype=torch.float64).requires_grad_()
    W_dec = make_inputs("random", torch.float64).W_dec.requires_grad_()
    x_hat = function(values, Indices(features, offsets, F), W_dec)
    (x_hat * weights).sum().backward()

    expected = torch.zeros(N, D, dtype=torch.float64)
    expected_values, expected_W_dec = torch.zeros_like(values), torch.zeros_like(W_dec)
    tokens = [token for token, count in enumerate(counts.tolist()) for _ in range(count)]
    assert len(set(zip(tokens, features.tolist(), strict=True))) < len(tokens)
    with torch.no_grad():
        for slot, (token, feature) in enumerate(zip(tokens, features.tolist(), strict=True)):
            expected[token] += values[slot] * W_dec[feature]
            expected_values[slot] = W_dec[feature] @ weights[token]
            expected_W_dec[feature] += values[slot] * weights[token]
    torch.testing.assert_close(x_hat.detach(), expected)
    torch.testing.assert_close(values.grad, expected_values)
    torch.testing.assert_close(W_dec.grad, expected_W_dec)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_batch_without_any_active_feature(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "DENSE_SHARE", share)
    inputs = make_inputs("random", torch.float32)
    x, W_enc, b_enc, W_dec = (part.requires_grad_() for part in (*inputs[:2], inputs.b_enc - 1e3, inputs.W_dec))
    pre, indices = encode(x, W_enc, b_enc, select_positive)
    assert (pre.shape, indices.features.shape, indices.offsets.tolist()) == ((0,), (0,), [0] * N)
    x_hat = decode(pre, indices, W_dec)
    assert torch.equal(x_hat, torch.zeros(N, D))
    (x_hat + pre.sum()).sum().backward()
    for part in (x, W_enc, b_enc, W_dec):
        assert part.grad is not None
        assert torch.equal(part.grad, torch.zeros_like(part))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the products that were computed."""
    taken: list[str] = []

    def counting(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapped(*args: object, **settings: object) -> Tensor:
            taken.append(name)
            return function(*args, **settings)

        return wrapped

    monkeypatch.setattr(kernels, "_scatter", counting("dense product", kernels._scatter))
    bag = torch.nn.functional.embedding_bag
    monkeypatch.setattr(torch.nn.functional, "embedding_bag", counting("sum of rows", bag))
    yield taken


@pytest.mark.parametrize(("k", "expected"), [(3, "sum of rows"), (4, "dense product")])
def test_the_share_of_active_features_decides(counted: list[str], k: int, expected: str) -> None:
    inputs = make_inputs("random", torch.float32)
    assert kernels.DENSE_SHARE * F == 3
    x, W_enc, b_enc, W_dec = (part.requires_grad_() for part in inputs[:4])
    decode(*encode(x, W_enc, b_enc, SelectTopK(k)), W_dec).sum().backward()
    # The decode, and the gradients of W_dec, x and W_enc.
    assert counted == [expected] * 4
