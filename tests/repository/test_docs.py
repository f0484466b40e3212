"""What the documents say of the configuration is what the code says, and of claims what the run on record says."""

import json
from pathlib import Path

import fill
import pandas as pd
import pytest
import verdicts
from fixtures import ROOT

from tsae.store.files import write_text


def test_the_table_of_keys_is_up_to_date(tmp_path: Path) -> None:
    text = (ROOT / "config/README.md").read_text()
    copy = tmp_path / "README.md"
    copy.write_text(text.replace("sweep.<block>[].k", "sweep.k"))
    fill.fill(copy)
    assert copy.read_text() == text, "run `make docs`"
    assert text.count("`sweep.<block>[].k`") == 1


def test_the_tables_of_metrics_are_up_to_date(tmp_path: Path) -> None:
    text = (ROOT / "docs/methods.md").read_text()
    copy = tmp_path / "methods.md"
    copy.write_text(text.replace("`dead_heldout` | share of features", "`dead_heldout` | number of features"))
    fill.fill(copy)
    assert copy.read_text() == text, "run `make docs`"
    for name in ("`dead_heldout`", "`feature_{rows}_similar{of}`", "`_alive` (alive features)"):
        assert name in text


def test_the_table_of_figures_is_up_to_date() -> None:
    assert f"<!-- begin figures -->\n{fill.figures()}\n<!-- end figures -->" in (ROOT / "README.md").read_text(), (
        "run `make docs`"
    )


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RECORDED = verdicts.recorded_verdicts(json.loads((ROOT / "docs/record.json").read_text()))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_states_the_verdicts_of_the_run_on_record(document: Path) -> None:
    assert not list(verdicts.wrong_verdicts(document.read_text(), RECORDED)), "run `make docs`"


def test_every_claim_has_a_verdict_on_record() -> None:
    assert RECORDED.keys() == {f"C{number}" for number in range(1, 13)}


CLAIMS = pd.DataFrame(
    {
        "id": ["C3", "C12"],
        "check": ["NMSE", "cosine"],
        "decides": True,
        "layer": "12",
        "text": ["0.976 (0.934 to 1.02)", "0.5 (0.4 to 0.6)"],
        "over": "documents and 3 seeds",
        "verdict": ["inconclusive", "reproduced"],
        "reason": ["the interval includes 1", ""],
        "check_verdict": ["inconclusive", "reproduced"],
        "claim_verdict": ["inconclusive", "reproduced"],
    }
)
VERDICTS = {"C3": "inconclusive", "C12": "reproduced"}
SENTENCE = (
    "C3 is inconclusive. NMSE: 0.976 (0.934 to 1.02) at layer 12 "
    "(95% intervals over documents and 3 seeds; the interval includes 1)."
)


def test_a_finding_that_the_run_does_not_support_is_refused() -> None:
    verdicts.require(CLAIMS, "C12")
    verdicts.require(CLAIMS, "C12", "cosine")
    with pytest.raises(ValueError, match=r"says that C3 holds, and this run has inconclusive; rewrite"):
        verdicts.require(CLAIMS, "C3")
    with pytest.raises(ValueError, match=r"says that C3: 'NMSE' holds, and this run has inconclusive"):
        verdicts.require(CLAIMS, "C3", "NMSE")
    with pytest.raises(ValueError, match=r"C12: 'cosines' holds, and this run has no such check"):
        verdicts.require(CLAIMS, "C12", "cosines")
    mixed = CLAIMS.assign(id="C3", check="NMSE", check_verdict=["reproduced", "does not hold"])
    with pytest.raises(ValueError, match="reproduced and does not hold"):
        verdicts.require(mixed, "C3", "NMSE")


def test_verdicts_are_filled_in_from_the_ledger() -> None:
    text = "So C3 is <!-- verdict C3 -->reproduced<!-- end -->.\n<!-- sentence C3 --><!-- end --> And <!-- verdict C12 -->x<!-- end -->."
    filled = verdicts.fill_verdicts(text, CLAIMS)
    assert filled == (
        "So C3 is <!-- verdict C3 -->inconclusive<!-- end -->.\n"
        f"<!-- sentence C3 -->{SENTENCE}<!-- end --> And <!-- verdict C12 -->reproduced<!-- end -->."
    )
    assert verdicts.fill_verdicts(filled, CLAIMS) == filled
    assert not list(verdicts.wrong_verdicts(filled, VERDICTS))
    with pytest.raises(ValueError, match="the verdict of C13, which is no claim"):
        verdicts.fill_verdicts("<!-- verdict C13 --><!-- end -->", CLAIMS)


@pytest.mark.parametrize(
    ("planted", "complaint"),
    [
        (
            "<!-- verdict C3 -->reproduced<!-- end -->",
            "C3: the run on record has 'inconclusive', and the document says 'reproduced'",
        ),
        ("<!-- verdict C3 --><!-- end -->", "C3: the run on record has 'inconclusive', and the document says ''"),
        (
            f"<!-- sentence C3 -->{SENTENCE.replace('is inconclusive', 'does not hold')}<!-- end -->",
            "C3: the run on record has 'inconclusive', and the document says 'C3 does not hold.",
        ),
        ("<!-- verdict C7 -->reproduced<!-- end -->", "C7: the run on record has no verdict for it"),
        ("rise with expansion, so C6 holds, and", "a verdict typed by hand: 'C6 holds'"),
        ("the ledger calls C3\nundecided", "a verdict typed by hand: 'C3 undecided'"),
    ],
)
def test_a_planted_verdict_is_found(planted: str, complaint: str) -> None:
    (found,) = verdicts.wrong_verdicts(f"Text. {planted} More text on C3.", VERDICTS)
    assert found.startswith(complaint)


def test_the_ledgers_own_report_holds_no_typed_verdicts_and_other_blocks_may() -> None:
    found = list(verdicts.wrong_verdicts("<!-- begin findings -->\nSo C3 holds.\n<!-- end findings -->", VERDICTS))
    assert found and found[0].startswith("a verdict typed by hand: 'C3 holds'")
    text = "<!-- begin claims -->\n| C3 | does not hold |\n<!-- end claims -->\nC3 compares 8x with 64x. It holds up to scrutiny."
    assert not list(verdicts.wrong_verdicts(text, VERDICTS))


def test_a_run_with_another_verdict_changes_the_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "page.md"
    document.write_text("C3: <!-- verdict C3 -->does not hold<!-- end -->")
    write_text(tmp_path / "claims.csv", CLAIMS.to_csv(index=False))
    monkeypatch.setattr(fill, "RESULTS", tmp_path)
    fill.fill(document)
    assert document.read_text() == "C3: <!-- verdict C3 -->inconclusive<!-- end -->"
