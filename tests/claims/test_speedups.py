"""Speed-ups on one schedule and at equal loss, against cases worked by hand."""

import math
from typing import Any

import pandas as pd
from fixtures.measured import BASELINE, TOKENIZED, near, row, run_of, sums, table, take, take_one

from tsae.claims.ledger import Check
from tsae.claims.speedups import mean_of_seeds, speedups
from tsae.claims.verdicts import judge

SPEEDUP = {"kind": "speedup", "metric": "nmse"}
EQUAL_LOSS = {"kind": "equal_loss_speedup", "metric": "nmse"}


def curves(**values: dict[int, float]) -> pd.DataFrame:
    """Training curves of layer 1, by subject and seed: `none_0={step: value}`."""
    return table(
        *(
            row(f"topk-k4-x4-{name.split('_')[0]}", "nmse", value, seed=int(name.split("_")[1]), step=step)
            for name, curve in values.items()
            for step, value in curve.items()
        )
    )


def test_speed_up_is_interpolated_in_the_logarithm_of_the_step() -> None:
    # The mark 0.2 is half-way between 0.3 and 0.1, so at the geometric mean of 10 and 40 steps.
    of = curves(none_0={10: 0.5, 40: 0.3, 160: 0.2}, learned_0={10: 0.3, 40: 0.1, 160: 0.05})
    (found,) = speedups(of, BASELINE, TOKENIZED, "nmse").to_dict("records")
    assert found == near({"layer": 1, "seed": 0, "steps_baseline": 160, "steps_tokenized": 20, "speedup": 8})
    assert take_one(run_of(curves=of), **SPEEDUP)[:3] == near((8, 8, 8))


def test_speed_up_takes_the_first_crossing_of_both() -> None:
    # The baseline was at its final value at step 40 already, and the order of rows does not matter.
    of = curves(none_0={160: 0.2, 10: 0.5, 40: 0.2, 80: 0.25}, learned_0={10: 0.2, 40: 0.3, 160: 0.1})
    (found,) = speedups(of, BASELINE, TOKENIZED, "nmse").to_dict("records")
    assert (found["steps_baseline"], found["steps_tokenized"], found["speedup"]) == near((40, 10, 4))
    # The tokenized SAE was there at its first checkpoint: four times, or more.
    measured = take_one(run_of(curves=of), **SPEEDUP)
    assert (measured.value, measured.ends) == (math.inf, near((1, 4)))


def test_speed_up_is_that_of_the_mean_of_the_seeds() -> None:
    of = curves(
        none_0={10: 0.5, 40: 0.2},
        learned_0={10: 0.3, 40: 0.1},
        none_1={10: 0.5, 40: 0.2},
        learned_1={10: 0.4, 40: 0.3},  # never there by itself
        learned_2={10: 0.1, 40: 0.1},  # has no partner
    )
    found = speedups(of, BASELINE, TOKENIZED, "nmse")
    assert found["seed"].tolist() == [0, 1]
    assert found["speedup"].tolist() == near([2, math.nan], nan_ok=True)
    measured = take_one(run_of(curves=of), **SPEEDUP)
    # The mean falls from 0.35 to 0.2 at the last step.
    assert (measured.value, measured.over) == (near(1), "2 seeds")
    assert measured.low == 0 < measured.high
    mean = speedups(mean_of_seeds(of[of["seed"] < 2]), BASELINE, TOKENIZED, "nmse")
    assert mean["speedup"].tolist() == near([1])


def test_speed_up_that_is_never_reached_refutes_the_claim() -> None:
    of = curves(none_0={10: 0.5, 40: 0.2}, learned_0={10: 0.5, 40: 0.3})
    measured = take_one(run_of(curves=of), **SPEEDUP)
    assert measured[:3] == (0, 0, 0)
    check = Check.model_validate({"name": "a", "measure": SPEEDUP, "published": None, "direction": {"above": 1}})
    assert judge(check, measured) == ("does not hold", "not above 1")


def test_replicates_of_curves_are_paired_over_documents() -> None:
    # In every document the tokenized SAE is twice as far, though documents differ.
    found = {}
    for subject, values in ((BASELINE, {10: 0.5, 40: 0.3, 160: 0.2}), (TOKENIZED, {10: 0.3, 40: 0.1, 160: 0.05})):
        for step, value in values.items():
            found[1, subject, 0, step] = sums(nmse=[(value * w, 1.0) for w in (1.0, 3.0, 20.0)])
    of = curves(none_0={10: 4, 40: 2.4, 160: 1.6}, learned_0={10: 2.4, 40: 0.8, 160: 0.4})
    assert take_one(run_of(found, curves=of), **SPEEDUP)[:4] == (*[near(8)] * 3, ("documents",))


def test_curves_that_lack_something_say_what() -> None:
    of = curves(none_0={10: 0.5, 40: 0.2}, learned_0={10: 0.5, 40: 0.3})
    assert "no ce_added of" in take_one(run_of(curves=of), kind="speedup", metric="ce_added").missing
    assert take_one(run_of(curves=of), **SPEEDUP, of="remainder").missing.endswith("x4-learned-remainder")
    uneven = curves(none_0={10: 0.5, 40: 0.2}, none_1={10: 0.5, 50: 0.2}, learned_0={10: 0.5, 40: 0.3})
    assert (
        take_one(run_of(curves=uneven), **SPEEDUP).missing
        == f"the curves of {BASELINE} have other steps for other seeds"
    )


def budgets(baseline: float, **tokenized: float) -> dict[str, Any]:
    """A headline, and tokenized SAEs with smaller budgets: `b8=0.3` at an eighth of the tokens."""
    settings: dict[str, Any] = {"architecture": "topk", "k": 4, "expansion": 4.0, "encoder_input": "residual"}
    rows = [
        row(
            TOKENIZED if name == "b1" else f"{TOKENIZED}-budget{1 / int(name[1:]):g}",
            "nmse",
            value,
            **settings | {"table": "learned", "budget": 1 / int(name[1:])},
        )
        for name, value in tokenized.items()
    ]
    other = row("topk-k4-x4-fixed-budget0.5", "nmse", 1e-9, **settings | {"table": "fixed", "budget": 0.5})
    of_baseline = row(BASELINE, "nmse", baseline, **settings | {"table": "none", "budget": 1.0})
    headline = [of_baseline, *(r for r in rows if r["budget"] == 1)]
    return {"headline": table(*headline), "speed": table(other, *(r for r in rows if r["budget"] < 1))}


def test_equal_loss_speed_up_is_interpolated_in_both_logarithms() -> None:
    # Between 1/4 with 0.4 and 1 with 0.1 the curve is 0.1 / budget: 0.2 at a half.
    measured = take_one(run_of(**budgets(0.2, b4=0.4, b1=0.1)), **EQUAL_LOSS)
    assert (measured.value, measured.ends, measured.layer) == (near(2), (1.0, 4.0), "1")
    # A point that lies on the way counts.
    assert take_one(run_of(**budgets(0.2, b4=0.4, b2=0.15, b1=0.1)), **EQUAL_LOSS).value > 2


def test_equal_loss_speed_up_beyond_the_budgets_is_a_bound() -> None:
    below, above = (take_one(run_of(**budgets(0.2, b8=a, b1=b)), **EQUAL_LOSS) for a, b in ((0.5, 0.3), (0.2, 0.1)))
    assert (below.value, below.ends) == (0, (1, 8))
    assert (above.value, above.ends) == (math.inf, (1, 8))


def test_equal_loss_speed_up_is_paired_over_documents() -> None:
    weights = (1.0, 3.0, 20.0)
    values = {BASELINE: 0.2, f"{TOKENIZED}-budget0.25": 0.4, TOKENIZED: 0.1}
    found = {(1, s, 0, None): sums(nmse=[(v * w, 1.0) for w in weights]) for s, v in values.items()}
    measured = take_one(run_of(found, **budgets(1.6, b4=3.2, b1=0.8)), **EQUAL_LOSS)
    assert measured[:4] == (*[near(2)] * 3, ("documents",))


def test_equal_loss_speed_up_needs_smaller_budgets_of_the_same_sae() -> None:
    lacking = budgets(0.2, b1=0.1)
    assert take_one(run_of(**lacking), **EQUAL_LOSS).missing == (
        f"block 'speed' has no nmse of {TOKENIZED} with a smaller budget"
    )
    del lacking["speed"]
    assert take(run_of(**lacking), **EQUAL_LOSS)[0].missing == "this profile has no block 'speed'"
