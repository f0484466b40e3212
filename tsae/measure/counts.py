"""How often tokens were seen in training, in bins, so that what a table gains can be told apart for rare and common tokens."""

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
    """Add the mean of a number per token to the sums of its bin.

    Args:
        sums: where the sums go, at the lower edge of each bin.
        metric: its name in `METRICS`.
        values: (n,) a number per token.
        counts: (n,) how often each one's token was seen in training.
        documents: (n,) each one's document.
    """
    bins = count_bins(counts)
    for edge in EDGES:
        inside = bins == edge
        if inside.any():
            sums.add(metric, values[inside], 1, documents[inside], at=float(edge))
