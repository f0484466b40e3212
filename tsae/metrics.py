"""What the metrics are: small functions of tensors, with their uncertainty.

A metric over held-out tokens is a ratio of two sums over sequences, so one bootstrap over sequences serves them all.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Measurement:
    """One row of the metrics table."""

    metric: str
    value: float
    low: float | None = None  # ends of the 95% interval
    high: float | None = None
    n: int | None = None  # how many things it was measured on
    at: float | None = None  # the threshold at which it was measured, for a metric that has one
    min_count: int | None = None  # over table rows of tokens seen at least so often in training, for metrics of tables


class ReconstructionErrors(NamedTuple):
    """Errors of N tokens, each (N,)."""

    squared_error: Tensor  # |x - x_hat|^2
    squared_norm: Tensor  # |x|^2
    squared_deviation: Tensor  # |x - mean x|^2

    @property
    def nmse(self) -> Tensor:
        """|x - x_hat|^2 / |x|^2 of every token."""
        return self.squared_error / self.squared_norm

    @property
    def nmse_original(self) -> Tensor:
        """The authors' variant, with 1e-4 in the denominator."""
        return self.squared_error / (self.squared_norm + 1e-4)


def reconstruction_errors(x: Tensor, x_hat: Tensor, mean: Tensor | None = None) -> ReconstructionErrors:
    """Errors of reconstructions x_hat of residuals x, both (N, d), in float64 since sums of them are compared.

    `mean` (d,) is the mean residual; by default the mean of x.
    """
    mean = x.double().mean(0) if mean is None else mean.double()
    return ReconstructionErrors(
        (x - x_hat).double().square().sum(-1), x.double().square().sum(-1), (x.double() - mean).square().sum(-1)
    )


class Bootstrap:
    """Resampling of held-out sequences, the same resamples for every metric."""

    def __init__(self, n_sequences: int, samples: int, seed: int):
        """Draw `samples` resamples of n_sequences sequences with replacement."""
        draws = torch.randint(n_sequences, (samples, n_sequences), generator=torch.Generator().manual_seed(seed))
        self.weights = torch.stack([torch.bincount(draw, minlength=n_sequences) for draw in draws]).double()

    def ratio(self, metric: str, numerator: Tensor, denominator: Tensor, n: int) -> Measurement:
        """sum(numerator) / sum(denominator), sums per sequence (n_sequences,), over n tokens in all."""
        numerator, denominator = numerator.double(), denominator.double()
        low, high = interval((self.weights @ numerator) / (self.weights @ denominator))
        return Measurement(metric, (numerator.sum() / denominator.sum()).item(), low, high, n)


def interval(samples: Tensor) -> tuple[float, float]:
    """2.5% and 97.5% quantiles, without samples in which nothing was drawn; NaN if nothing ever was."""
    samples = samples[samples.isfinite()].double()
    if not len(samples):
        return math.nan, math.nan
    low, high = torch.quantile(samples, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def median(metric: str, values: Tensor, min_count: int | None = None) -> Measurement:
    """Median of values (n,); the interval is that of its order statistics, which needs no resampling."""
    ordered = values.sort().values
    n = len(ordered)
    first = max(0, math.floor((n - 1) / 2 - 0.98 * n**0.5))
    low, high = ordered[first], ordered[n - 1 - first]
    return Measurement(metric, ordered.quantile(0.5).item(), low.item(), high.item(), n, min_count=min_count)


def share(
    metric: str, hits: Tensor, samples: int, seed: int, at: float | None = None, min_count: int | None = None
) -> Measurement:
    """Share of true values among hits (n,); resampling the n things draws a binomial number of them."""
    n, value = len(hits), hits.double().mean().item()
    counts = torch.binomial(
        torch.full((samples,), float(n)), torch.full((samples,), value), generator=torch.Generator().manual_seed(seed)
    )
    return Measurement(metric, value, *interval(counts / n), n=n, at=at, min_count=min_count)


def complement(measurement: Measurement) -> Measurement:
    """1 - a measurement with an interval, whose ends change places."""
    low, high = measurement.low, measurement.high
    return replace(
        measurement,
        value=1 - measurement.value,
        low=None if high is None else 1 - high,
        high=None if low is None else 1 - low,
    )


def max_cosine_similarity(
    queries: Tensor, keys: Tensor, exclude: Tensor | None = None, rows: int = 1024
) -> tuple[Tensor, Tensor]:
    """Cosine similarity of each query to its most similar key.

    Args:
        queries: (Q, d).
        keys: (K, d); rows of zeros or NaN are never chosen.
        exclude: (Q,) int64, one key per query that is left out, for a row's nearest other row.
        rows: queries per block, which bounds the memory.

    Returns:
        (Q,) similarities and (Q,) int64 indices of the chosen keys.
    """
    usable = keys.isfinite().all(1) & (keys.norm(dim=1) > 0)
    directions = torch.nn.functional.normalize(keys.nan_to_num(), dim=1)
    best, chosen = [], []
    for start in range(0, len(queries), rows):
        block = torch.nn.functional.normalize(queries[start : start + rows], dim=1) @ directions.T
        block[:, ~usable] = -torch.inf
        if exclude is not None:
            block[torch.arange(len(block)), exclude[start : start + rows]] = -torch.inf
        values, indices = block.max(1)
        best.append(values)
        chosen.append(indices)
    return torch.cat(best), torch.cat(chosen)
