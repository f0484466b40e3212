"""Measures: numbers taken from the tables of a run, declared as data.

A claim's check says what it measures as a mapping with a `kind`; here each kind is described and computed.
"""

import math
from typing import Annotated, Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field

from tsae.section import Section
from tsae.selection import Change, Metric, NotMeasuredError, Run, Selection, keep, refuse_failed, select, table_of
from tsae.sweep import ArchitectureName

BOOTSTRAP = 1000  # samples


class Value(Section):
    """A metric: mean over layers and seeds; the interval is the hull of theirs."""

    kind: Literal["value"]
    of: Selection


class Comparison(Section):
    """A metric over or less another, paired by layer and seed.

    Each pair's interval takes the far ends of both, (low / high of the other, high / low of the other); that of the
    whole is their hull.
    """

    kind: Literal["ratio", "difference"]
    of: Selection
    to: Change = Field(description="What is divided by or taken away; keys left out are those of `of`")
    expansions_apart: float = Field(
        1.0,
        ge=1,
        description="The second's expansion must be at least this many times the first's for the check to say something",
    )

    @property
    def second(self) -> Selection:
        """The whole second selection."""
        given = {field: value for field, value in self.to if value is not None}
        if "points" in given or "subject" in given:
            given = {"points": None, "subject": None} | given
        return self.of.model_copy(update=given)


class Pareto(Section):
    """Ratio of a metric, tokenized / baseline, at equal L0.

    Between the baseline's points log(metric) is linear in log(L0). The geometric mean is over the tokenized points whose L0
    is within the baseline's range.
    """

    kind: Literal["pareto"]
    architecture: ArchitectureName
    metric: Metric
    table: Literal["fixed", "learned"] = "learned"


class SpeedUp(Section):
    """How many times sooner the tokenized headline SAE reaches the baseline's final value; the interval is the range."""

    kind: Literal["speedup"]
    metric: Metric


class Phrases(Section):
    """What an encoder without the unigram direction changes on phrases: mean difference of a column of the phrase tables.

    Paired phrase by phrase, with a 95% bootstrap interval over phrases; over all layers and seeds.
    """

    kind: Literal["phrases"]
    table: Literal["none", "fixed", "learned"]
    column: Literal["score", "mean_recall"]


Measure = Annotated[Value | Comparison | Pareto | SpeedUp | Phrases, Field(discriminator="kind")]


class Measured(NamedTuple):
    """What a measure found."""

    value: float  # NaN if it failed
    low: float
    high: float
    n: int  # pairs or points
    failed: str = ""  # why there is no value, where that itself refutes the claim


def measure(declared: Measure, run: Run) -> Measured:
    """Compute a measure.

    Raises:
        NotMeasuredError: the run lacks something that it needs.
    """
    match declared:
        case Value():
            rows = select(run, declared.of)
            return Measured(rows["value"].mean(), rows["low"].min(), rows["high"].max(), len(rows))
        case Comparison():
            return _compare(run, declared)
        case Pareto():
            return _pareto(run, declared)
        case SpeedUp():
            return _speed_up(run, declared)
        case Phrases():
            return _phrases(run, declared)


def _compare(run: Run, measure: Comparison) -> Measured:
    of, to = measure.of, measure.second
    first, second = select(run, of), select(run, to)
    if measure.expansions_apart > 1:
        smaller, larger = first["expansion"].max(), second["expansion"].min()
        if larger < measure.expansions_apart * smaller:
            raise NotMeasuredError(f"expansion {larger:g} is not {measure.expansions_apart:g} times {smaller:g}")
    elif first.index.equals(second.index) and of.block == to.block:
        raise NotMeasuredError("this profile has nothing to compare with: both selections are the same")
    # A chosen layer has no partner at the same layer, and what is no SAE has no seed: these pair with all.
    pinned = {"layer"} if of.layer is not None or to.layer is not None else set()
    keys = [
        key for key in ("layer", "seed") if key not in pinned and first[key].notna().all() and second[key].notna().all()
    ]
    columns = [*keys, "value", "low", "high"]
    pairs = first[columns].merge(
        second[columns], on=keys or None, how="inner" if keys else "cross", suffixes=("", "_to")
    )
    pairs = keep(pairs, pairs["value"].notna(), f"the two have no {' and '.join(keys)} in common")
    value, low, high, value_to, low_to, high_to = (
        pairs[column].to_numpy(float) for column in ("value", "low", "high", "value_to", "low_to", "high_to")
    )
    if measure.kind == "difference":
        return Measured((value - value_to).mean(), (low - high_to).min(), (high - low_to).max(), len(pairs))
    if (value_to <= 0).any():
        raise NotMeasuredError(f"{to.metric} of {to.subject or to.points} is not above zero, so there is no ratio")
    largest = math.inf if (low_to <= 0).any() else (high / low_to).max()
    return Measured((value / value_to).mean(), (low / high_to).min(), largest, len(pairs))


def ratios_at_equal_l0(baseline: pd.DataFrame, tokenized: pd.DataFrame) -> pd.DataFrame:
    """Ratio of tokenized points to a baseline's curve at their L0 (C1).

    Args:
        baseline: points with columns l0, value, low, high; between them log(value) is linear in log(l0).
        tokenized: points with the same columns.

    Returns:
        l0, value, low, high: a row per tokenized point within the baseline's range of L0, in ascending order; the ends of
        a ratio take the far ends of both, and `high` is infinite where the baseline's interval reaches zero.

    Raises:
        NotMeasuredError: a value is not above zero, so that it has no logarithm.
    """
    baseline, tokenized = (points[points["l0"] > 0].sort_values("l0") for points in (baseline, tokenized))
    if (pd.concat([baseline["value"], tokenized["value"]]) <= 0).any():
        raise NotMeasuredError("a value is not above zero, so it has no logarithm")
    # Of two TopK SAEs with one k, one may have a little fewer active features: a ReLU follows.
    inside = tokenized["l0"].between(0.98 * baseline["l0"].min(), 1.02 * baseline["l0"].max())
    tokenized = tokenized[inside]

    def at_their_l0(column: str) -> np.ndarray:
        x, y = (np.log(baseline[name].to_numpy(float)) for name in ("l0", column))
        curve: np.ndarray = np.exp(np.interp(np.log(tokenized["l0"].to_numpy(float)), x, y))
        return curve

    return pd.DataFrame(
        {
            "l0": tokenized["l0"],
            "value": tokenized["value"] / at_their_l0("value"),
            "low": tokenized["low"] / at_their_l0("high"),
            "high": math.inf if (baseline["low"] <= 0).any() else tokenized["high"] / at_their_l0("low"),
        }
    ).reset_index(drop=True)


def geometric_mean(values: "pd.Series[float]") -> float:
    """Geometric mean of positive values."""
    return math.exp(np.log(values.to_numpy(float)).mean())


def _pareto(run: Run, measure: Pareto) -> Measured:
    rows = table_of(run, "pareto")
    rows = keep(
        rows, rows["architecture"] == measure.architecture, f"block 'pareto' has no architecture {measure.architecture}"
    )
    refuse_failed(rows[rows["table"].isin(["none", measure.table])])
    by = ["layer", "seed", "subject"]
    l0 = rows.loc[rows["metric"] == "l0", [*by, "value"]].rename(columns={"value": "l0"})
    points = rows[rows["metric"] == measure.metric].merge(l0, on=by)
    points = points.assign(low=points["low"].fillna(points["value"]), high=points["high"].fillna(points["value"]))
    curves = {}
    for table in ("none", measure.table):
        missing = f"block 'pareto' has no {measure.metric} of {measure.architecture} with table {table}"
        curves[table] = dict(iter(keep(points, points["table"] == table, missing).groupby(["layer", "seed"])))
    found = [
        ratios_at_equal_l0(curves["none"][key], tokenized)
        for key, tokenized in curves[measure.table].items()
        if key in curves["none"]
    ]
    ratios = pd.concat(found) if found else pd.DataFrame(columns=["value"])
    ratios = keep(
        ratios, ratios["value"].notna(), "no tokenized point has an L0 within the range of the baseline's points"
    )
    return Measured(geometric_mean(ratios["value"]), ratios["low"].min(), ratios["high"].max(), len(ratios))


def speedups(curves: pd.DataFrame, baseline: str, tokenized: str, metric: str) -> pd.DataFrame:
    """How many times sooner the tokenized SAE reaches the baseline's final value of a metric that falls (C2).

    Both reach it at the first crossing, linear in log(step) between two points of a curve; an SAE that is there at
    its first point has that point's step, so the speed-up then is a lower bound.

    Args:
        curves: the table of training curves.
        baseline: subject whose final value is the mark.
        tokenized: subject that is compared.
        metric: what is to fall to the mark.

    Returns:
        layer, seed, steps_baseline, steps_tokenized, speedup: a row per layer and seed that both have; the last two are NaN
        where the tokenized SAE never reaches the mark.
    """
    rows = curves[(curves["metric"] == metric) & (curves["step"] > 0)].sort_values("step")
    curve_of = dict(iter(rows.groupby(["subject", "layer", "seed"])))
    found = []
    for (subject, layer, seed), curve in curve_of.items():
        if subject != baseline or (tokenized, layer, seed) not in curve_of:
            continue
        mark = curve["value"].iloc[-1]
        steps = [_first_crossing(c, mark) for c in (curve, curve_of[tokenized, layer, seed])]
        found.append((layer, seed, *steps, steps[0] / steps[1]))
    return pd.DataFrame(found, columns=["layer", "seed", "steps_baseline", "steps_tokenized", "speedup"])


def _first_crossing(curve: pd.DataFrame, mark: float) -> float:
    """Step at which a curve first is at or below a mark, NaN if never."""
    steps, values = curve["step"].to_numpy(float), curve["value"].to_numpy(float)
    reached = np.flatnonzero(values <= mark)
    if not len(reached):
        return math.nan
    first = int(reached[0])
    if first == 0:
        return float(steps[0])
    before, after = values[first - 1], values[first]
    share = (before - mark) / (before - after)
    return float(steps[first - 1] * (steps[first] / steps[first - 1]) ** share)


def _speed_up(run: Run, measure: SpeedUp) -> Measured:
    curves = table_of(run, "curves")
    refuse_failed(curves[curves["subject"].isin([run.baseline, run.tokenized])])
    found = speedups(curves, run.baseline, run.tokenized, measure.metric)
    found = keep(
        found, found["steps_baseline"].notna(), f"block 'curves' has no {measure.metric} of both headline SAEs"
    )
    never = found[found["steps_tokenized"].isna()]
    speedup = found["speedup"]
    if len(never):
        where = ", ".join(
            f"layer {layer} seed {seed}" for layer, seed in zip(never["layer"], never["seed"], strict=True)
        )
        failed = f"the tokenized SAE never reaches the baseline's final {measure.metric} at {where}"
        return Measured(math.nan, math.nan, speedup.max(), len(found), failed)
    return Measured(speedup.mean(), speedup.min(), speedup.max(), len(found))


def _phrases(run: Run, measure: Phrases) -> Measured:
    saes = table_of(run, "encoder")
    refuse_failed(saes[saes["table"] == measure.table])
    rows = table_of(run, "phrases")
    rows = keep(rows, rows["table"] == measure.table, f"block 'encoder' has no phrases of a table {measure.table}")
    without = rows["encoder_input"] == "without_unigram"
    keys = ["layer", "seed", "text"]
    pairs = rows[without].merge(rows[~without], on=keys, suffixes=("", "_with"))
    pairs = keep(
        pairs, pairs[measure.column].notna(), "no phrase was measured both with and without the unigram direction"
    )
    differences = (
        (pairs[measure.column] - pairs[f"{measure.column}_with"]).groupby(pairs["text"]).mean().to_numpy(float)
    )
    draws = np.random.default_rng(0).choice(differences, (BOOTSTRAP, len(differences)))
    low, high = np.quantile(draws.mean(1), [0.025, 0.975])
    return Measured(differences.mean(), float(low), float(high), len(differences))
