"""Products of float32 matrices with each library."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from tsae.compute import products
from tsae.compute.products import onednn, product
from tsae.model import modules as models

WAYS = [product, onednn] if products.ONEDNN else [product]


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "x",
    [random(7, 24), random(2, 3, 24), random(24, 7).T, random(14, 24)[::2], random(0, 24), random(24)],
    ids=["matrix", "batch", "transposed", "every second row", "no rows", "vector"],
)
def test_is_that_of_double_precision_to_the_last_digits(way: Callable[..., Tensor], x: Tensor) -> None:
    W, bias = random(11, 24), random(11)
    found = way(x, W, bias)
    assert found.dtype == torch.float32
    assert found.shape == (*x.shape[:-1], 11)
    torch.testing.assert_close(found.double(), x.double() @ W.double().T + bias.double(), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(way(x, W.T.contiguous().T), found - bias, rtol=1e-6, atol=1e-5)


def test_other_types_are_multiplied_too() -> None:
    x, W = random(3, 24).double(), random(5, 24).double()
    assert torch.equal(product(x, W), x @ W.T)


def test_not_a_number_reaches_the_result() -> None:
    x, W = random(3, 24), random(5, 24)
    x[1, 2] = torch.nan
    assert product(x, W).isnan().all(1).tolist() == [False, True, False]


def test_a_model_gives_the_same_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    transposed = Conv1D(8, 16)
    torch.nn.init.normal_(transposed.bias)
    model = torch.nn.Sequential(torch.nn.Linear(24, 16), transposed, torch.nn.Linear(8, 4, bias=False))
    x = random(5, 24)
    widths = []

    def counted(x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
        widths.append(len(W))
        return product(x, W, bias)

    monkeypatch.setattr(models, "product", counted)
    with torch.no_grad():
        expected = model(x)
        models.multiply_fast(model)
        torch.testing.assert_close(model(x), expected, rtol=1e-6, atol=1e-6)
    assert widths == [16, 8, 4]
