"""Comparisons at equal L0, against cases worked by hand."""

from typing import Any

import numpy as np
from fixtures.measured import near, row, run_of, sums, table, take, take_one

from tsae.claims.pareto import inside, ratio_at_equal_l0

PARETO = {"kind": "pareto", "architecture": "topk", "metric": "nmse"}


def test_ratios_at_equal_l0_follow_the_power_law_between_points() -> None:
    # Between (1, 1) and (100, 0.01) the curve is 1 / l0, whatever the order of points.
    baseline = np.array([100.0, 1.0]), np.array([0.01, 1.0])
    ratio = ratio_at_equal_l0(*baseline, np.array([10.0, 4.0, 1.0]), np.array([0.05, 0.2, 0.9]))
    assert ratio == near((0.5 * 0.8 * 0.9) ** (1 / 3))


def test_an_l0_a_little_outside_counts_as_at_the_end() -> None:
    l0 = np.array([9.7, 9.9, 50.0, 101.0, 103.0])
    assert inside(np.array([100.0, 10.0]), l0).tolist() == [False, True, True, True, False]
    ratio = ratio_at_equal_l0(
        np.array([10.0, 100.0]), np.array([0.5, 0.1]), np.array([9.9, 101.0]), np.array([0.4, 0.05])
    )
    assert ratio == near((0.8 * 0.5) ** 0.5)


def curve(
    table: str, *values: tuple[float, float], layer: int = 1, seed: int = 0, **columns: Any
) -> list[dict[str, Any]]:
    """Points of a sweep: their L0 and NMSE."""
    settings: dict[str, Any] = {
        "architecture": "topk",
        "table": table,
        "encoder_input": "residual",
        "layer": layer,
        "seed": seed,
    } | columns
    suffix = "-remainder" if settings["encoder_input"] == "remainder" else ""
    name, sparsity = settings["architecture"], "l0_penalty" if settings["architecture"] == "jumprelu" else "k"
    return [
        row(f"{name}-{sparsity}{k}-x4-{table}{suffix}", metric, value, **settings | {sparsity: k})
        for k, (l0, nmse) in enumerate(values, start=1)
        for metric, value in (("l0", l0), ("nmse", nmse))
    ]


def test_each_layer_is_compared_with_its_own_baseline() -> None:
    rows = [
        *curve("none", (1, 1.0), (100, 0.01)),
        *curve("learned", (10, 0.08), (200, 0.001)),  # the second is out of range
        *curve("none", (1, 2.0), (100, 0.02), layer=2),
        *curve("learned", (10, 0.1), layer=2),
        *curve("learned", (10, 0.1), layer=3),  # no baseline there
    ]
    first, second, third = take(run_of(pareto=table(*rows)), **PARETO)
    assert [m.value for m in (first, second)] == near([0.8, 0.5])
    assert "no nmse of topk with table none" in third.missing and third.layer == "3"


def test_forms_of_the_encoder_are_compared_apart() -> None:
    rows = [
        *curve("none", (1, 1.0), (100, 0.01)),
        *curve("learned", (10, 0.08)),
        *curve("learned", (10, 0.06), encoder_input="remainder"),
    ]
    run = run_of(pareto=table(*rows))
    assert take_one(run, **PARETO).value == near(0.8)
    assert take_one(run, **PARETO, encoder_input="remainder").value == near(0.6)


def test_a_penalty_may_set_the_sparsity() -> None:
    rows = [
        *curve("none", (1, 1.0), (100, 0.01), architecture="jumprelu"),
        *curve("learned", (10, 0.08), (20, 0.04), architecture="jumprelu"),
    ]
    assert take_one(run_of(pareto=table(*rows)), **PARETO | {"architecture": "jumprelu"}).value == near(0.8)


def test_seeds_are_averaged_point_by_point() -> None:
    rows = [
        row
        for s in (0, 1, 2)
        for row in (*curve("none", (1, 1.0), (100, 0.01), seed=s), *curve("learned", (10, 0.07 + s / 100), seed=s))
    ]
    measured = take_one(run_of(pareto=table(*rows)), **PARETO)
    assert (measured.value, measured.over) == (near(0.8), "3 seeds")
    assert measured.low < 0.7 and measured.high > 0.9


def test_interpolation_is_paired_over_documents() -> None:
    # Documents differ tenfold, and at equal L0 the tokenized SAE is at 0.8 in each of them.
    weights = [1.0, 10.0, 4.0]
    found = {}
    for subject, l0, nmse in (
        ("topk-k1-x4-none", 1, 1.0),
        ("topk-k2-x4-none", 100, 0.01),
        ("topk-k1-x4-learned", 10, 0.08),
    ):
        found[1, subject, 0, None] = sums(l0=[(l0, 1.0)] * 3, nmse=[(nmse * w, 1.0) for w in weights])
    rows = [*curve("none", (1, 5.0), (100, 0.05)), *curve("learned", (10, 0.4))]
    measured = take_one(run_of(found, pareto=table(*rows)), **PARETO)
    assert measured[:4] == (*[near(0.8)] * 3, ("documents",))


def test_a_baseline_that_reaches_zero_on_some_documents_leaves_the_ratio_unbounded() -> None:
    # Resamples without the second document have a baseline at or below zero, as a small CE added may be.
    found = {
        (1, subject, 0, None): sums(l0=[(l0, 1.0)] * 2, nmse=values)
        for subject, l0, values in (
            ("topk-k1-x4-none", 1, [(-0.1, 1.0), (2.0, 1.0)]),
            ("topk-k2-x4-none", 100, [(-0.1, 1.0), (1.0, 1.0)]),
            ("topk-k1-x4-learned", 10, [(0.3, 1.0), (0.7, 1.0)]),
        )
    }
    rows = [*curve("none", (1, 0.95), (100, 0.45)), *curve("learned", (10, 0.5))]
    measured = take_one(run_of(found, pareto=table(*rows)), **PARETO)
    assert (measured.value, measured.high) == (near(0.5 / (0.95 * 0.45) ** 0.5), np.inf)
    assert 0 < measured.low < measured.value


def test_what_cannot_be_compared_says_why() -> None:
    def missing(*rows: dict[str, Any], **declared: Any) -> str:
        return take_one(run_of(pareto=table(*rows)), **PARETO | declared).missing

    both = [*curve("none", (1, 1.0), (100, 0.01)), *curve("learned", (10, 0.08))]
    assert missing(*both, architecture="relu") == "block 'pareto' has no architecture relu"
    assert missing(*both, table="fixed").startswith("block 'pareto' has no nmse of topk with table fixed")
    assert missing(*both, metric="fvu") == "there is no fvu of topk-k1-x4-none"
    assert missing(*curve("none", (1, 1.0), (5, 0.5)), *curve("learned", (10, 0.1))) == (
        "no tokenized point has an L0 within the range of the baseline's points"
    )
    assert missing(*curve("none", (1, 1.0), (100, 0.0)), *curve("learned", (10, 0.1))) == (
        "a value is not above zero, so it has no logarithm"
    )
    mixed = [*both, *curve("learned", (10, 0.1), (20, 0.05), lookup_scale=0.25)[2:]]
    assert missing(*mixed) == "block 'pareto' has several families, that differ in lookup_scale"
    failed = row("topk-k1-x4-none", "failed", 7.0, architecture="topk", table="none", encoder_input="residual")
    assert missing(*both[2:], failed) == "topk-k1-x4-none (layer 1, seed 0) failed in training"
