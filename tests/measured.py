"""What a run measured, made up by hand: tables of blocks, and sums over documents."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import pytest
import torch
from pydantic import TypeAdapter

from tsae.measures import Measure, measure
from tsae.replicates import Measured
from tsae.selection import Role, Run
from tsae.sums import DocumentSums
from tsae.table import COLUMNS

BASELINE, TOKENIZED, REMAINDER = "topk-k4-x4-none", "topk-k4-x4-learned", "topk-k4-x4-learned-remainder"
WHOLE = ["layer", "seed", "k", "min_count", "n", "step", "tokens"]


def table(*rows: dict[str, Any]) -> pd.DataFrame:
    """A table of a block with the columns that `read_table` gives."""
    return pd.DataFrame(list(rows), columns=[*COLUMNS]).astype(dict.fromkeys(WHOLE, "Int64"))


def row(subject: str, metric: str, value: float, half_width: float = 0.0, **columns: Any) -> dict[str, Any]:
    """A measurement with the interval value - half_width to value + half_width."""
    ends = {"low": value - half_width, "high": value + half_width}
    return {"layer": 1, "seed": 0, "subject": subject, "metric": metric, "value": value} | ends | columns


def sums(**metrics: Sequence[tuple[float, float]]) -> DocumentSums:
    """The sums of one SAE: for each metric the numerator and the denominator of every document."""
    documents = torch.arange(len(next(iter(metrics.values()))))
    found = DocumentSums(documents)
    for metric, parts in metrics.items():
        numerator, denominator = torch.tensor(parts, dtype=torch.float64).T
        found.add(metric, numerator, denominator, documents)
    return found


def run_of(sums: Mapping[Any, DocumentSums] | None = None, bootstrap: int = 1000, **tables: Any) -> Run:
    """A run of these tables and sums."""
    roles: dict[Role, str] = {"baseline": BASELINE, "tokenized": TOKENIZED, "remainder": REMAINDER}
    return Run(tables, roles, 0.5, sums or {}, bootstrap)


def take(run: Run, **declared: Any) -> list[Measured]:
    """A measure, as the ledger declares it, at each layer."""
    return measure(TypeAdapter(Measure).validate_python(declared), run)


def take_one(run: Run, **declared: Any) -> Measured:
    """The same at the only layer."""
    (measured,) = take(run, **declared)
    return measured


def near(value: Any, **tolerance: Any) -> Any:
    """`pytest.approx`, to stand within a tuple."""
    return pytest.approx(value, **tolerance)
