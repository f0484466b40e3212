"""Selections of rows by what they are."""

from typing import Any

from fixtures.measured import BASELINE, REMAINDER, TOKENIZED, row, run_of, table, take, take_one

from tsae.claims.selection import Run


def missing(run: Run, **of: Any) -> str:
    """Why a value is not measured."""
    return take_one(run, kind="value", of=of).missing


def test_what_a_profile_lacks_is_named() -> None:
    run = run_of(headline=table(row(TOKENIZED, "nmse", 0.5)))
    nmse = {"metric": "nmse", "subject": "tokenized"}
    assert missing(run, **nmse, block="pareto") == "this profile has no block 'pareto'"
    assert missing(run, **nmse, block="headlines") == "this profile has no block 'headlines'; did you mean 'headline'?"
    assert missing(run, metric="fvu", subject="tokenized") == f"block 'headline' has no fvu of {TOKENIZED}"
    assert missing(run, metric="nmse", subject="baseline") == f"block 'headline' has no nmse of {BASELINE}"
    assert missing(run, metric="nmse", points={"expansion": 64}) == "block 'headline' has no point with expansion 64"
    assert missing(run, **nmse, at="simple") == f"no nmse of {TOKENIZED} at 0.5"
    assert missing(run, **nmse, layer=7) == f"no nmse of {TOKENIZED} at layer 7"
    assert missing(run, **nmse, min_count=20) == f"no nmse of {TOKENIZED} over tokens seen 20 times"
    without = Run(run.tables, {"baseline": BASELINE, "tokenized": TOKENIZED}, 0.5)
    assert missing(without, metric="nmse", subject="remainder") == "this profile has no headline SAE 'remainder'"


def test_roles_are_the_headline_saes() -> None:
    run = run_of(headline=table(*(row(s, "nmse", v) for s, v in ((BASELINE, 0.3), (TOKENIZED, 0.2), (REMAINDER, 0.1)))))
    for subject, value in (("baseline", 0.3), ("tokenized", 0.2), ("remainder", 0.1), (REMAINDER, 0.1)):
        assert take_one(run, kind="value", of={"metric": "nmse", "subject": subject}).value == value


def point(table: str, expansion: float, value: float, **columns: Any) -> dict[str, Any]:
    subject = f"topk-k4-x{expansion:g}-{table}-{columns.get('encoder_input', '')}{columns.get('budget', '')}"
    settings: dict[str, Any] = {"architecture": "topk", "table": table, "expansion": expansion, "k": 4}
    return row(subject, "nmse", value, **settings | columns)


def test_points_by_their_settings() -> None:
    rows = [
        point("none", 1, 0.1, encoder_input="residual", budget=1.0),
        point("none", 4, 0.2, encoder_input="residual", budget=1.0),
        point("none", 16, 0.3, encoder_input="residual", budget=1.0),
        point("learned", 2, 0.4, encoder_input="residual", budget=1.0),
        point("learned", 2, 0.5, encoder_input="remainder", budget=1.0),
        point("learned", 2, 0.6, encoder_input="residual", budget=0.25),
        point("scaled", 4, 0.7, encoder_input="residual", budget=1.0),
        point("embedding", 4, 0.8, encoder_input="residual", budget=1.0),
        row("unigram-residuals", "nmse", 0.9, seed=None),
    ]
    run = run_of(mine=table(*rows))

    def of_points(**points: Any) -> Any:
        measured = take_one(run, kind="value", of={"block": "mine", "metric": "nmse", "points": points})
        return measured.missing or measured.value

    assert of_points(table="none", expansion="min") == 0.1
    assert of_points(table="none", expansion="min", expansion_at_least=4) == 0.2
    assert of_points(table="none", expansion="max") == 0.3
    assert of_points(expansion=4, k=4, table="none") == 0.2
    assert of_points(table="learned", encoder_input="residual", budget=1) == 0.4
    assert of_points(table="learned", encoder_input="remainder") == 0.5
    assert of_points(table="learned", budget="min") == 0.6
    assert of_points(table="scaled") == 0.7
    assert of_points(table="embedding") == 0.8
    assert "several nmse of point with table learned" in of_points(table="learned")
    assert of_points(table="none", expansion_at_least=32).endswith("no point with table none, expansion_at_least 32")


def test_extremes_are_taken_at_each_layer() -> None:
    rows = [point("none", e, e / 100, layer=layer) for layer, e in ((1, 2), (1, 4), (2, 8), (2, 16))]
    run = run_of(expansion=table(*rows))
    of = {"block": "expansion", "metric": "nmse", "points": {"table": "none", "expansion": "max"}}
    assert [(m.layer, m.value) for m in take(run, kind="value", of=of)] == [("1", 0.04), ("2", 0.16)]


def test_thresholds_and_counts() -> None:
    shares = (row(BASELINE, "simple_unigram", at, at=at, min_count=c) for at in (0.15, 0.5, 1.0) for c in (0, 20))
    run = run_of(headline=table(*shares))
    for at, expected in (("simple", 0.5), ("min", 0.15), ("max", 1.0), (3 / 20, 0.15)):
        of = {"metric": "simple_unigram", "subject": "baseline", "at": at, "min_count": 20}
        assert take_one(run, kind="value", of=of).value == expected
    reason = missing(run, metric="simple_unigram", subject="baseline", at=0.5)
    assert reason == f"there are several simple_unigram of {BASELINE} per layer and seed"


def test_a_metric_is_of_all_seeds() -> None:
    rows = [row(TOKENIZED, "nmse", 0.5), row(TOKENIZED, "nmse", 0.5, seed=1), row(TOKENIZED, "fvu", 0.5)]
    assert missing(run_of(headline=table(*rows)), metric="fvu", subject="tokenized") == (
        f"there is no fvu of {TOKENIZED} (layer 1, seed 1)"
    )


def test_what_failed_at_one_layer_is_measured_at_the_others() -> None:
    rows = [row(TOKENIZED, "nmse", 0.5), row(TOKENIZED, "failed", 7.0, layer=2)]
    first, second = take(run_of(headline=table(*rows)), kind="value", of={"metric": "nmse", "subject": "tokenized"})
    assert (first.layer, first.value, first.failed) == ("1", 0.5, ())
    assert (second.layer, second.failed) == ("2", (f"{TOKENIZED} (layer 2, seed 0)",))
    assert second.missing == f"{TOKENIZED} (layer 2, seed 0) failed in training"
