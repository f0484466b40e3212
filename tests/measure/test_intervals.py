"""Intervals, against naive resampling and cases worked by hand."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from tsae.measure.intervals import Bootstrap, interval, median, share
from tsae.measure.measurement import Measurement


def test_ratio_is_of_the_sums() -> None:
    measured = Bootstrap(3, 100, seed=0).ratio("m", torch.tensor([1.0, 2, 6]), torch.tensor([2, 3, 5]), n=10)
    assert (measured.metric, measured.value, measured.n) == ("m", 0.9, 10)
    assert (measured.at, measured.min_count) == (None, None)


def test_interval_of_two_documents_by_hand() -> None:
    # Resamples of (1, 3)/(1, 1): (1, 1) gives 1, (3, 3) gives 3, each a quarter of the time.
    measured = Bootstrap(2, 400, seed=0).ratio("m", torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]), n=2)
    assert (measured.low, measured.value, measured.high) == (1.0, 2.0, 3.0)


def test_interval_is_that_of_naive_resampling() -> None:
    generator = torch.Generator().manual_seed(1)
    numerator, denominator = torch.rand(30, generator=generator), torch.rand(30, generator=generator) + 1
    measured = Bootstrap(30, 2000, seed=5).ratio("m", numerator, denominator, n=30)
    assert measured.low is not None
    assert measured.high is not None
    assert measured.low < measured.value < measured.high
    draws = torch.randint(30, (20_000, 30), generator=generator)
    naive = numerator[draws].sum(1) / denominator[draws].sum(1)
    low, high = naive.double().quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    width = high - low
    assert measured.low == pytest.approx(low, abs=0.1 * width)
    assert measured.high == pytest.approx(high, abs=0.1 * width)


def test_interval_is_deterministic() -> None:
    numerator, denominator = torch.arange(20.0), torch.ones(20)

    def measure(seed: int) -> Measurement:
        return Bootstrap(20, 200, seed).ratio("m", numerator, denominator, n=20)

    assert measure(0) == measure(0)
    assert measure(0) != measure(1)


def test_interval_has_no_width_where_documents_are_equal() -> None:
    measured = Bootstrap(20, 200, seed=0).ratio("m", torch.full((20,), 3.0), torch.full((20,), 4.0), n=20)
    assert (measured.low, measured.value, measured.high) == (0.75, 0.75, 0.75)


def test_resamples_without_a_token_do_not_count() -> None:
    numerator, denominator = torch.tensor([3.0, 3.0, 0.0]), torch.tensor([4.0, 4.0, 0.0])
    bootstrap = Bootstrap(3, 400, seed=0)
    assert bootstrap.ratios(numerator, denominator).isnan().any()
    measured = bootstrap.ratio("m", numerator, denominator, n=8)
    assert (measured.low, measured.value, measured.high) == (0.75, 0.75, 0.75)


@pytest.mark.parametrize("others", [0, 3])
def test_a_metric_of_one_document_has_no_interval(others: int) -> None:
    numerator, denominator = torch.zeros(1 + others), torch.zeros(1 + others)
    numerator[0], denominator[0] = 3, 4
    bootstrap = Bootstrap(1 + others, 100, seed=0)
    measured = bootstrap.ratio("m", numerator, denominator, n=4, at=2.0, over="documents")
    assert measured == Measurement("m", 0.75, n=4, at=2.0)
    assert bootstrap.ratios(numerator, denominator).isnan().all()
    numerator, denominator = torch.cat([numerator, numerator[:1]]), torch.cat([denominator, denominator[:1]])
    measured = Bootstrap(2 + others, 100, seed=0).ratio("m", numerator, denominator, n=8, over="documents")
    assert (measured.low, measured.high, measured.over) == (0.75, 0.75, "documents")


def test_quantiles_by_hand() -> None:
    assert interval(torch.arange(41.0)) == pytest.approx((1.0, 39.0), rel=1e-12)
    assert interval(torch.tensor([torch.nan, 7.0, torch.inf])) == (7.0, 7.0)


def shuffled(n: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(0)).double()


def test_median_by_hand() -> None:
    assert median("m", torch.tensor([5.0, 1.0, 3.0])).value == 3
    measured = median("m", torch.tensor([4.0, 1.0, 3.0, 2.0]), min_count=20)
    assert measured == Measurement("m", 2.5, 1.0, 4.0, n=4, min_count=20, over="tokens")
    assert median("m", torch.tensor([7.0])) == Measurement("m", 7.0, 7.0, 7.0, n=1, over="tokens")


def test_interval_of_the_median_is_that_of_its_order_statistics() -> None:
    # For n = 100 the 40th and 61st smallest bound the median with 96.5%, the 41st and 60th with only 94.3%.
    measured = median("m", shuffled(100))
    assert (measured.low, measured.value, measured.high) == (39.0, 49.5, 60.0)


@pytest.mark.parametrize("n", [5, 21, 100, 1001])
def test_interval_of_the_median_treats_both_ends_alike(n: int) -> None:
    measured, mirrored = median("m", shuffled(n)), median("m", -shuffled(n))
    assert measured.low is not None
    assert measured.high is not None
    assert (mirrored.low, mirrored.value, mirrored.high) == (-measured.high, -measured.value, -measured.low)


def test_share_by_hand() -> None:
    hits = torch.tensor([True, False, False, True, False])
    measured = share("m", hits, samples=500, seed=0, at=0.5, min_count=3)
    assert (measured.metric, measured.n, measured.at, measured.min_count) == ("m", 5, 0.5, 3)
    assert measured.value == pytest.approx(0.4)
    # Jeffreys' interval of 2 in 5, as tables have it.
    assert measured.low == pytest.approx(0.094, abs=0.03)
    assert measured.high == pytest.approx(0.791, abs=0.03)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_share_of_nothing_and_of_everything(value: float) -> None:
    measured = share("m", torch.full((7,), bool(value)), samples=4000, seed=0)
    assert measured.low is not None and measured.high is not None
    # None of 7 does not mean that there are none: up to 0.292 is not ruled out.
    assert (measured.high if value == 0 else 1 - measured.low) == pytest.approx(0.292, abs=0.03)
    assert (measured.low if value == 0 else measured.high) == measured.value == value


def test_interval_of_a_share_is_the_binomial_one() -> None:
    hits = torch.arange(10_000) < 3_000
    measured = share("m", hits, samples=4000, seed=0)
    reach = 1.96 * math.sqrt(0.3 * 0.7 / 10_000)
    assert measured.low == pytest.approx(0.3 - reach, abs=0.1 * reach)
    assert measured.high == pytest.approx(0.3 + reach, abs=0.1 * reach)
    assert measured == share("m", hits, samples=4000, seed=0)


def test_measurements_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Measurement("m", 1.0).value = 2.0  # type: ignore[misc]
