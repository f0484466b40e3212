"""Bins of training counts, which tell the gain of a table apart for rare and common tokens."""

import torch
from torch import Tensor

from tsae.measure.sums import DocumentSums

EDGES = (0, 1, 2, 5, 20, 100, 1000)  # lower edges: 0, 1, 2 to 4, 5 to 19, 20 to 99, 100 to 999, 1000 and more


def count_bins(counts: Tensor) -> Tensor:
    """The lower edge of each count's bin: counts (...) int64 give (...) int64."""
    bins = torch.zeros_like(counts)
    for edge in EDGES:
        bins = torch.where(counts >= edge, edge, bins)
    return bins


def add_by_count(sums: DocumentSums, metric: str, values: Tensor, counts: Tensor, documents: Tensor) -> None:
    """Add tokens to the sums of their bins, whose lower edge is `at`.

    Args:
        sums: receives the sums.
        metric: its name in `METRICS`.
        values: (n,) a number per token.
        counts: (n,) training occurrences of each token.
        documents: (n,) document of each token.
    """
    bins = count_bins(counts)
    for edge in EDGES:
        inside = bins == edge
        if inside.any():
            sums.add(metric, values[inside], 1, documents[inside], at=float(edge))
