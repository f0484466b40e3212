"""How much sooner a tokenized SAE matches its baseline, on one schedule and at equal loss (C2)."""

import math
from typing import Any, Literal

import numpy as np
import pandas as pd

from tsae.claims.criteria import Metric, NotMeasuredError, keep
from tsae.claims.replicates import TINY, Array, Measured, Sample, estimate, sample
from tsae.claims.selection import Run, of_role, refuse_failed, table_of
from tsae.measure.table import COLUMNS
from tsae.profile.section import Name, Section

SCHEDULE = [name for name in COLUMNS[COLUMNS.index("architecture") : COLUMNS.index("step")] if name != "budget"]


class SpeedUp(Section):
    """Steps until the baseline first reaches its final value / steps until a tokenized headline SAE does, as the authors count.

    Steps come from the checkpoints of one training each, interpolated linearly in log(step).
    """

    kind: Literal["speedup"]
    metric: Metric
    of: Literal["tokenized", "remainder"] = "tokenized"


class EqualLossSpeedUp(Section):
    """Tokens of the baseline / tokens that a tokenized SAE with its own whole schedule needs to match it.

    SAEs were trained on shares of the tokens (`budget`); log(metric) is interpolated linearly in log(budget).
    """

    kind: Literal["equal_loss_speedup"]
    metric: Metric
    of: Literal["tokenized", "remainder"] = "tokenized"
    block: Name = "speed"


def first_crossing(x: Array, y: Array, mark: float) -> float:
    """Where a curve (n,), linear between its points, is first at or below a mark; infinite if never."""
    reached = np.flatnonzero(y <= mark)
    if not len(reached):
        return math.inf
    first = int(reached[0])
    if first == 0:
        return float(x[0])
    share = (y[first - 1] - mark) / (y[first - 1] - y[first])
    return float(x[first - 1] + share * (x[first] - x[first - 1]))


def speedups(curves: pd.DataFrame, baseline: str, tokenized: str, metric: str) -> pd.DataFrame:
    """The speed-up of a tokenized SAE on one schedule, by layer and seed.

    Args:
        curves: the table of training curves.
        baseline: the subject whose final value is the mark.
        tokenized: the subject that is compared with it.
        metric: the metric that falls to the mark.

    Returns:
        layer, seed, steps_baseline, steps_tokenized, speedup: a row per layer and seed that both have. The last two are NaN
        if the tokenized SAE never reaches the mark. If it is there at its first checkpoint, the speed-up is a lower bound.
    """
    rows = curves[(curves["metric"] == metric) & (curves["step"] > 0)].sort_values("step")
    curve_of = dict(iter(rows.groupby(["subject", "layer", "seed"])))
    found = []
    for (subject, layer, seed), curve in curve_of.items():
        if subject != baseline or (tokenized, layer, seed) not in curve_of:
            continue
        mark = curve["value"].iloc[-1]
        steps = []
        for of in (curve, curve_of[tokenized, layer, seed]):
            crossing = first_crossing(np.log(of["step"].to_numpy(float)), of["value"].to_numpy(float), mark)
            steps.append(math.exp(crossing) if math.isfinite(crossing) else math.nan)
        found.append((layer, seed, *steps, steps[0] / steps[1]))
    return pd.DataFrame(found, columns=["layer", "seed", "steps_baseline", "steps_tokenized", "speedup"])


def mean_of_seeds(curves: pd.DataFrame) -> pd.DataFrame:
    """A table of training curves with the mean of the seeds in place of each, under the seed 0."""
    keys = ["subject", "layer", "metric", "step"]
    return curves.groupby(keys, as_index=False)["value"].mean().assign(seed=0)


def measure_speedup(run: Run, measure: SpeedUp, layer: int) -> Measured:
    """Compute the speed-up on one schedule at a layer, for the mean of the seeds.

    Raises:
        NotMeasuredError: the run lacks a curve.
    """
    curves = table_of(run, "curves")
    curves = curves[curves["layer"] == layer]
    (steps, baseline), (steps_tokenized, tokenized) = (
        _curve(run, curves, of_role(run, role), measure.metric) for role in ("baseline", measure.of)
    )
    x, x_tokenized = np.log(steps), np.log(steps_tokenized)

    def speedup(y: Array, y_tokenized: Array) -> float:
        mark = y[-1]
        if y_tokenized[0] <= mark:
            return math.inf
        return math.exp(first_crossing(x, y, mark) - first_crossing(x_tokenized, y_tokenized, mark))

    of_baseline = np.array([s.values.mean() for s in baseline])
    most = math.exp(first_crossing(x, of_baseline, of_baseline[-1]) - x_tokenized[0])
    return _estimate_curves(run, speedup, baseline, tokenized, (1.0, most))


def measure_equal_loss_speedup(run: Run, measure: EqualLossSpeedUp, layer: int) -> Measured:
    """Compute the speed-up at equal loss at a layer, for the mean of the seeds.

    Raises:
        NotMeasuredError: the run has no SAEs with smaller budgets.
    """
    headline, block = (_at_layer(run, name, layer) for name in ("headline", measure.block))
    subject = of_role(run, measure.of)
    whole = _metric_of(headline, subject, measure.metric)
    same = [_same(block[name], whole[name].iloc[0]) for name in SCHEDULE]
    fewer = block[np.logical_and.reduce(same) & (block["budget"] < 1).to_numpy(bool)]
    missing = f"block {measure.block!r} has no {measure.metric} of {subject} with a smaller budget"
    refuse_failed(fewer)
    fewer = keep(fewer, fewer["metric"] == measure.metric, missing)
    points = [(float(str(budget)), rows) for budget, rows in fewer.groupby("budget")]
    budgets = np.array([*(budget for budget, _ in points), 1.0])
    tokenized = [sample(run, rows.sort_values("seed")) for rows in (*(rows for _, rows in points), whole)]
    baseline = [sample(run, _metric_of(headline, of_role(run, "baseline"), measure.metric))]

    def speedup(y: Array, y_tokenized: Array) -> float:
        y, y_tokenized = (np.log(np.maximum(values, TINY)) for values in (y, y_tokenized))
        if y_tokenized[0] <= y[0]:
            return math.inf
        return math.exp(-first_crossing(np.log(budgets), y_tokenized, y[0]))

    return _estimate_curves(run, speedup, baseline, tokenized, (1.0, 1 / budgets[0]))


def _estimate_curves(
    run: Run, speedup: Any, baseline: list[Sample], tokenized: list[Sample], ends: tuple[float, float]
) -> Measured:
    """A speed-up from two curves: 0 below the ends, infinite above them."""

    def statistic(*arrays: Any) -> Array:
        stacked = np.stack(np.broadcast_arrays(*arrays))
        columns = stacked.reshape(len(arrays), -1).T
        found = [speedup(column[: len(baseline)], column[len(baseline) :]) for column in columns]
        return np.asarray(found).reshape(stacked.shape[1:])

    return estimate(run, statistic, [*baseline, *tokenized], log=True, ends=ends)


def _curve(run: Run, curves: pd.DataFrame, subject: str, metric: str) -> tuple[Array, list[Sample]]:
    """The steps of an SAE's checkpoints, and the metric at each."""
    rows = _metric_of(curves[(curves["step"] > 0) | (curves["metric"] == "failed")], subject, metric, "curves")
    by_step = [(int(str(step)), of_step.sort_values("seed")) for step, of_step in rows.groupby("step")]
    if len({tuple(of_step["seed"]) for _, of_step in by_step}) > 1:
        raise NotMeasuredError(f"the curves of {subject} have other steps for other seeds")
    return np.array([float(step) for step, _ in by_step]), [sample(run, of_step) for _, of_step in by_step]


def _at_layer(run: Run, block: str, layer: int) -> pd.DataFrame:
    rows = table_of(run, block)
    return keep(rows, rows["layer"] == layer, f"block {block!r} has no layer {layer}")


def _metric_of(rows: pd.DataFrame, subject: str, metric: str, block: str = "headline") -> pd.DataFrame:
    rows = rows[rows["subject"] == subject]
    refuse_failed(rows)
    return keep(rows, rows["metric"] == metric, f"block {block!r} has no {metric} of {subject}").sort_values("seed")


def _same(column: "pd.Series[Any]", value: Any) -> Array:
    """Where a column has a value; missing values are equal."""
    return np.asarray(column.isna() if pd.isna(value) else (column == value).fillna(False), dtype=bool)
