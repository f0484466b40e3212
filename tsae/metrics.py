"""What the metrics are: small functions of tensors, with their uncertainty.

A metric over held-out tokens is a ratio of two sums over documents, so one bootstrap over documents serves them all: see sums.py.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tsae.products import product

THRESHOLDS = tuple(
    step / 20 for step in range(21)
)  # cosine similarities and shares of mass at which shares are reported

# Every metric that may appear in a table; docs/methods.md defines them.
METRICS = {
    "failed": "step at which training was stopped because its numbers were not finite; such an SAE has no other row",
    "nmse": "mean over tokens of |x - x_hat|^2 / |x|^2",
    "nmse_by_count": "NMSE by training count of the token; `at` is the lower edge of a bin, as in all that is by count",
    "nmse_original": "the authors' NMSE, with 1e-4 in the denominator",
    "fvu": "sum |x - x_hat|^2 / sum |x - mean x|^2",
    "mse": "mean over tokens and coordinates of (x - x_hat)^2",
    "l0": "mean count of non-zero activations",
    "l0_original": "mean count of activations above zero",
    "ce": "loss of the next token with the reconstruction in place [nats]",
    "ce_clean": "loss of the next token with the residual as it is [nats]",
    "ce_added": "(CE - clean CE) / clean CE",
    "ce_added_nats": "CE - clean CE [nats]",
    "ce_added_original": "the authors' CE added, with 0.001 in the denominator",
    "ce_recovered_zero": "1 - (CE - clean CE) / (CE of the residual set to zero - clean CE)",
    "ce_recovered_mean": "1 - (CE - clean CE) / (CE of the residual set to its mean - clean CE)",
    "dead_heldout": "share of features that fire on no held-out token",
    "encoder_offset_at_start": "length of the mean of what the encoder first saw, as a share of its spread around it",
    "encoder_offset": "the same of what the trained encoder sees, on held-out tokens",
    "dead_training": "share of features that did not fire in the last tokens of training",
    "dead_training_original": "share of features that did not fire in the authors' window of three batches",
    **{
        f"feature_{table}_{metric}{suffix}": f"share of {features} whose most similar {row} has a cosine similarity {band}"
        for table, row in (
            ("token_bias", "token-bias"),
            ("unigram", "unigram residual"),
            ("conditional_mean", "mean training residual of a token"),
            ("random", "isotropic random direction"),
            ("gaussian", "random vector of the residuals' mean and covariance"),
        )
        for metric, band in (("similar", "of 0.4 to 0.9"), ("similarity", "of `at` or more"))
        for suffix, features in (("", "features"), ("_alive", "alive features"))
    },
    **{
        f"features_match_{name}{suffix}": f"share of {features} with a cosine similarity of `at` or more to {what}"
        for name, what in (
            ("unigram", "a common unigram residual"),
            ("unigram_centred", "a common unigram residual less their mean"),
            ("bigram", "the residual of a common bigram"),
            ("bigram_centred", "the residual of a common bigram less their mean"),
            (
                "bigram_remainder",
                "the part of a common bigram's residual that is not along its last token's unigram residual",
            ),
        )
        for suffix, features in (("", "features"), ("_alive", "alive features"))
    },
    **{
        f"{metric}{suffix}": f"{summary} to {other}{where}"
        for metric, other in (
            ("token_bias_unigram_cosine", "its own unigram residual"),
            ("token_bias_neighbour_cosine", "the most similar other token-bias"),
            ("token_bias_other_cosine", "another token's unigram residual"),
            ("unigram_neighbour_cosine", "the most similar other unigram residual"),
        )
        for suffix, summary, where in (
            ("", "median cosine similarity of a row", ""),
            ("_centred", "median cosine similarity, less the mean of all, of a row", ""),
            ("_by_count", "median cosine similarity of a row", ", by training count of the token"),
            (
                "_centred_by_count",
                "median cosine similarity, less the mean of all, of a row",
                ", by training count of the token",
            ),
            ("_share", "share of rows with a cosine similarity of `at` or more", ""),
        )
        if not (suffix == "_share" and metric == "unigram_neighbour_cosine")
    },
    **{
        f"neighbour_overlap_{tables}": f"mean share of a token's 10 nearest tokens that are the same in {what}"
        for tables, what in (
            ("embedding_unigram", "the embedding and among unigram residuals"),
            ("embedding_token_bias", "the embedding and among token-biases"),
            ("unigram_token_bias", "unigram residuals and token-biases"),
        )
    },
    **{
        f"{table}_same_word": f"share of tokens whose nearest {row} is that of the same word, but for a leading space or case"
        for table, row in (("embedding", "embedding"), ("unigram", "unigram residual"), ("token_bias", "token-bias"))
    },
    **{
        f"{table}_feature_{metric}{suffix}": f"{summary} among the products of its {residual} with all {rows}"
        for table, rows in (("token_bias", "token-biases"), ("unigram", "unigram residuals"))
        for metric, summary in (
            ("rank", "median rank of a token's own row"),
            ("first", "share of tokens whose own row is the first"),
        )
        for suffix, residual in (("", "residual"), ("_centred", "residual less the mean"))
    },
    "token_bias_score_fvu": "share of the variance of x . W_lookup[t] that the best line in x . unigram residual leaves",
    "last_token_detection": "share of sequences whose last residual is most similar to the row of its own token",
    "last_token_detection_any_position": "share of residuals at any position that are most similar to the row of their own token",
    "table_fvu": "FVU of x_hat = table[t]",
    "table_fvu_fitted": "FVU of x_hat = mean + a (table[t] - mean table), a that of least squares over training tokens",
    "table_scale": "that a",
    "residual_unigram_cosine": "mean cosine similarity of a residual to its token's unigram residual, by context length `at`",
    "residual_other_cosine": "the same to another token's unigram residual",
    **{
        f"ngram_{other}_cosine{suffix}": f"median cosine similarity of the residual of `at` common tokens to {what}{how}"
        for other, what in (
            ("unigram", "the last one's unigram residual"),
            ("other", "another token's unigram residual"),
        )
        for suffix, how in (("", ""), ("_centred", ", each less its mean"))
    },
    "simple_unigram": "share of features with at least `at` of their activation mass on one token",
    "simple_bigram": "share of features with at least `at` of their activation mass on one bigram",
    "phrase_coverage": "mean over phrases of the best feature's recall on the phrase's worst token, less its base rate",
    "phrase_coverage_untrained": "the same of an encoder of random directions",
    "phrase_token_recall": "mean over the tokens of phrases of the recall of the phrase's best feature",
    **{
        f"phrase_firings_{removal}": f"share of these features' firings on their phrases that are lost {how}"
        for removal, how in (
            ("lost", "when the encoder's input loses its part along the token's unigram direction"),
            ("lost_control", "when it loses its part along another token's unigram direction"),
            ("lost_matched", "when the input moves as far along another token's unigram direction"),
            ("lost_raw", "without its part along the token's unigram residual, not centred"),
            ("lost_raw_control", "without its part along another token's unigram residual, not centred"),
            ("lost_span", "without its part in the span of the unigram directions of the phrase's tokens"),
            ("lost_span_control", "without its part in the span of as many other tokens' unigram directions"),
        )
    },
    "phrases_left_out": "share of phrases that are not measured, being whole in none of the documents of one half",
    "heldout_tokens_seen_in_training": "share of held-out tokens that occur in training",
    "heldout_share_by_count": "share of held-out tokens by their training count",
    "outlier_share_train": "share of training tokens left out for their norm",
    "outlier_share_heldout": "share of held-out tokens left out for their norm",
    "n_parameters": "numbers that training moves, all rows of a learned table included",
    "flops_per_token": "multiplications and additions of one token's reconstruction",
    "scale": "what residuals of the layer are divided by in training",
}


def is_share(metric: str) -> bool:
    """Whether a metric is a share of things that were counted, by its definition."""
    return METRICS[metric].startswith("share of")


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
    over: str | None = None  # what was resampled for the interval: documents, features, tokens or phrases


def failure(metadata: Mapping[str, Any]) -> list[Measurement]:
    """The one row of an SAE whose training was stopped, by its description; nothing of any other."""
    return [Measurement("failed", float(metadata["failed"]["step"]))] if "failed" in metadata else []


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
    """Resampling of units, such as held-out documents: the same resamples for every metric."""

    def __init__(self, n_units: int, samples: int, seed: int):
        """Draw `samples` resamples of n_units units with replacement."""
        draws = torch.randint(n_units, (samples, n_units), generator=torch.Generator().manual_seed(seed))
        self.weights = torch.stack([torch.bincount(draw, minlength=n_units) for draw in draws]).double()

    def ratios(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        """sum(numerator) / sum(denominator) of every resample (samples,) float64: sums per unit (n_units,).

        NaN if fewer than two units have a denominator: resamples of one unit are all the same, and say nothing of an interval.
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

        There is no interval where there is nothing to resample: see `ratios`.
        """
        low, high = interval(self.ratios(numerator, denominator))
        value = (numerator.double().sum() / denominator.double().sum()).item()
        if math.isnan(low):
            return Measurement(metric, value, n=n, at=at)
        return Measurement(metric, value, low, high, n, at=at, over=over)


def interval(samples: Tensor) -> tuple[float, float]:
    """2.5% and 97.5% quantiles, without samples in which nothing was drawn; NaN if nothing ever was."""
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
    """Share of true values among hits (n,), with the interval of the posterior after Jeffreys' prior.

    Resampling the n things would draw a binomial number of them: where there are none, none again, as if that were certain.
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
        block = product(torch.nn.functional.normalize(queries[start : start + rows], dim=1), directions)
        block[:, ~usable] = -torch.inf
        if exclude is not None:
            block[torch.arange(len(block), device=block.device), exclude[start : start + rows]] = -torch.inf
        values, indices = block.max(1)
        best.append(values)
        chosen.append(indices)
    return torch.cat(best), torch.cat(chosen)


def max_cosine_similarity_by_count(
    queries: Tensor, keys: Tensor, counts: Tensor, min_counts: Iterable[int], rows: int = 1024
) -> dict[int, tuple[Tensor, Tensor]]:
    """Cosine similarity of each query to its most similar key among those counted at least so often, for several counts.

    One product serves them all: with the keys ordered by count, each count's keys are a prefix.

    Args:
        queries: (Q, d).
        keys: (K, d), none of them zero.
        counts: (K,) int64.
        min_counts: counts; one that no key reaches has no entry in the result.
        rows: queries per block, which bounds the memory.

    Returns:
        min_count -> (Q,) similarities and (Q,) int64 indices of the chosen keys.
    """
    order = torch.argsort(counts, descending=True, stable=True)
    directions = torch.nn.functional.normalize(keys, dim=1)[order]
    ends = {at: int((counts >= at).sum()) for at in sorted(set(min_counts), reverse=True)}
    found: dict[int, list[tuple[Tensor, Tensor]]] = {at: [] for at, end in ends.items() if end}
    for block in queries.split(rows):
        products = product(torch.nn.functional.normalize(block, dim=1), directions)
        best = products.new_full((len(block),), -torch.inf)
        chosen = order.new_zeros(len(block))
        start = 0
        for at in found:
            if ends[at] > start:
                values, indices = products[:, start : ends[at]].max(1)
                chosen = torch.where(values > best, order[indices + start], chosen)
                best = torch.maximum(values, best)
                start = ends[at]
            found[at].append((best, chosen))
    return {
        at: (torch.cat([values for values, _ in parts]), torch.cat([indices for _, indices in parts]))
        for at, parts in found.items()
    }
