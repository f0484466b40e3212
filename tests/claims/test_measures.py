"""Measures of the ledger, against cases worked by hand."""

import math
from typing import Any

import pandas as pd
import torch
from fixtures.measured import BASELINE, TOKENIZED, near, row, run_of, sums, table, take, take_one

from tsae.measure.sums import DocumentSums

NMSE = {"metric": "nmse", "subject": "tokenized"}
TWO = {"of": NMSE, "to": {"subject": "baseline"}}


def test_a_value_is_the_mean_of_the_seeds_at_each_layer() -> None:
    run = run_of(
        headline=table(
            row(TOKENIZED, "nmse", 0.1, seed=0),
            row(TOKENIZED, "nmse", 0.2, seed=1),
            row(TOKENIZED, "nmse", 0.6, layer=2),
            row(BASELINE, "nmse", 9.0),
            row(TOKENIZED, "fvu", 9.0),
        )
    )
    first, second = take(run, kind="value", of=NMSE)
    assert (first.layer, first.value, first.over) == ("1", near(0.15), "2 seeds")
    assert (second.layer, *second[:3], second.over) == ("2", 0.6, 0.6, 0.6, "")
    assert take_one(run, kind="value", of=NMSE | {"layer": "last"}).value == 0.6
    assert take_one(run, kind="value", of=NMSE | {"layer": 2}).layer == "2"


def test_the_interval_of_a_value_is_over_what_its_row_says() -> None:
    run = run_of(
        bootstrap=20_000, headline=table(row(TOKENIZED, "token_bias_unigram_cosine", 0.9, 0.02, over="tokens"))
    )
    measured = take_one(run, kind="value", of={"metric": "token_bias_unigram_cosine", "subject": "tokenized"})
    assert measured[:3] == near((0.9, 0.88, 0.92), abs=1e-3)
    assert measured.over == "tokens"


def test_the_interval_of_a_share_stays_within_it() -> None:
    shares = (row(TOKENIZED, "dead_heldout", v, seed=s, n=100, over="features") for s, v in ((0, 0.0), (1, 0.2)))
    measured = take_one(
        run_of(headline=table(*shares)), kind="value", of={"metric": "dead_heldout", "subject": "tokenized"}
    )
    assert measured[:3] == (0.1, 0.0, 1.0)  # two seeds that differ so much say nothing
    assert measured.over == "features and 2 seeds"


def test_comparisons_are_of_the_means_of_the_seeds_that_both_have() -> None:
    run = run_of(
        headline=table(
            row(BASELINE, "nmse", 0.4, seed=0),
            row(BASELINE, "nmse", 0.5, seed=1),
            row(BASELINE, "nmse", 9.0, seed=2),  # has no partner
            row(TOKENIZED, "nmse", 0.2, seed=0),
            row(TOKENIZED, "nmse", 0.4, seed=1),
        )
    )
    ratio, difference = (take_one(run, kind=kind, **TWO) for kind in ("ratio", "difference"))
    assert ratio.value == near(0.6 / 0.9)
    assert difference.value == near(-0.15)
    # One seed of two is drawn: the ratios are 1/2 and 4/5, and t of one degree of freedom stretches their logarithms.
    factor = 12.7062 / 1.95996
    assert ratio.low == near((2 / 3) * (0.5 / (2 / 3)) ** factor, rel=1e-3)
    assert ratio.high == near((2 / 3) * (0.8 / (2 / 3)) ** factor, rel=1e-3)
    assert difference[1:3] == near((-0.15 - 0.05 * factor, -0.15 + 0.05 * factor), rel=1e-3)


def test_a_ratio_over_the_same_documents_is_paired() -> None:
    errors = [(0.1, 1.0), (9.0, 1.0), (30.0, 3.0)]
    run = run_of(
        {
            (1, BASELINE, 0, None): sums(nmse=errors),
            (1, TOKENIZED, 0, None): sums(nmse=[(0.8 * e, n) for e, n in errors]),
        },
        headline=table(row(BASELINE, "nmse", 39.1 / 5, 5.0), row(TOKENIZED, "nmse", 0.8 * 39.1 / 5, 4.0)),
    )
    assert take_one(run, kind="ratio", **TWO)[:4] == (*[near(0.8)] * 3, ("documents",))
    apart = take_one(run, kind="difference", **TWO)
    assert apart.low < apart.value < apart.high < 0  # worse documents differ more, and all in one direction


BY_POSITION = {"of": NMSE | {"metric": "nmse_by_position", "at": "max"}, "to": {"subject": "baseline"}}


def test_a_change_of_a_ratio_is_paired_over_documents_and_seeds() -> None:
    # Of both documents the ratio is 0.5 at 4; at 16 it is 0.8, and in the second seed 0.6.
    saes = {
        (BASELINE, 0): (1.0, 1.0),
        (BASELINE, 1): (1.0, 1.0),
        (TOKENIZED, 0): (0.5, 0.8),
        (TOKENIZED, 1): (0.5, 0.6),
    }
    by_sae: dict[Any, DocumentSums] = {}
    rows = []
    for (subject, seed), factors in saes.items():
        found = by_sae[1, subject, seed, None] = DocumentSums(torch.arange(2))
        for at, factor in zip((4.0, 16.0), factors, strict=True):
            found.add("nmse_by_position", factor * torch.tensor([1.0, 9.0]), 1, found.documents, at=at)
            rows.append(row(subject, "nmse_by_position", 5 * factor, seed=seed, at=at))
    run = run_of(by_sae, headline=table(*rows))
    changed = take_one(run, kind="ratio_change", **BY_POSITION, than={"at": 4})
    assert (changed.layer, changed.value, changed.over) == ("1", near(0.7 / 0.5), "documents and 2 seeds")
    # Documents do not matter: the interval is over seeds alone, with t of one degree of freedom.
    assert changed.low == near(1.4 * (1.2 / 1.4) ** (12.7062 / 1.95996), rel=1e-3)
    one = run_of(by_sae, headline=table(*(r for r in rows if r["seed"] == 0)))
    assert take_one(one, kind="ratio_change", **BY_POSITION, than={"at": 4})[:3] == near((1.6, 1.6, 1.6))


def test_a_change_of_a_ratio_needs_another_ratio_and_divisors_above_zero() -> None:
    values = {(TOKENIZED, 4): 0.1, (TOKENIZED, 16): 0.2, (BASELINE, 4): 0.3, (BASELINE, 16): 0.4}

    def missing(than: dict[str, Any]) -> str:
        rows = (row(name, "nmse_by_position", value, at=at) for (name, at), value in values.items())
        return take_one(run_of(headline=table(*rows)), kind="ratio_change", **BY_POSITION, than=than).missing

    assert missing({"at": 4}) == ""
    assert missing({"at": 16}) == "this profile has nothing to compare with: both ratios are the same"
    assert missing({"at": 8}) == f"no nmse_by_position of {TOKENIZED} at 8"
    values[TOKENIZED, 4] = 0
    assert missing({"at": 4}) == "nmse_by_position of tokenized is not above zero, so there is no ratio"


def test_tables_without_a_seed_pair_with_every_seed() -> None:
    detection = "last_token_detection"
    run = run_of(
        headline=table(
            *(row(TOKENIZED, detection, 0.8 + s / 10, seed=s, layer=layer) for s in (0, 1) for layer in (1, 2))
        ),
        baselines=table(*(row("unigram-residuals", detection, 0.4 + n / 10, layer=n, seed=None) for n in (1, 2))),
    )
    measured = take(
        run,
        kind="difference",
        of={"metric": detection, "subject": "tokenized"},
        to={"block": "baselines", "subject": "unigram-residuals"},
    )
    assert [(m.layer, near(m.value), m.over) for m in measured] == [
        ("1", 0.35, "2 seeds"),
        ("2", 0.25, "2 seeds"),
    ]


def test_trends_over_context_length_and_depth() -> None:
    rows = [
        row("residuals", "residual_unigram_cosine", value, layer=layer, at=at, seed=None)
        for layer, at, value in ((1, 1, 0.9), (1, 8, 0.7), (1, 128, 0.6), (2, 1, 0.8), (2, 8, 0.5), (2, 128, 0.4))
    ]
    run = run_of(baselines=table(*rows))
    of = {"block": "baselines", "metric": "residual_unigram_cosine", "subject": "residuals", "at": "max"}
    assert [(m.layer, near(m.value)) for m in take(run, kind="difference", of=of, to={"at": "min"})] == [
        ("1", -0.3),
        ("2", -0.4),
    ]
    depth = take_one(run, kind="difference", of=of | {"layer": "last"}, to={"layer": "first"})
    assert (depth.layer, depth.value) == ("2 - 1", near(-0.2))
    against_first = take(run, kind="ratio", of=of, to={"layer": "first"})
    assert [(m.layer, m.missing or near(m.value)) for m in against_first] == [
        ("1", "this profile has nothing to compare with: both selections are the same"),
        ("2 / 1", 2 / 3),
    ]


def test_comparisons_of_expansions_that_are_too_close_say_nothing() -> None:
    def take_of(*values: float, of: str = "min", to: str = "max") -> Any:
        rows = (row(f"topk-k4-x{e:g}-none", "nmse", 1 / e, table="none", expansion=e) for e in values)
        first = {"block": "expansion", "metric": "nmse", "points": {"table": "none", "expansion": of}}
        second = {"points": {"expansion": to}}
        found = take_one(run_of(expansion=table(*rows)), kind="ratio", of=first, to=second, expansions_apart=8)
        return found.missing or found.value

    assert take_of(2, 4, 16) == 8
    assert take_of(2, 8) == "expansion 8 is not 8 times 2"
    assert take_of(4) == "expansion 4 is not 8 times 4"
    assert take_of(2, 16, of="max", to="min") == "expansion 2 is not 8 times 16"


def test_a_ratio_to_zero_is_not_measured_and_one_to_a_small_share_is_wide() -> None:
    two = {"of": {"metric": "dead_heldout", "subject": "tokenized"}, "to": {"subject": "baseline"}}
    tokenized = row(TOKENIZED, "dead_heldout", 0.2)

    def ratio(of_baseline: dict[str, Any]) -> Any:
        return take_one(run_of(headline=table(tokenized, of_baseline)), kind="ratio", **two)

    touching = ratio(row(BASELINE, "dead_heldout", 0.02, 0.05, n=50, over="features"))  # one feature of fifty
    # That one of fifty is dead does not rule out that hardly any is, but says that some are.
    assert touching.value == 10 and 2 < touching.low < 10 and 40 < touching.high < math.inf
    assert (
        ratio(row(BASELINE, "dead_heldout", 0.0)).missing
        == "dead_heldout of baseline is not above zero, so there is no ratio"
    )


def phrases(encoder_input: str, seed: int = 0, kind: str = "learned", **scores: float) -> list[dict[str, Any]]:
    columns = {"layer": 8, "seed": seed, "table": kind, "encoder_input": encoder_input}
    return [
        columns
        | {"text": text, "score": score, "mean_recall": score / 2, "firings": 10 * n, "lost": 5 * n, "lost_control": n}
        for n, (text, score) in enumerate(scores.items(), start=1)
    ]


def test_phrases_are_paired_by_text() -> None:
    rows = [*phrases("without_unigram", a=0.1, b=0.5, c=0.9), *phrases("residual", b=0.7, a=0.3, d=0.1)]
    encoder = table(row(TOKENIZED, "phrase_coverage", 0.5, layer=8, table="learned", encoder_input="residual"))
    run = run_of(phrases=pd.DataFrame(rows), encoder=encoder)

    def change(run: Any = run, table: str = "learned", column: str = "score") -> Any:
        of = {"table": table, "column": column, "encoder_input": "without_unigram"}
        return take_one(run, kind="phrases", of=of, to={"encoder_input": "residual"})

    # Both pairs differ by -0.2 alone, so that every resample does.
    changed = change()
    assert (*changed[:3], changed.over, changed.layer) == (*[near(-0.2)] * 3, "phrases", "8")
    assert change(column="mean_recall").value == near(-0.1)
    assert "no phrases of table none" in change(table="none").missing
    apart = run_of(
        phrases=pd.DataFrame([*phrases("residual", a=0.1), *phrases("without_unigram", b=0.1)]), encoder=encoder
    )
    assert change(apart).missing == "no phrase was measured with both"


def test_lost_firings_are_shares_of_all_firings_and_seeds_are_drawn() -> None:
    rows = [*phrases("residual", a=0.1, b=0.5), *phrases("residual", seed=1, a=0.1, b=0.5)]
    encoder = table(row(TOKENIZED, "phrase_coverage", 0.5, layer=8, table="learned", encoder_input="residual"))
    run = run_of(phrases=pd.DataFrame(rows), encoder=encoder)
    measured = take_one(run, kind="phrases", of={"table": "learned", "column": "lost"}, to={"column": "lost_control"})
    assert (*measured[:3], measured.over) == (*[near(15 / 30 - 3 / 30)] * 3, "phrases and 2 seeds")
