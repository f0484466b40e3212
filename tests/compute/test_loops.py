"""The loops against plain sorting and searching."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tsae.compute import loops
from tsae.compute.kernels import Indices, SelectTopK, encode


def random_products(n_tokens: int, n_features: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n_features)
    products, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((n_tokens, n_features), (n_features,))
    )
    return products, bias


def largest(products: Tensor, bias: Tensor, k: int, n_threads: int = 1) -> Tensor:
    return torch.from_numpy(loops.largest(products.numpy(), bias.numpy(), k, n_threads))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_threads", [1, 2, 1000])
@pytest.mark.parametrize(
    ("n_features", "k"),
    # Fewer features than lanes; a last lane that is not full; more than a lane; all but one; all.
    [(1, 1), (7, 3), (255, 200), (256, 32), (257, 32), (1000, 1), (2304, 32), (3000, 700), (300, 299), (300, 300)],
)
def test_largest_are_the_largest(n_features: int, k: int, n_threads: int, dtype: torch.dtype) -> None:
    products, bias = random_products(50, n_features, dtype)
    found = largest(products, bias, k, n_threads)
    assert found.dtype == torch.int64
    pre = products + bias
    assert torch.equal(pre.gather(1, found).sort(descending=True).values, pre.topk(k).values)
    assert all(len(row) == k for row in map(set, found.tolist()))


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_among_equals_each_feature_is_chosen_once_and_the_same_every_time(levels: int) -> None:
    products = torch.randint(0, levels, (40, 700), generator=torch.Generator().manual_seed(0)).float()
    bias = torch.zeros(700)
    found = largest(products, bias, 32)
    assert torch.equal(products.gather(1, found).sort(descending=True).values, products.topk(32).values)
    assert all(len(row) == 32 for row in map(set, found.tolist()))
    for n_threads in (1, 2):
        assert torch.equal(largest(products, bias, 32, n_threads), found)


def test_numbers_far_apart_do_not_hide_the_others() -> None:
    products, bias = random_products(20, 1500)
    products[:, 3], products[:, 4], products[:, 5] = 3e38, -3e38, -torch.inf
    products[::2, 6] = torch.inf
    found = largest(products, bias, 10)
    pre = products + bias
    assert torch.equal(pre.gather(1, found).sort(descending=True).values, pre.topk(10).values)


@pytest.mark.parametrize("where", [0, 3, 14, 255, 256, 299, [7, 263], slice(None)])
def test_nan_is_let_through(where: int | list[int] | slice) -> None:
    products, bias = random_products(5, 300)
    products[2, 270] = 100.0  # in the same lane as feature 14
    products[2, where] = torch.nan
    found = largest(products, bias, 8)
    assert found.min() >= 0
    assert found.max() < 300
    assert all(len(row) == 8 for row in map(set, found.tolist()))
    n_nan = int(products[2].isnan().sum())
    assert products[2][found[2]].isnan().sum() == min(8, n_nan)
    clean = [0, 1, 3, 4]
    pre = products + bias
    assert torch.equal(pre[clean].gather(1, found[clean]).sort(descending=True).values, pre[clean].topk(8).values)


@pytest.mark.parametrize("feature", [0, 14, 299])
def test_nan_of_a_bias_reaches_every_token(feature: int) -> None:
    bias = torch.zeros(300)
    bias[feature] = torch.nan
    pre, indices = encode(torch.ones(4, 2), torch.ones(300, 2), bias, SelectTopK(3))
    assert torch.equal(indices.rows[pre.isnan()], torch.arange(4))


def test_more_features_than_there_are_are_refused() -> None:
    with pytest.raises(ValueError, match="k = 5 of 4 features"):
        largest(torch.zeros(2, 4), torch.zeros(4), 5)


@pytest.mark.parametrize("outlier", [1e3, 1e5, 3e38, torch.inf, -torch.inf])
def test_outliers_leave_few_candidates(outlier: float) -> None:
    values = np.random.default_rng(0).normal(size=512).astype(np.float32)
    values[7] = outlier
    bound = loops.bound_of_largest(values, 32, 4, np.finfo(np.float32).max)
    assert 32 <= (values >= bound).sum() <= 36


def test_among_equals_the_bound_is_the_kth_largest() -> None:
    values = np.repeat(np.arange(8, dtype=np.float32), 64)
    assert loops.bound_of_largest(values, 100, 0, np.finfo(np.float32).max) == 6
    assert loops.bound_of_largest(np.full(300, -np.inf, np.float32), 100, 0, np.finfo(np.float32).max) == -np.inf


def test_a_whole_row_of_nan_reaches_the_pre_activations() -> None:
    x = torch.ones(2, 4)
    x[1, 2] = torch.nan
    pre, _ = encode(x, torch.ones(300, 4), torch.zeros(300), SelectTopK(8))
    assert pre.isnan().tolist() == [False] * 8 + [True] * 8


@pytest.mark.parametrize("n_threads", [1, 2, 1000])
def test_positive_are_those_above_zero(n_threads: int) -> None:
    products, bias = random_products(30, 90)
    bias[10:20] -= 100
    products[7] -= 100
    products[8] = -bias
    features, offsets = map(torch.from_numpy, loops.positive(products.numpy(), bias.numpy(), n_threads))
    rows, expected = (products + bias > 0).nonzero(as_tuple=True)
    assert torch.equal(features, expected)
    assert torch.equal(Indices(features, offsets, 90).rows, rows)


def test_groups_are_a_stable_sort() -> None:
    features = torch.randint(0, 40, (500,), generator=torch.Generator().manual_seed(0))
    features[features == 7] = 8
    slots, offsets = map(torch.from_numpy, loops.group(features.numpy(), 41))
    assert torch.equal(slots, features.argsort(stable=True))
    counts = torch.bincount(features, minlength=41)
    assert torch.equal(offsets, counts.cumsum(0) - counts)


@pytest.mark.parametrize("n_rows", [0, 1])
def test_fewer_rows_than_threads(n_rows: int) -> None:
    products, bias = random_products(n_rows, 300)
    assert largest(products, bias, 5, n_threads=2).shape == (n_rows, 5)
    features, offsets = loops.positive(products.numpy(), bias.numpy(), 2)
    assert (len(features) > 0) == (n_rows > 0)
    assert len(offsets) == n_rows
