"""Comparisons of the points of a sparsity sweep at equal L0 (C1)."""

from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from pydantic import Field

from tsae.claims.criteria import Metric, NotMeasuredError, keep
from tsae.claims.replicates import TINY, Array, Measured, estimate, sample
from tsae.claims.selection import Run, refuse_failed, table_of
from tsae.profile.architectures import Sparsity
from tsae.profile.point import ArchitectureName, Point, TableName
from tsae.profile.section import Name, Section

# SAEs of one curve agree in these.
FAMILY = [name for name in Point.model_fields if name not in get_args(Sparsity)]
SLACK = 0.02  # two TopK SAEs with the same k may differ a little in L0, because a ReLU follows


class Pareto(Section):
    """Ratio of a metric, tokenized / baseline, at equal L0.

    The baseline's log(metric) is interpolated linearly in log(L0). The ratio is a geometric mean over the tokenized points
    whose L0 is within the baseline's range.
    """

    kind: Literal["pareto"]
    architecture: ArchitectureName
    metric: Metric
    table: TableName = "learned"
    encoder_input: Literal["residual", "remainder"] = Field(
        "residual", description="Encoder input of the tokenized SAEs"
    )
    block: Name = "pareto"


def inside(baseline_l0: Array, l0: Array) -> Array:
    """Which L0 (Q,) are within the range of a baseline's points (P,), or at most 2% outside."""
    lowest, highest = baseline_l0.min(), baseline_l0.max()
    return np.asarray(((1 - SLACK) * lowest <= l0) & (l0 <= (1 + SLACK) * highest))


def ratio_at_equal_l0(baseline_l0: Array, baseline: Array, l0: Array, values: Array) -> float:
    """Geometric mean of values (Q,) over the baseline's (P,) at the same L0.

    Args:
        baseline_l0: (P,), in any order.
        baseline: (P,), above zero.
        l0: (Q,), inside the baseline's range.
        values: (Q,), above zero.
    """
    order = np.argsort(baseline_l0)
    at_same_l0 = np.interp(np.log(l0), np.log(baseline_l0[order]), np.log(baseline[order]))
    return float(np.exp(np.mean(np.log(values) - at_same_l0)))


def layers_of_pareto(run: Run, measure: Pareto) -> list[int]:
    """The layers at which the block has SAEs of the architecture."""
    return sorted(int(layer) for layer in _of_architecture(run, measure)["layer"].unique())


def measure_pareto(run: Run, measure: Pareto, layer: int) -> Measured:
    """Compute the ratio at a layer.

    Raises:
        NotMeasuredError: points are missing, are of several families, or cannot be compared.
    """
    rows = _of_architecture(run, measure)
    rows = rows[rows["layer"] == layer]
    arms = [
        _points(run, rows, measure, "none", "residual"),
        _points(run, rows, measure, measure.table, measure.encoder_input),
    ]
    (base_l0, base), (l0, values) = (
        tuple(np.array([s.values.mean() for s in samples]) for samples in zip(*arm, strict=True)) for arm in arms
    )
    if min(base.min(), values.min(), base_l0.min(), l0.min()) <= 0:
        raise NotMeasuredError("a value is not above zero, so it has no logarithm")
    chosen = inside(base_l0, l0)
    if not chosen.any():
        raise NotMeasuredError("no tokenized point has an L0 within the range of the baseline's points")
    compared = [*arms[0], *(point for point, take in zip(arms[1], chosen, strict=True) if take)]
    n_baseline = len(arms[0])

    def ratio(*arrays: Any) -> Array:
        stacked = np.stack(np.broadcast_arrays(*arrays))
        lowest_baseline = stacked[1 : 2 * n_baseline : 2].min(0)
        stacked = np.maximum(stacked, TINY)
        x, y = stacked[::2].reshape(len(compared), -1), stacked[1::2].reshape(len(compared), -1)
        ratios = [
            ratio_at_equal_l0(x[:n_baseline, b], y[:n_baseline, b], x[n_baseline:, b], y[n_baseline:, b])
            for b in range(x.shape[1])
        ]
        return np.where(lowest_baseline > 0, np.reshape(ratios, stacked.shape[1:]), np.inf)

    return estimate(run, ratio, [s for point in compared for s in point], log=True)


def _of_architecture(run: Run, measure: Pareto) -> pd.DataFrame:
    rows = table_of(run, measure.block)
    missing = f"block {measure.block!r} has no architecture {measure.architecture}"
    return keep(rows, rows["architecture"] == measure.architecture, missing)


def _points(run: Run, rows: pd.DataFrame, measure: Pareto, table: str, encoder_input: str) -> list[Any]:
    """L0 and the metric of every point, for the baseline or the tokenized SAEs."""
    what = f"{measure.metric} of {measure.architecture} with table {table} and encoder input {encoder_input}"
    missing = f"block {measure.block!r} has no {what}"
    rows = keep(rows, (rows["table"] == table) & (rows["encoder_input"] == encoder_input), missing)
    refuse_failed(rows)
    if differing := [name for name in FAMILY if rows[name].nunique(dropna=False) > 1]:
        raise NotMeasuredError(f"block {measure.block!r} has several families, that differ in {', '.join(differing)}")
    points = []
    for subject, of_point in rows.groupby("subject"):
        pair = []
        for metric in ("l0", measure.metric):
            found = keep(of_point, of_point["metric"] == metric, f"there is no {metric} of {subject}")
            pair.append(sample(run, found.sort_values("seed")))
        points.append(tuple(pair))
    return points
