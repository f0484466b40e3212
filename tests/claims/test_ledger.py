"""The ledger of claims: its mistakes are named, and what was published is computed from the published curves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.ledger import CONFIG, LEVEL, claim, load

from tsae.claims.ledger import load_ledger, load_published, published_range


def test_the_ledger_has_every_claim() -> None:
    ledger = load_ledger(CONFIG / "claims.yaml")
    assert [claim.id for claim in ledger if not claim.is_ours] == [f"C{number}" for number in range(1, 13)]


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
    stated = [(check.measure.metric, check.published) for check in c2.checks if check.published is not None]  # type: ignore[union-attr]
    assert len(stated) == 4
    assert all(published == tuple(gpt2.loc[metric]) for metric, published in stated)


def test_the_second_selection_inherits_from_the_first() -> None:
    (c9,) = (claim for claim in load_ledger(CONFIG / "claims.yaml") if claim.id == "C9")
    declared = c9.checks[1].measure
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
        ({"decides": False}, "checks: none of them decides the claim; mark one with decides: true"),
        (
            {"published": None, "tolerance": None, "direction": None, "not_comparable": "a floor"},
            "checks.0: decides: a check that is comparable in no profile cannot decide",
        ),
        (
            {"measure": {"kind": "phrases", "of": {"table": "learned", "column": "lots"}, "to": {"column": "lost"}}},
            "checks.0.measure.phrases.of.column: Input should be 'score', 'untrained_score', 'mean_recall', 'lost', 'lost_control', "
            "'lost_matched', 'lost_raw', 'lost_raw_control', 'lost_span' or 'lost_span_control' (got 'lots')",
        ),
        (
            {"measure": {"kind": "equal_loss_speedup", "metric": "nmse", "of": "baseline"}},
            "checks.0.measure.equal_loss_speedup.of: Input should be 'tokenized' or 'remainder' (got 'baseline')",
        ),
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


def test_two_checks_of_a_claim_have_two_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"claims\.yaml: C1: checks: two are called 'level'$"):
        load(tmp_path, claim(LEVEL, LEVEL))


def test_a_block_of_ones_own_may_be_named(tmp_path: Path) -> None:
    measure = {"kind": "value", "of": {"metric": "nmse", "block": "zero_bias", "points": {"k": 32}}}
    ((only,),) = (entry.checks for entry in load(tmp_path, claim(LEVEL | {"measure": measure})))
    assert only.measure.of.block == "zero_bias"  # type: ignore[union-attr]


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


def test_published_numbers_are_found_by_their_check(tmp_path: Path) -> None:
    ledger = load(tmp_path, claim(LEVEL), claim({**LEVEL, "published": [0.1, 0.2]}, id="C2"))
    assert published_range(ledger, "C2", "level") == (0.1, 0.2)
    assert published_range(ledger, "C1", "level") == (0.5, 0.5)
    with pytest.raises(ValueError, match="no published number for C2: 'other'"):
        published_range(ledger, "C2", "other")
