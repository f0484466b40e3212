"""Values with 95% intervals: ratios by a bootstrap over units such as documents, medians and shares."""

import math

import numpy as np
import torch
from torch import Tensor

from tsae.measure.measurement import Measurement


class Bootstrap:
    """Resamples of units such as held-out documents, the same for every metric."""

    def __init__(self, n_units: int, samples: int, seed: int):
        """Draw `samples` resamples of n_units units with replacement."""
        draws = torch.randint(n_units, (samples, n_units), generator=torch.Generator().manual_seed(seed))
        self.weights = torch.stack([torch.bincount(draw, minlength=n_units) for draw in draws]).double()

    def ratios(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        """sum(numerator) / sum(denominator) of every resample (samples,) float64: sums per unit (n_units,).

        NaN if fewer than two units have a denominator: resamples of one unit are all the same.
        """
        ratios = (self.weights @ numerator.double()) / (self.weights @ denominator.double())
        return ratios if (denominator != 0).sum() >= 2 else torch.full_like(ratios, torch.nan)

    def ratio(
        self,
        metric: str,
        numerator: Tensor,
        denominator: Tensor,
        n: int,
        at: float | None = None,
        over: str | None = None,
    ) -> Measurement:
        """sum(numerator) / sum(denominator), sums per unit (n_units,), over n tokens in all, with its 95% interval.

        Without an interval if `ratios` are NaN.
        """
        low, high = interval(self.ratios(numerator, denominator))
        value = (numerator.double().sum() / denominator.double().sum()).item()
        if math.isnan(low):
            return Measurement(metric, value, n=n, at=at)
        return Measurement(metric, value, low, high, n, at=at, over=over)


def interval(samples: Tensor) -> tuple[float, float]:
    """2.5% and 97.5% quantiles of the finite samples; NaN if there are none."""
    samples = samples[samples.isfinite()].double()
    if not len(samples):
        return math.nan, math.nan
    low, high = torch.quantile(samples, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def median(metric: str, values: Tensor, min_count: int | None = None, over: str = "tokens") -> Measurement:
    """Median of values (n,); the interval is that of its order statistics, which needs no resampling."""
    ordered = values.sort().values
    n = len(ordered)
    first = max(0, math.floor((n - 1) / 2 - 0.98 * n**0.5))
    low, high = ordered[first], ordered[n - 1 - first]
    return Measurement(metric, ordered.quantile(0.5).item(), low.item(), high.item(), n, min_count=min_count, over=over)


def share(
    metric: str,
    hits: Tensor,
    samples: int,
    seed: int,
    at: float | None = None,
    min_count: int | None = None,
    over: str = "features",
) -> Measurement:
    """Share of true values among hits (n,), with the interval of the posterior under Jeffreys' prior.

    A bootstrap would give a share of 0 an interval of no width.
    """
    n, found = len(hits), int(hits.sum())
    draws = np.random.default_rng(seed).beta(found + 0.5, n - found + 0.5, samples)
    low, high = interval(torch.from_numpy(draws))
    return Measurement(
        metric,
        found / n,
        low if found else 0.0,
        high if found < n else 1.0,
        n=n,
        at=at,
        min_count=min_count,
        over=over,
    )
