"""Linear probes in closed form, which tell the tokens of one class from all others.

A probe scores a row x with (x - mean) . w, where w solves the ridge regression of the class: (C + penalty I) w = the mean of the
class - the mean of the others, with the covariance C of all rows. It says yes above the threshold that has the highest balanced
accuracy on the rows it is fitted to. Every token of the vocabulary, a type, has the same weight, however often it occurs.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from tsae.compute.products import product
from tsae.measure.intervals import Bootstrap, interval
from tsae.measure.measurement import Measurement

# Times the mean variance of coordinates. It was chosen, from 1e-4 to 1, on held-out tokens of one layer of the embedded model, so the
# accuracy of probes on residuals, the ceiling for features, is slightly high.
DENSE_PENALTY = 1.0
SPARSE_PENALTY = 1e-6  # a few chosen features need none, but for features that always fire together


class Sample(NamedTuple):
    """n tokens of T types, each of one of C classes or of none."""

    classes: Tensor
    """(n,) int64; -1 is a token of no class, which is a negative of all."""
    types: Tensor
    """(n,) int64 from 0 to T - 1."""
    weights: Tensor
    """(n,) float64; those of each type sum to 1."""
    n_classes: int
    """C."""

    @classmethod
    def of(cls, tokens: Tensor, classes: Tensor, n_classes: int) -> "Sample":
        """Tokens by their ids (n,), and their classes (n,)."""
        _, types, counts = tokens.unique(return_inverse=True, return_counts=True)
        return cls(classes, types, 1 / counts[types].double(), n_classes)

    @property
    def n_types(self) -> int:
        """T."""
        return int(self.types.max()) + 1

    @property
    def positive(self) -> Tensor:
        """(C, n) bool: whether a token is of a class."""
        return self.classes == torch.arange(self.n_classes)[:, None]

    def by_type(self, hits: Tensor) -> Tensor:
        """Sums over the occurrences of each type of hits (C, n), weighted: (T, C) float64."""
        found = torch.zeros(self.n_types, len(hits), dtype=torch.float64)
        return found.index_add_(0, self.types, (hits * self.weights).T)

    def differences(self, sums: Tensor, total: Tensor) -> Tensor:
        """Mean of each class minus the mean of the others.

        Args:
            sums: (C, m) weighted sums over the tokens of each class.
            total: (m,) the weighted sum over all tokens.
        """
        inside = (self.positive * self.weights).sum(1, keepdim=True)
        return sums / inside - (total - sums) / (self.weights.sum() - inside)


class Probes(NamedTuple):
    """A probe for each class."""

    mean: Tensor
    """(m,) what is subtracted from a row."""
    directions: Tensor
    """(m, C) w of each class."""
    thresholds: Tensor
    """(C,) float64; a score above it is a yes."""

    def scores(self, x: Tensor) -> Tensor:
        """Scores (C, n) float64 of rows (n, m)."""
        return product(self.directions.T.contiguous(), x - self.mean).double()

    def says(self, x: Tensor) -> Tensor:
        """Whether rows (n, m) are of each class: (C, n) bool."""
        return self.scores(x) > self.thresholds[:, None]


def covariance(x: Tensor, sample: Sample) -> tuple[Tensor, Tensor]:
    """Weighted mean (m,) and covariance (m, m) float64 of rows x (n, m) float32."""
    weights = sample.weights / sample.weights.sum()
    mean = weights.float() @ x
    columns = ((x - mean) * weights[:, None].sqrt().float()).T.contiguous()
    return mean, product(columns, columns).double()


def fit_probes(x: Tensor, sample: Sample) -> Probes:
    """Probes on all coordinates of rows x (n, m) float32."""
    mean, spread = covariance(x, sample)
    spread.diagonal().add_(DENSE_PENALTY * spread.diagonal().mean())
    of_tokens = (one_hot(sample.classes + 1, sample.n_classes + 1) * sample.weights[:, None])[:, 1:]
    sums = (of_tokens.T.float() @ (x - mean)).double()
    differences = sample.differences(sums, torch.zeros(x.shape[1], dtype=torch.float64))
    fitted = Probes(mean, torch.linalg.solve(spread, differences.T).float(), torch.zeros(sample.n_classes))
    return fitted._replace(thresholds=best_thresholds(fitted.scores(x), sample))


def best_thresholds(scores: Tensor, sample: Sample) -> Tensor:
    """The threshold of each class with the highest balanced accuracy (C,), midway between two of its scores (C, n).

    If all scores of a class are equal, they are the threshold, and nothing is above it.
    """
    ordered, order = scores.sort(dim=1)
    weights = sample.weights[order]
    positive = weights * (sample.classes[order] == torch.arange(sample.n_classes)[:, None])
    negative = weights - positive
    below = negative.cumsum(1) / negative.sum(1, keepdim=True) - positive.cumsum(1) / positive.sum(1, keepdim=True)
    # There is no threshold between equal scores.
    gains = below[:, :-1].masked_fill(ordered[:, 1:] == ordered[:, :-1], -torch.inf)
    best = gains.argmax(1, keepdim=True)
    return ((ordered.gather(1, best) + ordered.gather(1, best + 1)) / 2).squeeze(1)


class Rates(NamedTuple):
    """A rate per class as numerators and denominators by type, (T, C) each."""

    numerator: Tensor
    denominator: Tensor


def balanced(says: Tensor, sample: Sample) -> tuple[Rates, Rates]:
    """Recall and specificity of answers (C, n)."""
    positive = sample.positive
    return tuple(
        Rates(sample.by_type(right & among), sample.by_type(among))
        for right, among in ((says, positive), (~says, ~positive))
    )  # type: ignore[return-value]


def f1_scores(says: Tensor, sample: Sample) -> Tensor:
    """F1 of answers (C, n) for each class (C,) float64; 0 if nothing is a yes."""
    parts = (says & sample.positive, says, sample.positive)
    right, yes, true = ((part * sample.weights).sum(1) for part in parts)
    return 2 * right / (yes + true)


def mean_over_classes(
    metric: str, rates: tuple[Rates, ...], bootstrap: Bootstrap, at: float | None = None
) -> Measurement:
    """The mean over classes of the mean of these rates, with its 95% interval by a bootstrap over types.

    Args:
        metric: its name in `METRICS`.
        rates: one or several rates of the same classes. A class without a denominator does not count.
        bootstrap: resamples of the T types.
        at: the number of features, for a metric that has it.
    """

    def mean(weights: Tensor) -> Tensor:
        found = [(weights @ rate.numerator) / (weights @ rate.denominator) for rate in rates]
        return torch.stack(found).mean(0).nanmean(-1)

    n_types = len(rates[0].numerator)
    low, high = interval(mean(bootstrap.weights))
    value = mean(torch.ones(n_types, dtype=torch.float64)).item()
    return Measurement(metric, value, low, high, n=n_types, at=at, over="tokens")
