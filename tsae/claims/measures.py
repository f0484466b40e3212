"""Measures: the numbers that checks ask for, each kind declared as data and computed layer by layer from means over seeds."""

import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from tsae.claims.criteria import Change, NotMeasuredError, Selection, TrainingFailedError
from tsae.claims.pareto import Pareto, layers_of_pareto, measure_pareto
from tsae.claims.phrases import Phrases, measure_phrases
from tsae.claims.replicates import Array, Measured, Sample, estimate, sample
from tsae.claims.selection import Run, layers_of, select, table_of
from tsae.claims.speedups import EqualLossSpeedUp, SpeedUp, measure_equal_loss_speedup, measure_speedup
from tsae.claims.trends import Trend, measure_trend
from tsae.measure.definitions import is_share
from tsae.profile.section import Section


class Value(Section):
    """A metric."""

    kind: Literal["value"]
    of: Selection


class Comparison(Section):
    """The ratio or difference of two metrics, paired over documents and seeds where both have them."""

    kind: Literal["ratio", "difference"]
    of: Selection
    to: Change = Field(description="The divisor or subtrahend; missing keys are those of `of`")
    expansions_apart: float = Field(
        1.0, ge=1, description="The check needs a second expansion of at least this many times the first"
    )

    @property
    def second(self) -> Selection:
        """The whole second selection."""
        return self.of.changed(self.to)


class RatioChange(Section):
    """The ratio `of` / `to` at one place over the same ratio at another, paired over documents and seeds."""

    kind: Literal["ratio_change"]
    of: Selection
    to: Change = Field(description="The divisor; missing keys are those of `of`")
    than: Change = Field(description="What is another in both parts of the ratio that is divided by, such as `at`")


Measure = Annotated[
    Value | Comparison | RatioChange | Trend | Pareto | SpeedUp | EqualLossSpeedUp | Phrases,
    Field(discriminator="kind"),
]


def measure(declared: Measure, run: Run) -> list[Measured]:
    """Compute a measure at each layer. A layer without a number says why; if all have one reason, one row says it."""
    try:
        match declared:
            case Value():
                return _by_layer(layers_of(run, declared.of), lambda layer: _value(run, declared, layer))
            case Comparison():
                return _by_layer(layers_of(run, declared.of), lambda layer: _compare(run, declared, layer))
            case RatioChange():
                return _by_layer(layers_of(run, declared.of), lambda layer: _compare_ratios(run, declared, layer))
            case Trend():
                return _by_layer(layers_of(run, declared.of), lambda layer: measure_trend(run, declared, layer))
            case Pareto():
                return _by_layer(layers_of_pareto(run, declared), lambda layer: measure_pareto(run, declared, layer))
            case SpeedUp():
                layers = table_of(run, "curves")["layer"].unique()
                return _by_layer(layers, lambda layer: measure_speedup(run, declared, layer))
            case EqualLossSpeedUp():
                layers = table_of(run, declared.block)["layer"].unique()
                return _by_layer(layers, lambda layer: measure_equal_loss_speedup(run, declared, layer))
            case Phrases():
                layers = table_of(run, "encoder")["layer"].unique()
                return _by_layer(layers, lambda layer: measure_phrases(run, declared, layer))
    except NotMeasuredError as error:
        return [_not_measured(error)]


def _by_layer(layers: Iterable[int], take: Callable[[int], Measured]) -> list[Measured]:
    found = []
    for layer in sorted(int(layer) for layer in layers):
        try:
            measured = take(layer)
        except NotMeasuredError as error:
            measured = _not_measured(error)
        found.append(measured if measured.layer else measured._replace(layer=str(layer)))
    if found[0].missing and len({measured.missing for measured in found}) == 1:
        return [found[0]._replace(layer="" if len(found) > 1 else found[0].layer)]
    return found


def _not_measured(error: NotMeasuredError) -> Measured:
    failed = error.saes if isinstance(error, TrainingFailedError) else ()
    return Measured(math.nan, math.nan, math.nan, missing=str(error), failed=failed)


def _value(run: Run, declared: Value, layer: int) -> Measured:
    measured = estimate(run, lambda values: values, [sample(run, select(run, declared.of, layer))])
    if is_share(declared.of.metric):
        return measured._replace(low=max(measured.low, 0.0), high=min(measured.high, 1.0))
    return measured


def _compare(run: Run, declared: Comparison, layer: int) -> Measured:
    of, to = declared.of, declared.second
    other = layers_of(run, to)[0] if to.layer is not None else layer
    first, second = select(run, of, layer), select(run, to, other)
    if declared.expansions_apart > 1:
        smaller, larger = first["expansion"].max(), second["expansion"].min()
        if larger < declared.expansions_apart * smaller:
            raise NotMeasuredError(f"expansion {larger:g} is not {declared.expansions_apart:g} times {smaller:g}")
    elif first.index.equals(second.index) and of.block == to.block:
        raise NotMeasuredError("this profile has nothing to compare with: both selections are the same")
    samples = [sample(run, rows) for rows in (first, second)]
    sign = "-" if declared.kind == "difference" else "/"
    label = f"{layer}" if other == layer else f"{layer} {sign} {other}"
    if declared.kind == "difference":
        return estimate(run, lambda a, b: a - b, samples)._replace(layer=label)
    _refuse_zero(samples[1], to)
    return estimate(run, _ratio, samples, log=True)._replace(layer=label)


def _compare_ratios(run: Run, declared: RatioChange, layer: int) -> Measured:
    both = (declared.of, declared.of.changed(declared.to))
    selections = [*both, *(selection.changed(declared.than) for selection in both)]
    chosen = [select(run, selection, layer) for selection in selections]
    if chosen[0].index.equals(chosen[2].index):
        raise NotMeasuredError("this profile has nothing to compare with: both ratios are the same")
    samples = [sample(run, rows) for rows in chosen]
    for divisor, selection in zip(samples[1:], selections[1:], strict=True):
        _refuse_zero(divisor, selection)
    return estimate(run, lambda a, b, c, d: _ratio(_ratio(a, b), _ratio(c, d)), samples, log=True)


def _refuse_zero(divisor: Sample, of: Selection) -> None:
    if divisor.values.mean() <= 0:
        raise NotMeasuredError(f"{of.metric} of {of.subject or of.points} is not above zero, so there is no ratio")


def _ratio(a: Any, b: Any) -> Array:
    return np.where(b > 0, np.divide(a, b), math.inf)
