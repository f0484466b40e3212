"""How a ratio of two metrics changes along a setting of the sweep."""

from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from tsae.claims.criteria import Change, NotMeasuredError, Selection
from tsae.claims.replicates import TINY, Array, Measured, Sample, estimate, sample
from tsae.claims.selection import Run, candidates, select
from tsae.profile.section import Section


class Trend(Section):
    """The factor by which a ratio of two metrics changes when a setting doubles, paired over documents and seeds.

    It is 2 to the slope of log2(ratio) against log2(setting) by least squares, over the values of the setting that both have.
    """

    kind: Literal["trend"]
    along: Literal["budget", "distinct", "k", "expansion"] = Field(description="The setting")
    of: Selection
    to: Change = Field(description="The divisor; missing keys are those of `of`")

    @model_validator(mode="after")
    def _check_points(self) -> "Trend":
        for selection in (self.of, self.of.changed(self.to)):
            if selection.points is None or getattr(selection.points, self.along) is not None:
                raise ValueError(f"of and to need points, which leave {self.along} open")
        return self


def measure_trend(run: Run, measure: Trend, layer: int) -> Measured:
    """Compute the trend at a layer.

    Raises:
        NotMeasuredError: fewer than two values of the setting are there, or a metric is not above zero.
    """
    arms = [_along(run, selection, measure.along, layer) for selection in (measure.of, measure.of.changed(measure.to))]
    values = sorted(arms[0].keys() & arms[1].keys())
    if len(values) < 2:
        raise NotMeasuredError(f"block {measure.of.block!r} has fewer than two values of {measure.along} to compare")
    samples = [arm[value] for arm in arms for value in values]
    if min(s.values.mean() for s in samples) <= 0:
        raise NotMeasuredError(f"a {measure.of.metric} is not above zero, so it has no logarithm")
    x = np.log2(values)
    weights = (x - x.mean()) / np.square(x - x.mean()).sum()

    def factor(*arrays: Any) -> Array:
        logs = np.log2(np.maximum(np.stack(np.broadcast_arrays(*arrays)), TINY))
        of, to = logs[: len(values)], logs[len(values) :]
        return np.asarray(np.exp2(np.tensordot(weights, of - to, 1)))

    return estimate(run, factor, samples, log=True)


def _along(run: Run, selection: Selection, along: str, layer: int) -> dict[float, Sample]:
    """The samples of a selection by the value of a setting."""
    rows = candidates(run, selection)
    found = {}
    for value in sorted(rows.loc[rows["layer"] == layer, along].dropna().unique()):
        points = {"points": selection.points.model_copy(update={along: float(value)})} if selection.points else {}
        found[float(value)] = sample(run, select(run, selection.model_copy(update=points), layer))
    return found
