"""How far off centre the input of an encoder is."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd


MOST_OFFSET = 0.1  # of the spread: an encoder's input that is further off its mean is off centre


class Offset(NamedTuple):
    """How far the mean of an encoder's input is from zero, and how far inputs are from their mean."""

    norm: float
    """Length of the mean input."""
    spread: float
    """Root mean squared distance of the inputs to their mean."""

    @property
    def share(self) -> float:
        """The offset as a share of the spread: above `MOST_OFFSET` the input is off centre."""
        return self.norm / self.spread


def offset_of(inputs: Iterable[Tensor]) -> Offset:
    """The offset of an encoder's inputs, given in parts of (n, d) each."""
    total, squares, n = torch.zeros(()), 0.0, 0
    for part in inputs:
        total = total + part.sum(0, dtype=torch.float64).cpu()
        squares += part.double().square().sum().item()
        n += len(part)
    norm = (total / n).norm().item()
    return Offset(norm, math.sqrt(max(squares / n - norm**2, 0.0)))


def off_centre(table: "pd.DataFrame") -> "pd.DataFrame":
    """Rows of a table of metrics: SAEs that should start on centre, and did not."""
    rows = table[(table["metric"] == "encoder_offset_at_start") & (table["start"] == "centred")]
    return rows[rows["centre"].fillna(1).eq(1) & (rows["value"] > MOST_OFFSET)]
