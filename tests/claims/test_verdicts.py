"""Verdicts on what was measured at a layer."""

import math
from typing import Any

import pytest

from tsae.claims.ledger import Check
from tsae.claims.replicates import Measured
from tsae.claims.verdicts import judge, times_more, worst

VALUE = {"kind": "value", "of": {"metric": "nmse", "subject": "tokenized"}}
OVER = (("documents",), 3)  # units and seeds


def check(**fields: Any) -> Check:
    return Check.model_validate({"name": "a check", "measure": VALUE, "published": None} | fields)


def around(value: float, half_width: float, **fields: Any) -> Measured:
    return Measured(value, value - half_width, value + half_width, *OVER, **fields)


BELOW = {"direction": {"below": 0.8}}
LEVEL = {"published": 0.5, "tolerance": 0.1}


@pytest.mark.parametrize(
    ("value", "half_width", "verdict", "reason"),
    [
        (0.5, 0.05, "reproduced", ""),
        (0.55, 0.05, "reproduced", ""),  # the tolerance is inclusive
        (0.7, 0.05, "direction holds", "0.2 above what was published"),
        (0.3, 0.05, "direction holds", "0.2 below what was published"),
        # The value is right, but the interval is too wide to say that the level is: ((0.1 / 0.04)^2 times as much.
        (
            0.56,
            0.1,
            "direction holds",
            "the value is within the tolerance, and the interval includes its end 0.6; "
            "at this value it would take about 6.2 times the documents",
        ),
        (
            0.62,
            0.04,
            "direction holds",
            "the value is outside the tolerance, and the interval includes its end 0.6; "
            "at this value it would take about 4.0 times the documents",
        ),
        (
            0.55,
            0.3,
            "inconclusive",
            "the interval includes 0.8; at this value it would take about 1.4 times the documents",
        ),
        (
            0.85,
            0.1,
            "inconclusive",
            "the interval includes 0.8; at this value it would take about 4.0 times the documents",
        ),
        (0.95, 0.05, "does not hold", "not below 0.8"),
    ],
)
def test_a_direction_and_a_level(value: float, half_width: float, verdict: str, reason: str) -> None:
    assert judge(check(**BELOW, **LEVEL), around(value, half_width)) == (verdict, reason)


@pytest.mark.parametrize(
    ("fields", "value", "half_width", "verdict"),
    [
        ({"direction": {"above": 0.4}}, 0.5, 0.01, "direction holds"),  # no number to compare with
        ({"direction": {"above": 0.4}}, 0.4, 0.01, "inconclusive"),
        ({"direction": {"above": 0.4}}, 0.3, 0.01, "does not hold"),
        ({"published": 0.5, "not_comparable": "another", "direction": {"above": 0.4}}, 0.5, 0.01, "direction holds"),
        ({"published": 0.5, "not_comparable": "another", "direction": {"above": 0.4}}, 0.3, 0.01, "does not hold"),
        ({"published": 0.5, "not_comparable": "another"}, 0.5, 0.01, "not comparable here"),
        ({"not_comparable": "a floor"}, 0.5, 0.01, "not comparable here"),
        # A level is all that is claimed.
        ({"published": [0.4, 0.5], "tolerance": 0.02}, 0.5, 0.01, "reproduced"),
        ({"published": [0.4, 0.5], "tolerance": 0.02}, 0.5, 0.03, "inconclusive"),
        ({"published": [0.4, 0.5], "tolerance": 0.02}, 0.53, 0.03, "inconclusive"),
        ({"published": [0.4, 0.5], "tolerance": 0.02}, 0.55, 0.01, "does not hold"),
        ({"published": [0.4, 0.5], "tolerance": 0.02}, 0.35, 0.01, "does not hold"),
    ],
)
def test_either_alone(fields: dict[str, Any], value: float, half_width: float, verdict: str) -> None:
    assert judge(check(**fields), around(value, half_width)).verdict == verdict


def test_a_bound_of_the_measure_is_no_level() -> None:
    # At least 8 times: above 1, and whether it is 6 to 13 is open.
    beyond = Measured(math.inf, 7.5, math.inf, *OVER, ends=(1, 8))
    judged = judge(check(published=[6, 13], tolerance=0.5, direction={"above": 1}), beyond)
    assert judged.verdict == "direction holds"
    assert judged.reason.endswith("what it would take cannot be told")


def test_what_is_missing_is_not_comparable() -> None:
    missing = Measured(math.nan, math.nan, math.nan, missing="this profile has no block 'pareto'")
    assert judge(check(**BELOW), missing) == ("not comparable here", "this profile has no block 'pareto'")


@pytest.mark.parametrize(("of_seeds", "what"), [(0.1, "documents"), (0.5, "documents and seeds"), (0.9, "seeds")])
def test_what_it_would_take_is_more_of_what_the_variance_comes_from(of_seeds: float, what: str) -> None:
    measured = Measured(0.9, 0.8, 1.2, *OVER, of_seeds=of_seeds)
    assert times_more(measured, 1) == f"at this value it would take about 9.0 times the {what}"


def test_what_it_would_take_is_counted_in_logarithms_where_the_interval_is() -> None:
    # From 1/2 to 4 around 1: two halvings and two doublings, and the bound 2 is one doubling away.
    measured = Measured(1.0, 0.25, 4.0, ("documents",), log=True)
    assert times_more(measured, 2) == "at this value it would take about 4.0 times the documents"
    assert times_more(measured, 1.0) == "at this value it would take more than 1000 times the documents"


def test_several_have_the_worst_verdict_of_what_is_comparable() -> None:
    assert worst(["reproduced", "direction holds"]) == "direction holds"
    assert worst(["inconclusive", "reproduced", "not comparable here"]) == "inconclusive"
    assert worst(["inconclusive", "does not hold"]) == "does not hold"
    assert worst(["not comparable here"]) == worst([]) == "not comparable here"
    assert worst(["reproduced", "not comparable here"], failed=True) == "not comparable here"
    assert worst(["does not hold", "not comparable here"], failed=True) == "does not hold"
