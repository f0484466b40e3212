import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from pydantic import TypeAdapter

from tsae.claims import judge, measure_claims, print_claims, write_claims
from tsae.ledger import Check, Ledger, load_ledger, load_published, published_range
from tsae.measures import Measure, Measured, geometric_mean, measure, ratios_at_equal_l0, speedups
from tsae.selection import NotMeasuredError, Run
from tsae.table import COLUMNS

CONFIG = Path(__file__).parent.parent / "config"
BASELINE, TOKENIZED = "topk-k4-x4-none", "topk-k4-x4-learned"
VALUE = {"kind": "value", "of": {"metric": "nmse", "subject": "tokenized"}}


def table(*rows: dict[str, Any]) -> pd.DataFrame:
    """A table of a block with the columns that `read_table` gives."""
    return pd.DataFrame(list(rows), columns=[*COLUMNS]).astype(
        dict.fromkeys(["layer", "seed", "k", "min_count", "n", "step", "tokens"], "Int64")
    )


def row(subject: str, metric: str, value: float, half_width: float = 0.0, **columns: Any) -> dict[str, Any]:
    """A measurement with the interval value - half_width to value + half_width."""
    low, high = value - half_width, value + half_width
    return {
        "layer": 1,
        "seed": 0,
        "subject": subject,
        "metric": metric,
        "value": value,
        "low": low,
        "high": high,
    } | columns


def run_of(**tables: pd.DataFrame) -> Run:
    return Run(tables, BASELINE, TOKENIZED, simple_threshold=0.5)


def take(run: Run, **declared: Any) -> Measured:
    return measure(TypeAdapter(Measure).validate_python(declared), run)


def check(measure: dict[str, Any] = VALUE, **fields: Any) -> Check:
    return Check.model_validate({"name": "a check", "measure": measure, "published": None} | fields)


def load(tmp_path: Path, *claims: Any) -> Ledger:
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(list(claims)))
    return load_ledger(path, CONFIG / "published.yaml")


def claim(*checks: dict[str, Any], id: str = "C1") -> dict[str, Any]:
    return {"id": id, "claim": "Something holds.", "source": "somewhere", "checks": list(checks)}


LEVEL = {"name": "level", "measure": VALUE, "published": 0.5, "tolerance": 0.1, "direction": {"below": 0.8}}


@pytest.mark.parametrize(
    ("value", "half_width", "verdict", "reason"),
    [
        (0.5, 0.05, "reproduced", ""),
        (0.6, 0.05, "reproduced", ""),  # the tolerance is inclusive
        (0.62, 0.05, "direction holds", "0.12 above what was published"),
        (0.3, 0.05, "direction holds", "0.2 below what was published"),
        (0.55, 0.3, "does not hold", "undecided: the interval includes the bound 0.8"),
        (0.85, 0.1, "does not hold", "undecided: the interval includes the bound 0.8"),
        (0.95, 0.05, "does not hold", "not below 0.8"),
    ],
)
def test_a_changed_metric_changes_the_verdict(
    tmp_path: Path, value: float, half_width: float, verdict: str, reason: str
) -> None:
    run = run_of(headline=table(row(TOKENIZED, "nmse", value, half_width)))
    (judged,) = measure_claims(load(tmp_path, claim(LEVEL)), run).to_dict("records")
    assert (judged["verdict"], judged["reason"], judged["claim_verdict"]) == (verdict, reason, verdict)


@pytest.mark.parametrize(
    ("fields", "value", "verdict"),
    [
        ({"direction": {"above": 0.4}}, 0.5, "direction holds"),  # no number to compare with
        ({"direction": {"above": 0.4}}, 0.3, "does not hold"),
        ({"published": 0.5, "not_comparable": "another model", "direction": {"above": 0.4}}, 0.5, "direction holds"),
        ({"published": 0.5, "not_comparable": "another model", "direction": {"above": 0.4}}, 0.3, "does not hold"),
        ({"published": 0.5, "not_comparable": "another model"}, 0.5, "not comparable here"),
        ({"not_comparable": "a floor"}, 0.5, "not comparable here"),
        ({"published": [0.4, 0.5], "tolerance": 0}, 0.5, "reproduced"),
        ({"published": [0.4, 0.5], "tolerance": 0}, 0.51, "does not hold"),  # the level is all that is claimed
    ],
)
def test_verdicts_without_a_level_or_a_direction(fields: dict[str, Any], value: float, verdict: str) -> None:
    assert judge(check(**fields), Measured(value, value - 0.01, value + 0.01, 1))[0] == verdict


def test_a_claim_has_the_worst_verdict_of_what_is_comparable(tmp_path: Path) -> None:
    holds = {"name": "holds", "measure": VALUE, "published": None, "direction": {"below": 0.8}}
    fails = {"name": "fails", "measure": VALUE, "published": None, "direction": {"below": 0.2}}
    absent = {**holds, "name": "absent", "measure": {**VALUE, "of": {"metric": "fvu", "subject": "tokenized"}}}
    ledger = load(
        tmp_path,
        claim(LEVEL, absent, id="C1"),
        claim(LEVEL, holds, id="C2"),
        claim(LEVEL, holds, fails, absent, id="C3"),
        claim(absent, id="C4"),
    )
    judged = measure_claims(ledger, run_of(headline=table(row(TOKENIZED, "nmse", 0.5, 0.01))))
    assert judged.groupby("id")["claim_verdict"].agg(["nunique", "first"]).values.tolist() == [
        [1, "reproduced"],
        [1, "direction holds"],
        [1, "does not hold"],
        [1, "not comparable here"],
    ]


def test_a_claim_that_needs_what_failed_is_not_measured_unless_it_is_refuted(tmp_path: Path) -> None:
    holds = {"name": "holds", "measure": VALUE, "published": None, "direction": {"below": 0.8}}
    refuted = {**holds, "name": "refuted", "direction": {"below": 0.2}}
    needs = {**holds, "name": "needs", "measure": {**VALUE, "of": {"metric": "nmse", "subject": "baseline"}}}
    ledger = load(tmp_path, claim(holds, needs), claim(holds, needs, refuted, id="C2"), claim(holds, id="C3"))
    tables = {"headline": table(row(TOKENIZED, "nmse", 0.5, 0.01), row(BASELINE, "failed", 7.0))}
    csv = tmp_path / "claims.csv"
    write_claims(ledger, tables, (BASELINE, TOKENIZED), 0.5, csv, tmp_path / "a.md", tmp_path / "a.html")
    judged = pd.read_csv(csv)
    assert judged.drop_duplicates("id")["claim_verdict"].tolist() == [
        "not comparable here",
        "does not hold",
        "direction holds",
    ]
    reason = f"{BASELINE} (layer 1, seed 0) failed in training"
    assert judged.loc[judged["check"] == "needs", "reason"].tolist() == [reason] * 2
    lines = print_claims(csv).splitlines()
    assert [line.split()[1] for line in lines[1:4]] == ["needs", "refuted", "holds"]
    assert lines[-1] == f"{reason}, and is needed for C1, C2"


def test_a_mean_over_layers_lacks_none(tmp_path: Path) -> None:
    rows = [row(TOKENIZED, "nmse", 0.5), row(TOKENIZED, "nmse", 0.5, layer=2), row(TOKENIZED, "fvu", 0.5)]
    with pytest.raises(NotMeasuredError, match=rf"^there is no fvu of {TOKENIZED} \(layer 2, seed 0\)$"):
        take(run_of(headline=table(*rows)), kind="value", of={"metric": "fvu", "subject": "tokenized"})


def test_what_a_profile_lacks_is_named(tmp_path: Path) -> None:
    run = run_of(headline=table(row(TOKENIZED, "nmse", 0.5)))
    wanted = [
        ({"metric": "nmse", "subject": "tokenized", "block": "pareto"}, "this profile has no block 'pareto'"),
        ({"metric": "fvu", "subject": "tokenized"}, f"block 'headline' has no fvu of {TOKENIZED}"),
        ({"metric": "nmse", "subject": "baseline"}, f"block 'headline' has no nmse of {BASELINE}"),
        ({"metric": "nmse", "points": {"expansion": 64}}, "block 'headline' has no point with expansion 64"),
        ({"metric": "nmse", "subject": "tokenized", "at": "simple"}, f"no nmse of {TOKENIZED} at 0.5"),
        ({"metric": "nmse", "subject": "tokenized", "layer": 7}, f"no nmse of {TOKENIZED} at layer 7"),
        (
            {"metric": "nmse", "subject": "tokenized", "min_count": 20},
            f"no nmse of {TOKENIZED} over tokens seen 20 times",
        ),
    ]
    checks = [
        {"name": "a", "measure": {"kind": "value", "of": of}, "published": None, "direction": {"below": 1}}
        for of, _ in wanted
    ]
    judged = measure_claims(load(tmp_path, claim(*checks)), run)
    assert judged["reason"].tolist() == [reason for _, reason in wanted]
    assert set(judged["verdict"]) == {"not comparable here"}
    assert judged["n"].tolist() == [0] * len(wanted)


def test_value_is_the_mean_with_the_hull_of_the_intervals() -> None:
    run = run_of(
        headline=table(
            row(TOKENIZED, "nmse", 0.1, 0.01, seed=0),
            row(TOKENIZED, "nmse", 0.2, 0.02, seed=1),
            row(TOKENIZED, "nmse", 0.6, 0.03, layer=2),
            row(BASELINE, "nmse", 9.0),
            row(TOKENIZED, "fvu", 9.0),
        )
    )
    of = {"metric": "nmse", "subject": "tokenized"}
    assert take(run, kind="value", of=of) == pytest.approx((0.3, 0.09, 0.63, 3, ""))
    assert take(run, kind="value", of=of | {"layer": "first"}) == pytest.approx((0.15, 0.09, 0.22, 2, ""))
    assert take(run, kind="value", of=of | {"layer": 2}).value == 0.6


def test_value_without_an_interval_stands_for_itself() -> None:
    run = run_of(headline=table(row(TOKENIZED, "scale", 2.0, low=None, high=None)))
    measured = take(run, kind="value", of={"metric": "scale", "subject": "tokenized"})
    assert measured == (2.0, 2.0, 2.0, 1, "")


def test_selections_by_settings_thresholds_and_counts() -> None:
    def point(table: str, expansion: float, value: float, **columns: Any) -> dict[str, Any]:
        subject = f"topk-k4-x{expansion:g}-{table}"
        return row(subject, "nmse", value, architecture="topk", table=table, expansion=expansion, k=4, **columns)

    expansion = table(point("none", 1, 0.1), point("none", 4, 0.2), point("none", 16, 0.3), point("learned", 2, 0.4))
    shares = table(
        *(row(BASELINE, "simple_unigram", at, at=at, min_count=c) for at in (0.15, 0.5, 1.0) for c in (0, 20))
    )
    run = run_of(expansion=expansion, headline=shares)

    def of_points(**points: Any) -> float:
        return take(run, kind="value", of={"block": "expansion", "metric": "nmse", "points": points}).value

    assert of_points(table="none", expansion="min") == 0.1
    assert of_points(table="none", expansion="max") == 0.3
    assert of_points(table="learned", expansion="max") == 0.4
    assert of_points(expansion=4, k=4) == 0.2
    for at, expected in (("simple", 0.5), ("min", 0.15), ("max", 1.0), (3 / 20, 0.15)):
        of = {"metric": "simple_unigram", "subject": "baseline", "at": at, "min_count": 20}
        assert take(run, kind="value", of=of).value == expected
    with pytest.raises(NotMeasuredError, match="several simple_unigram of topk-k4-x4-none per layer and seed"):
        take(run, kind="value", of={"metric": "simple_unigram", "subject": "baseline", "at": 0.5})


def test_comparisons_pair_by_layer_and_seed_and_take_the_far_ends() -> None:
    run = run_of(
        headline=table(
            row(BASELINE, "nmse", 0.4, 0.1, seed=0),
            row(BASELINE, "nmse", 0.5, 0.1, seed=1),
            row(BASELINE, "nmse", 9.0, seed=2),  # has no partner
            row(TOKENIZED, "nmse", 0.2, 0.1, seed=0),
            row(TOKENIZED, "nmse", 0.4, 0.1, seed=1),
        )
    )
    two = {"of": {"metric": "nmse", "subject": "tokenized"}, "to": {"subject": "baseline"}}
    ratio = take(run, kind="ratio", **two)
    assert ratio == pytest.approx(((0.2 / 0.4 + 0.4 / 0.5) / 2, 0.1 / 0.5, 0.5 / 0.4, 2, ""))
    difference = take(run, kind="difference", **two)
    assert difference == pytest.approx(((-0.2 - 0.1) / 2, 0.1 - 0.5, 0.5 - 0.4, 2, ""))


def test_subjects_without_a_seed_pair_with_every_seed() -> None:
    run = run_of(
        headline=table(
            *(
                row(TOKENIZED, "last_token_detection", 0.8 + seed / 10, seed=seed, layer=layer)
                for seed in (0, 1)
                for layer in (1, 2)
            )
        ),
        baselines=table(
            row("unigram-residuals", "last_token_detection", 0.5, layer=1, seed=None),
            row("unigram-residuals", "last_token_detection", 0.6, layer=2, seed=None),
        ),
    )
    measured = take(
        run,
        kind="difference",
        of={"metric": "last_token_detection", "subject": "tokenized"},
        to={"block": "baselines", "subject": "unigram-residuals"},
    )
    assert measured == pytest.approx((0.3, 0.2, 0.4, 4, ""))


def test_trends_over_context_length_and_depth() -> None:
    rows = [
        row("residuals", "residual_unigram_cosine", value, 0.01, layer=layer, at=at, seed=None)
        for layer, at, value in ((1, 1, 0.9), (1, 8, 0.7), (1, 128, 0.6), (2, 1, 0.8), (2, 8, 0.5), (2, 128, 0.4))
    ]
    run = run_of(baselines=table(*rows))
    of = {"block": "baselines", "metric": "residual_unigram_cosine", "subject": "residuals", "at": "max"}
    assert take(run, kind="difference", of=of, to={"at": "min"}) == pytest.approx((-0.35, -0.42, -0.28, 2, ""))
    depth = take(run, kind="difference", of=of | {"layer": "last"}, to={"layer": "first"})
    assert depth == pytest.approx((-0.2, -0.22, -0.18, 1, ""))


def test_comparisons_of_expansions_that_are_too_close_say_nothing() -> None:
    def expansions(*values: float) -> Run:
        rows = (row(f"topk-k4-x{e:g}-none", "nmse", 1 / e, table="none", expansion=e) for e in values)
        return run_of(expansion=table(*rows))

    smallest = {"block": "expansion", "metric": "nmse", "points": {"table": "none", "expansion": "min"}}
    two = {"kind": "ratio", "of": smallest, "to": {"points": {"expansion": "max"}}, "expansions_apart": 8}
    assert take(expansions(2, 4, 16), **two).value == 8
    with pytest.raises(NotMeasuredError, match="expansion 8 is not 8 times 2"):
        take(expansions(2, 8), **two)
    with pytest.raises(NotMeasuredError, match="expansion 4 is not 8 times 4"):
        take(expansions(4), **two)
    reversed_two = two | {"of": smallest | {"points": {"expansion": "max"}}, "to": {"points": {"expansion": "min"}}}
    with pytest.raises(NotMeasuredError, match="expansion 2 is not 8 times 16"):
        take(expansions(2, 16), **reversed_two)


def phrase_rows(encoder_input: str, **scores: float) -> list[dict[str, Any]]:
    columns = {"layer": 8, "seed": 0, "table": "learned", "encoder_input": encoder_input}
    return [columns | {"text": text, "score": score, "mean_recall": score / 2} for text, score in scores.items()]


def test_phrases_are_paired_by_text() -> None:
    rows = [*phrase_rows("without_unigram", a=0.1, b=0.5, c=0.9), *phrase_rows("residual", b=0.7, a=0.3, d=0.1)]
    encoder = table(row(TOKENIZED, "phrase_coverage", 0.5, table="learned"))
    run = run_of(phrases=pd.DataFrame(rows), encoder=encoder)
    # Both pairs differ by -0.2 alone, so that every resample does.
    assert take(run, kind="phrases", table="learned", column="score") == pytest.approx((-0.2, -0.2, -0.2, 2, ""))
    assert take(run, kind="phrases", table="learned", column="mean_recall").value == pytest.approx(-0.1)
    with pytest.raises(NotMeasuredError, match="no phrases of a table none"):
        take(run, kind="phrases", table="none", column="score")
    alone = run_of(phrases=pd.DataFrame(phrase_rows("residual", a=0.1)), encoder=encoder)
    with pytest.raises(NotMeasuredError, match="both with and without"):
        take(alone, kind="phrases", table="learned", column="score")


def test_a_thing_is_not_compared_with_itself() -> None:
    run = run_of(headline=table(row(BASELINE, "nmse", 0.2)))
    of = {"metric": "nmse", "subject": "baseline", "layer": "last"}
    with pytest.raises(NotMeasuredError, match="nothing to compare with"):
        take(run, kind="difference", of=of, to={"layer": "first"})


def test_ratio_to_zero_is_not_measured_and_an_interval_down_to_zero_is_unbounded() -> None:
    two = {"of": {"metric": "dead_heldout", "subject": "tokenized"}, "to": {"subject": "baseline"}}
    tokenized = row(TOKENIZED, "dead_heldout", 0.2, 0.1)
    touching = take(run_of(headline=table(tokenized, row(BASELINE, "dead_heldout", 0.1, 0.1))), kind="ratio", **two)
    assert touching == (2.0, 0.5, math.inf, 1, "")
    with pytest.raises(NotMeasuredError, match="dead_heldout of baseline is not above zero"):
        take(run_of(headline=table(tokenized, row(BASELINE, "dead_heldout", 0.0))), kind="ratio", **two)


def points(*values: tuple[float, float], half_width: float = 0.0) -> pd.DataFrame:
    frame = pd.DataFrame(values, columns=["l0", "value"])
    return frame.assign(low=frame["value"] * (1 - half_width), high=frame["value"] * (1 + half_width))


def test_ratios_at_equal_l0_follow_the_power_law_between_points() -> None:
    # Between (1, 1) and (100, 0.01) the curve is 1 / l0.
    baseline = points((100, 0.01), (1, 1.0))
    ratios = ratios_at_equal_l0(baseline, points((10, 0.05), (4, 0.2), (1, 0.9), (0.5, 1.0), (103, 0.001)))
    assert ratios["l0"].tolist() == [1, 4, 10]
    assert ratios["value"].tolist() == pytest.approx([0.9, 0.8, 0.5])
    assert geometric_mean(ratios["value"]) == pytest.approx((0.9 * 0.8 * 0.5) ** (1 / 3))


def test_an_l0_a_little_outside_counts_as_at_the_end() -> None:
    ratios = ratios_at_equal_l0(points((10, 0.5), (100, 0.1)), points((9.9, 0.4), (101, 0.05)))
    assert ratios["value"].tolist() == pytest.approx([0.8, 0.5])


def test_ratios_at_equal_l0_take_the_far_ends() -> None:
    baseline = points((1, 1.0), (100, 0.01), half_width=0.2)
    (ratio,) = ratios_at_equal_l0(baseline, points((10, 0.05), half_width=0.1)).to_dict("records")
    assert ratio == pytest.approx({"l0": 10, "value": 0.5, "low": 0.045 / 0.12, "high": 0.055 / 0.08})
    with pytest.raises(NotMeasuredError, match="logarithm"):
        ratios_at_equal_l0(baseline, points((10, -0.05)))
    down_to_zero = points((1, 1.0), (100, 0.01), half_width=1.0)
    assert ratios_at_equal_l0(down_to_zero, points((10, 0.05)))["high"].tolist() == [math.inf]


def test_pareto_compares_each_layer_and_seed_with_its_own_baseline() -> None:
    def curve(kind: str, layer: int, *values: tuple[float, float]) -> list[dict[str, Any]]:
        columns: dict[str, Any] = {"architecture": "topk", "table": kind, "layer": layer}
        subjects = [f"topk-k{k}-x4-{kind}" for k in range(1, len(values) + 1)]
        return [
            row(subject, metric, value, **columns)
            for subject, (l0, nmse) in zip(subjects, values, strict=True)
            for metric, value in (("l0", l0), ("nmse", nmse))
        ]

    rows = [
        *curve("none", 1, (1, 1.0), (100, 0.01)),
        *curve("learned", 1, (10, 0.08), (200, 0.001)),
        *curve("none", 2, (1, 2.0), (100, 0.02)),
        *curve("learned", 2, (10, 0.1)),
        *curve("learned", 3, (10, 0.1)),  # no baseline there
    ]
    run = run_of(pareto=table(*rows))
    measured = take(run, kind="pareto", architecture="topk", metric="nmse")
    assert measured == pytest.approx((math.sqrt(0.8 * 0.5), 0.5, 0.8, 2, ""))
    with pytest.raises(NotMeasuredError, match="no architecture relu"):
        take(run, kind="pareto", architecture="relu", metric="nmse")
    with pytest.raises(NotMeasuredError, match="no nmse of topk with table fixed"):
        take(run, kind="pareto", architecture="topk", metric="nmse", table="fixed")
    apart = run_of(pareto=table(*curve("none", 1, (1, 1.0), (5, 0.5)), *curve("learned", 1, (10, 0.1))))
    with pytest.raises(NotMeasuredError, match="within the range of the baseline"):
        take(apart, kind="pareto", architecture="topk", metric="nmse")


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
    table = curves(none_0={10: 0.5, 40: 0.3, 160: 0.2}, learned_0={10: 0.3, 40: 0.1, 160: 0.05})
    (found,) = speedups(table, BASELINE, TOKENIZED, "nmse").to_dict("records")
    assert found == pytest.approx({"layer": 1, "seed": 0, "steps_baseline": 160, "steps_tokenized": 20, "speedup": 8})


def test_speed_up_takes_the_first_crossing_of_both() -> None:
    # The baseline was at its final value at step 40 already, and the order of rows does not matter.
    table = curves(none_0={160: 0.2, 10: 0.5, 40: 0.2, 80: 0.25}, learned_0={10: 0.2, 40: 0.3, 160: 0.1})
    (found,) = speedups(table, BASELINE, TOKENIZED, "nmse").to_dict("records")
    assert (found["steps_baseline"], found["steps_tokenized"], found["speedup"]) == pytest.approx((40, 10, 4))


def test_speed_up_that_is_never_reached_refutes_the_claim() -> None:
    table = curves(
        none_0={10: 0.5, 40: 0.2},
        learned_0={10: 0.2, 40: 0.1},
        none_1={10: 0.5, 40: 0.2},
        learned_1={10: 0.5, 40: 0.3},
        none_2={10: 0.5, 40: 0.2},  # has no partner
    )
    found = speedups(table, BASELINE, TOKENIZED, "nmse")
    assert found["seed"].tolist() == [0, 1]
    assert found["speedup"].tolist() == pytest.approx([4, math.nan], nan_ok=True)
    measured = take(run_of(curves=table), kind="speedup", metric="nmse")
    assert math.isnan(measured.value)
    verdict, reason = judge(check({"kind": "speedup", "metric": "nmse"}, direction={"above": 1}), measured)
    assert verdict == "does not hold"
    assert reason == "the tokenized SAE never reaches the baseline's final nmse at layer 1 seed 1"


def test_speed_up_is_the_mean_with_the_range() -> None:
    fast, slow = {10: 0.2, 40: 0.1}, {10: 0.5, 20: 0.2}
    table = curves(none_0={10: 0.5, 40: 0.2}, learned_0=fast, none_1={10: 0.5, 40: 0.2}, learned_1=slow)
    assert take(run_of(curves=table), kind="speedup", metric="nmse") == pytest.approx((3, 2, 4, 2, ""))
    with pytest.raises(NotMeasuredError, match="no ce_added of both headline SAEs"):
        take(run_of(curves=table), kind="speedup", metric="ce_added")


def test_the_ledger_has_every_claim() -> None:
    ledger = load_ledger(CONFIG / "claims.yaml")
    assert [claim.id for claim in ledger] == [f"C{number}" for number in range(1, 13)]


def test_published_ratios_are_computed_from_the_published_curves() -> None:
    ledger = load_ledger(CONFIG / "claims.yaml")
    nmse, ce, *_ = (check.published for check in ledger[0].checks)
    # TopK has the same L0 with and without a table, so nothing is interpolated.
    ratios = np.array([0.163, 0.126, 0.092, 0.080, 0.065]) / [0.232, 0.154, 0.107, 0.093, 0.077]
    assert nmse == pytest.approx([ratios.prod() ** (1 / 5)] * 2)
    ratios = np.array([0.137, 0.077, 0.036, 0.027, 0.015]) / [0.309, 0.116, 0.047, 0.034, 0.023]
    assert ce == pytest.approx([ratios.prod() ** (1 / 5)] * 2)


def test_published_speedups_span_the_range_in_the_ledger() -> None:
    published = load_published(CONFIG / "published.yaml")["speedup"]
    gpt2 = published[published["model"] == "GPT-2 small"].groupby("metric")["speedup"].agg(["min", "max"])
    (c2,) = (claim for claim in load_ledger(CONFIG / "claims.yaml") if claim.id == "C2")
    assert [check.published for check in c2.checks] == [tuple(gpt2.loc[m]) for m in ("ce_added", "nmse")]


def test_the_second_selection_inherits_from_the_first() -> None:
    (c9,) = (claim for claim in load_ledger(CONFIG / "claims.yaml") if claim.id == "C9")
    declared = c9.checks[2].measure
    assert declared.kind == "difference"
    assert (declared.of.block, declared.of.subject) == ("headline", "tokenized")
    second = declared.second
    assert (second.block, second.metric, second.subject) == ("baselines", "last_token_detection", "unigram-residuals")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"measure": {"kind": "value", "of": {"metric": "feature_tokn_bias_similar", "subject": "baseline"}}},
            "checks.0.measure.value.of.metric: unknown metric; did you mean 'feature_token_bias_similar'? "
            "(got 'feature_tokn_bias_similar')",
        ),
        (
            {"measure": {"kind": "value", "of": {"metric": "nmse", "subject": "tokenised"}}},
            "checks.0.measure.value.of.subject: unknown subject; did you mean 'tokenized'? (got 'tokenised')",
        ),
        (
            {"measure": {"kind": "value", "of": {"metric": "nmse", "points": {"expansion": "largest"}}}},
            "checks.0.measure.value.of.points.expansion: expected a number or one of min, max (got 'largest')",
        ),
        (
            {"measure": {"kind": "value", "of": {"metric": "nmse"}}},
            "checks.0.measure.value.of: needs a subject, or points",
        ),
        (
            {"measure": {"kind": "value", "of": {"metric": "nmse", "subject": "baseline", "points": {"k": 4}}}},
            "checks.0.measure.value.of: subject and points exclude each other",
        ),
        (
            {"measure": {"kind": "value", "of": {"metric": "nmse", "subject": "baseline", "layers": 3}}},
            "checks.0.measure.value.of.layers: unknown key; did you mean 'layer'?",
        ),
        ({"direction": {"below": 1, "above": 0}}, "checks.0.direction: needs one of below and above"),
        ({"direction": {}}, "checks.0.direction: needs one of below and above"),
        ({"tolerence": 1}, "checks.0.tolerence: unknown key; did you mean 'tolerance'?"),
        ({"tolerance": None}, "checks.0: a published number needs a tolerance"),
        (
            {"not_comparable": "another model"},
            "checks.0: tolerance says nothing where no published number is compared",
        ),
        (
            {"published": [0.5, 0.4]},
            "checks.0.published: expected a number, a range [low, high], computed, or null",
        ),
        ({"published": "computed"}, "checks.0: published: only a measure of kind pareto can be computed"),
        (
            {"published": None, "tolerance": None, "direction": None},
            "checks.0: nothing to check: there is neither a published number nor a direction",
        ),
        (
            {"published": "computed", "measure": {"kind": "pareto", "architecture": "gated", "metric": "nmse"}},
            "checks.0.published: published.yaml has no such curves that overlap in L0",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        load(tmp_path, claim(LEVEL | change))
    assert str(error.value) == f"{tmp_path}/claims.yaml: C1: {message}"


def test_every_mistake_has_a_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        load(tmp_path, claim(LEVEL), claim(LEVEL), claim(id="C3"), "C4", {"id": "5"} | claim(LEVEL, id="5"))
    lines = str(error.value).replace(f"{tmp_path}/claims.yaml: ", "").splitlines()
    assert lines[0] == "C1: id: there are two claims C1"
    assert lines[1] == "C3: checks: a claim needs at least one"
    assert lines[2].startswith("claim number 4: ")
    assert lines[3].startswith("5: id: ")
    assert len(lines) == 4


def test_a_ledger_that_is_no_list_or_no_yaml(tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    for text, message in (("claims: 3", "expected a list"), ("[", "not valid YAML"), ("", "expected a list")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_ledger(path, CONFIG / "published.yaml")
    with pytest.raises(ValueError, match=r"nowhere\.yaml: cannot be read"):
        load_ledger(tmp_path / "nowhere.yaml", CONFIG / "published.yaml")


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, Path]:
    headline = table(row(TOKENIZED, "nmse", 0.123456789, 0.01))
    path = tmp_path / "claims.csv"
    write_claims(
        load_ledger(CONFIG / "claims.yaml"),
        {"headline": headline},
        (BASELINE, TOKENIZED),
        0.5,
        path,
        tmp_path / "a.md",
        tmp_path / "a.html",
    )
    return path, tmp_path / "a.md"


def test_written_claims(tmp_path: Path) -> None:
    ledger = load(tmp_path, claim(LEVEL), claim({**LEVEL, "published": [0.1, 0.2]}, id="C2"))
    tables = {"headline": table(row(TOKENIZED, "nmse", 0.523456789, 0.01))}
    contents = []
    for name in ("a", "b"):
        csv, markdown = tmp_path / f"{name}.csv", tmp_path / f"{name}.md"
        write_claims(ledger, tables, (BASELINE, TOKENIZED), 0.5, csv, markdown, tmp_path / "claims.html")
        contents.append((csv.read_bytes(), markdown.read_bytes()))
    assert contents[0] == contents[1]
    assert csv.read_text().splitlines() == [
        "id,claim,check,source,published,measured,low,high,n,verdict,reason,claim_verdict",
        "C1,Something holds.,level,somewhere,0.5 ± 0.1,0.523457,0.513457,0.533457,1,reproduced,,reproduced",
        "C2,Something holds.,level,somewhere,0.1 to 0.2 ± 0.1,0.523457,0.513457,0.533457,1,"
        "direction holds,0.323 above what was published,direction holds",
    ]
    text = markdown.read_text()
    assert "| C1: Something holds. | level | 0.5 ± 0.1 | 0.523 (0.513 to 0.533) | **reproduced** |" in text
    assert "## C2\n\nSomething holds. Source: somewhere. Verdict: **direction holds**.\n" in text


@pytest.mark.refused("HTML in text, in the page of claims")
def test_the_page_of_claims_shows_hostile_text_as_text(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script> | [x](javascript:alert(2)) ![x](http://a/b.png) <img src=x>\n\n<b>&lt;"
    ledger = load(tmp_path, claim({**LEVEL, "name": hostile}) | {"claim": hostile, "source": hostile})
    tables = {"headline": table(row(TOKENIZED, "nmse", 0.5, 0.01))}
    page = tmp_path / "claims.html"
    write_claims(ledger, tables, (BASELINE, TOKENIZED), 0.5, tmp_path / "c.csv", tmp_path / "c.md", page)
    html = page.read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt; |" in html
    assert not any(harmful in html for harmful in ("<script", "<img src=x", 'href="javascript', "<b>"))
    (summary, details) = (part.split("</table>")[0] for part in html.split("<table>")[1:])
    assert summary.count("<tr>") == details.count("<tr>") == 2 and summary.count("<td>") == 5


def test_a_run_with_one_table_judges_every_check(written: tuple[Path, Path]) -> None:
    csv, markdown = written
    judged = pd.read_csv(csv)
    assert judged["id"].nunique() == 12
    assert set(judged["verdict"]) == {"not comparable here"}
    assert judged["reason"].notna().all()
    text = markdown.read_text()
    assert all(f"\n## C{number}\n" in text for number in range(1, 13))


def test_printed_claims_fit_a_terminal(written: tuple[Path, Path], tmp_path: Path) -> None:
    lines = print_claims(written[0]).splitlines()
    assert max(map(len, lines)) <= 120
    assert len(lines) == 14
    assert lines[-1] == "12 claims: 12 not comparable here"

    long = claim({**LEVEL, "name": "a check with quite a long name " * 5, "published": [0.1, 0.2]}, id="C2")
    tables = {"headline": table(row(TOKENIZED, "nmse", 0.523456789, 0.01))}
    csv = tmp_path / "b.csv"
    write_claims(
        load(tmp_path, claim(LEVEL), long),
        tables,
        (BASELINE, TOKENIZED),
        0.5,
        csv,
        tmp_path / "b.md",
        tmp_path / "b.html",
    )
    lines = print_claims(csv).splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[1].split() == ["C1", "level", "0.5", "±", "0.1", "0.523", "(0.513", "to", "0.533)", "reproduced"]
    assert lines[2].endswith("0.1 to 0.2 ± 0.1  0.523 (0.513 to 0.533)  direction holds")
    assert "…" in lines[2]
    assert lines[3] == "2 claims: 1 reproduced, 1 direction holds"


def test_a_summary_shows_the_check_that_decides(tmp_path: Path) -> None:
    fails = {"name": "fails", "measure": VALUE, "published": None, "direction": {"below": 0.2}}
    csv = tmp_path / "a.csv"
    tables = {"headline": table(row(TOKENIZED, "nmse", 0.5, 0.01))}
    write_claims(
        load(tmp_path, claim(LEVEL, fails)),
        tables,
        (BASELINE, TOKENIZED),
        0.5,
        csv,
        tmp_path / "a.md",
        tmp_path / "a.html",
    )
    shown = print_claims(csv).splitlines()[1]
    assert shown.split() == ["C1", "fails", "no", "number", "0.5", "(0.49", "to", "0.51)", "does", "not", "hold"]


def test_published_numbers_are_found_by_their_check(tmp_path: Path) -> None:
    ledger = load(tmp_path, claim(LEVEL), claim({**LEVEL, "published": [0.1, 0.2]}, id="C2"))
    assert published_range(ledger, "C2", "level") == (0.1, 0.2)
    assert published_range(ledger, "C1", "level") == (0.5, 0.5)
    with pytest.raises(ValueError, match="no published number for C2: 'other'"):
        published_range(ledger, "C2", "other")
