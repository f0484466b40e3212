"""Verdicts on a measure at a layer, a check and a claim."""

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

from tsae.claims.ledger import Check, Direction
from tsae.claims.replicates import Measured

Verdict = Literal["reproduced", "direction holds", "inconclusive", "does not hold", "not comparable here"]
# From best to worst; the worst of several counts.
VERDICTS: tuple[Verdict, ...] = ("reproduced", "direction holds", "inconclusive", "does not hold")
NOT_COMPARABLE: Verdict = "not comparable here"
SLACK = 1e-9  # a value exactly at the end of a tolerance is within it
MOST = 1000  # a larger factor of documents or seeds is reported as "more than"


class Judged(NamedTuple):
    """A verdict and its reason, which may be empty."""

    verdict: Verdict
    reason: str = ""


def judge(check: Check, measured: Measured) -> Judged:
    """The verdict on a check at a layer.

    A direction holds if the whole interval is on its side of the bound. A level is reproduced if the whole interval is within the
    tolerance, a test of equivalence that an interval wider than the tolerance cannot pass.
    """
    if measured.missing:
        return Judged(NOT_COMPARABLE, measured.missing)
    if check.direction is not None:
        on_its_side = _judge_direction(check.direction, measured)
        if on_its_side.verdict != "direction holds":
            return on_its_side
    without_level: Verdict = NOT_COMPARABLE if check.direction is None else "direction holds"
    if check.not_comparable is not None:
        return Judged(without_level, check.not_comparable)
    if not isinstance(check.published, tuple) or check.tolerance is None:
        return Judged(without_level, "no number was published")
    level = _judge_level(*check.published, check.tolerance, measured)
    if level.verdict == "reproduced" or check.direction is None:
        return level
    return Judged("direction holds", level.reason)


def _judge_direction(direction: Direction, measured: Measured) -> Judged:
    match direction:
        case Direction(below=float() as bound):
            side, holds, fails = "below", measured.high < bound, measured.low > bound
        case Direction(above=float() as bound):
            side, holds, fails = "above", measured.low > bound, measured.high < bound
    if holds:
        return Judged("direction holds")
    if fails:
        return Judged("does not hold", f"not {side} {bound:g}")
    return Judged("inconclusive", f"the interval includes {bound:g}; {times_more(measured, bound)}")


def _judge_level(low: float, high: float, tolerance: float, measured: Measured) -> Judged:
    least, most = low - tolerance - SLACK, high + tolerance + SLACK
    if least <= measured.low and measured.high <= most:
        return Judged("reproduced")
    if measured.high < least or measured.low > most:
        side, outside = ("below", low - measured.value) if measured.high < least else ("above", measured.value - high)
        return Judged("does not hold", f"{outside:.3g} {side} what was published")
    reaches = "within" if least <= measured.value <= most else "outside"
    edge = min((least, most), key=lambda end: abs(end - measured.value))
    reason = f"the value is {reaches} the tolerance, and the interval includes its end {edge:.3g}"
    return Judged("inconclusive", f"{reason}; {times_more(measured, edge)}")


def times_more(measured: Measured, bound: float) -> str:
    """How many times the documents or seeds would exclude the bound from the interval: (half-width / effect)^2.

    The width falls with the square root of their number; the variance says which of the two matter.
    """
    end = measured.low if measured.value > bound else measured.high
    value, towards, at = measured.value, end, bound
    if measured.log and min(value, end, bound) > 0:
        value, towards, at = math.log(value), math.log(end), math.log(bound)
    effect = abs(value - at)
    what = [", ".join(measured.units)] * bool(measured.units and measured.of_seeds < 0.75)
    what += ["seeds"] * (measured.n_seeds > 1 and measured.of_seeds > 0.25)
    of_what = " and ".join(what) or "data"
    if not math.isfinite(effect) or not math.isfinite(towards):
        return "what it would take cannot be told"
    times = math.inf if effect == 0 else ((value - towards) / effect) ** 2
    if times > MOST:
        return f"at this value it would take more than {MOST} times the {of_what}"
    return f"at this value it would take about {times:.{int(times < 10)}f} times the {of_what}"


def worst(verdicts: Iterable[Verdict], failed: bool = False) -> Verdict:
    """The worst comparable verdict. If the training of a needed SAE `failed`, only `does not hold` stands."""
    comparable = [verdict for verdict in verdicts if verdict in VERDICTS]
    found = max(comparable, key=VERDICTS.index, default=NOT_COMPARABLE)
    return NOT_COMPARABLE if failed and found != "does not hold" else found
