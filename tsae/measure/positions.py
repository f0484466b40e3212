"""Bins of context lengths, which tell tokens early in a sequence apart from late ones."""

import torch
from torch import Tensor

from tsae.measure.sums import DocumentSums


def add_by_position(sums: DocumentSums, metric: str, values: Tensor, positions: Tensor, documents: Tensor) -> None:
    """Add tokens to the sums of the bins of their context length, whose upper edge is `at`: 1, 2, 4, 8, ...

    The context length of a token counts it and the tokens before it in its sequence, without BOS. So it is the token's
    position, and a kept BOS, which has no context, is left out.

    Args:
        sums: receives the sums.
        metric: its name in `METRICS`.
        values: (n,) a number per token.
        positions: (n,) position of each token in its sequence, 0 for BOS.
        documents: (n,) document of each token.
    """
    bins = torch.ceil(torch.log2(positions.double()))
    for edge in bins[positions > 0].unique().tolist():
        inside = bins == edge
        sums.add(metric, values[inside], 1, documents[inside], at=2.0**edge)
