"""How far the mean of an encoder's input is from zero."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

MOST_OFFSET = 0.1  # share of the spread above which an encoder's input is off centre


class Offset(NamedTuple):
    """Mean and spread of an encoder's input."""

    norm: float
    """Length of the mean input."""
    spread: float
    """Root mean square distance of inputs to their mean."""

    @property
    def share(self) -> float:
        """The offset as a share of the spread."""
        return self.norm / self.spread


def offset_of(inputs: Iterable[Tensor]) -> Offset:
    """The offset of an encoder's inputs, given in parts (n, d)."""
    total, squares, n = torch.zeros(()), 0.0, 0
    for part in inputs:
        total = total + part.sum(0, dtype=torch.float64).cpu()
        squares += part.double().square().sum().item()
        n += len(part)
    norm = (total / n).norm().item()
    return Offset(norm, math.sqrt(max(squares / n - norm**2, 0.0)))


def off_centre(table: "pd.DataFrame") -> "pd.DataFrame":
    """Rows of a table of metrics for SAEs that should have started centred and did not."""
    rows = table[(table["metric"] == "encoder_offset_at_start") & (table["start"] == "centred")]
    return rows[rows["centre"].fillna(1).eq(1) & (rows["value"] > MOST_OFFSET)]
