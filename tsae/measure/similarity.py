"""Similarity of features to a table: the largest cosine similarity of a decoder row to any row (C4, C5)."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from tsae.measure.definitions import THRESHOLDS
from tsae.measure.intervals import share
from tsae.measure.measurement import Measurement
from tsae.measure.nearest import max_cosine_similarity_by_count
from tsae.profile.evaluation import Evaluation

BAND = (0.4, 0.9)  # the authors': features "similar to" a token-bias (C4)
METRICS = {
    "feature_{rows}_similar{of}": "share of {of} whose most similar {rows} has a cosine similarity of 0.4 to 0.9 (C4, C5)",
    "feature_{rows}_similarity{of}": "share of {of} whose most similar {rows} has a cosine similarity of `at` or more",
}
METRIC_WORDS = {
    "rows": {"token_bias": "token-bias", "unigram": "unigram residual"},
    "of": {"": "features", "_alive": "alive features"},
}


class Similar(NamedTuple):
    """The row of a table that each feature's decoder row resembles most."""

    cosine: Tensor  # (F,)
    token: Tensor  # (F,) int64, the row's token


def most_similar_rows(W_dec: Tensor, table: Tensor, counts: Tensor, min_counts: Iterable[int]) -> dict[int, Similar]:
    """min_count -> for each decoder row (F, d) the most similar row of a table (V, d), of tokens with that count or more."""
    device = W_dec.device
    found = max_cosine_similarity_by_count(W_dec, table.to(device), counts.to(device), min_counts)
    return {at: Similar(*(part.cpu() for part in found[at])) for at in found}


def in_band(cosine: Tensor) -> Tensor:
    """Whether similarities (...) are in the authors' band, ends included: (...) bool."""
    return (cosine >= BAND[0]) & (cosine <= BAND[1])


def measure_feature_similarity(
    name: str, similar: Mapping[int, Similar], alive: Tensor, settings: Evaluation
) -> list[Measurement]:
    """Share of features whose decoder row resembles some row of a table, by cosine similarity (C4, C5).

    `feature_{name}_similar` is the share in the authors' band 0.4 to 0.9, `feature_{name}_similarity` the share at or
    above each threshold, over all features and, with suffix `_alive`, over those that fire on held-out tokens (F,).
    Rows are those of tokens seen in training at least `min_count` times: the learned row of a token never seen is its
    unigram residual.
    """
    samples, seed = settings.bootstrap, settings.seed
    rows = []
    for min_count in settings.min_counts:
        if min_count not in similar:
            continue
        cosine = similar[min_count].cosine
        for suffix, values in (("", cosine), ("_alive", cosine[alive])):
            if not len(values):
                continue
            metric = f"feature_{name}_similar"
            rows.append(share(f"{metric}{suffix}", in_band(values), samples, seed, min_count=min_count))
            rows += [share(f"{metric}ity{suffix}", values >= at, samples, seed, at, min_count) for at in THRESHOLDS]
    return rows
