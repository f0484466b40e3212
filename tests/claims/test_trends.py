"""How a ratio changes along a setting, against cases worked by hand."""

from typing import Any

import pytest
from fixtures.measured import near, row, run_of, sums, table, take_one

OF = {"block": "growth", "metric": "nmse", "points": {"table": "learned"}}
TREND = {
    "kind": "trend",
    "along": "budget",
    "of": OF,
    "to": {"points": {"table": "none"}},
}


def growth(baseline: dict[float, float], tokenized: dict[float, float], seed: int = 0) -> list[dict[str, Any]]:
    """Rows of a baseline and a tokenized SAE by budget."""
    return [
        row(f"topk-k4-x4-{kind}-budget{budget:g}", "nmse", value, table=kind, budget=budget, seed=seed)
        for kind, values in (("none", baseline), ("learned", tokenized))
        for budget, value in values.items()
    ]


def test_a_trend_is_the_factor_for_each_doubling() -> None:
    # The ratios are 1/2, 5/8 and 25/32: a factor of 5/4 each time.
    rows = growth({0.25: 0.4, 0.5: 0.8, 1: 1.6}, {0.25: 0.2, 0.5: 0.5, 1: 1.25})
    assert take_one(run_of(growth=table(*rows)), **TREND)[:3] == near((1.25, 1.25, 1.25))
    # By least squares: log2 of the ratios is -2, 0 and -1 at -2, -1 and 0, so the slope is 1/2.
    rows = growth({0.25: 1, 0.5: 1, 1: 1}, {0.25: 0.25, 0.5: 1, 1: 0.5})
    assert take_one(run_of(growth=table(*rows)), **TREND).value == near(2**0.5)


def test_a_trend_takes_the_budgets_that_both_have() -> None:
    rows = growth({0.125: 9, 0.5: 0.4, 1: 0.4}, {0.5: 0.2, 1: 0.4, 2: 7})
    assert take_one(run_of(growth=table(*rows)), **TREND).value == near(2)


def test_a_trend_is_of_means_over_seeds_and_paired_over_documents() -> None:
    rows = [
        *growth({0.5: 0.4, 1: 0.4}, {0.5: 0.2, 1: 0.2}),
        *growth({0.5: 1.2, 1: 1.2}, {0.5: 0.6, 1: 0.6}, seed=1),
    ]
    found = {}
    for one in rows:
        found[1, one["subject"], one["seed"], None] = sums(nmse=[(one["value"] * w, 1.0) for w in (1.0, 3.0, 20.0)])
    measured = take_one(run_of(found, growth=table(*rows)), **TREND)
    assert measured[:5] == (*[near(1)] * 3, ("documents",), 2)


def test_a_trend_without_two_budgets_is_not_measured() -> None:
    one = run_of(growth=table(*growth({1: 0.4, 0.5: 0.4}, {1: 0.2})))
    assert take_one(one, **TREND).missing == "block 'growth' has fewer than two values of budget to compare"
    zero = run_of(growth=table(*growth({0.5: 0.4, 1: 0.0}, {0.5: 0.4, 1: 0.2})))
    assert take_one(zero, **TREND).missing == "a nmse is not above zero, so it has no logarithm"


def test_a_trend_leaves_its_setting_open() -> None:
    fixed = OF | {"points": {"table": "learned", "budget": 1}}
    with pytest.raises(ValueError, match="need points, which leave budget open"):
        take_one(run_of(), **TREND | {"of": fixed})
