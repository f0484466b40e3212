"""Claims measured from a run: verdicts of checks and claims, and what is written of them."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fixtures.ledger import CONFIG, LEVEL, VALUE, claim, load
from fixtures.measured import BASELINE, TOKENIZED, row, run_of, sums, table

from tsae.claims.ledger import Ledger, load_ledger
from tsae.claims.report import claim_verdicts, measure_claims, print_claims, read_claims, verdict_sentence, write_claims
from tsae.claims.selection import Run

HOLDS = {"name": "holds", "measure": VALUE, "published": None, "direction": {"below": 0.8}}
REFUTED = HOLDS | {"name": "refuted", "direction": {"below": 0.2}}
ABSENT = HOLDS | {"name": "absent", "measure": {"kind": "value", "of": {"metric": "fvu", "subject": "tokenized"}}}
NEEDS = HOLDS | {"name": "needs", "measure": {"kind": "value", "of": {"metric": "nmse", "subject": "baseline"}}}
DECIDES = {"decides": True}


def half(**columns: Any) -> Run:
    """A run whose tokenized SAE has an NMSE of 0.5."""
    return run_of(headline=table(row(TOKENIZED, "nmse", 0.5, 0.01, over="tokens", **columns)))


def write(ledger: Ledger, run: Run, folder: Path, name: str = "claims") -> Path:
    csv = folder / f"{name}.csv"
    write_claims(ledger, run, csv, folder / f"{name}.md", folder / f"{name}.html")
    return csv


def verdicts(ledger: Ledger, run: Run) -> list[str]:
    return list(claim_verdicts(measure_claims(ledger, run)).values())


def test_a_changed_metric_changes_the_verdict(tmp_path: Path) -> None:
    ledger = load(tmp_path, claim(LEVEL))

    def judged(value: float) -> tuple[str, str]:
        documents = [(value * w, w) for w in (1.0, 2.0, 3.0)]
        run = run_of({(1, TOKENIZED, 0, None): sums(nmse=documents)}, headline=table(row(TOKENIZED, "nmse", value)))
        (only,) = measure_claims(ledger, run).to_dict("records")
        return only["verdict"], only["over"]

    assert judged(0.5) == ("reproduced", "documents")
    assert judged(0.7) == ("direction holds", "documents")
    assert judged(0.9) == ("does not hold", "documents")


def test_a_claim_has_the_worst_verdict_of_its_deciding_checks(tmp_path: Path) -> None:
    ledger = load(
        tmp_path,
        claim(LEVEL, ABSENT | DECIDES, id="C1"),  # what is not comparable is left out
        claim(LEVEL, HOLDS | DECIDES, id="C2"),
        claim(LEVEL, HOLDS | DECIDES, REFUTED | DECIDES, id="C3"),
        claim(ABSENT | DECIDES, HOLDS, id="C4"),  # context cannot save it
        claim(LEVEL, HOLDS, REFUTED, ABSENT, id="C5"),  # nor sink it
    )
    assert verdicts(ledger, half()) == [
        "reproduced",
        "direction holds",
        "does not hold",
        "not comparable here",
        "reproduced",
    ]


def test_a_check_has_the_verdict_of_its_worst_layer(tmp_path: Path) -> None:
    rows = [row(TOKENIZED, "nmse", value, layer=layer) for layer, value in ((6, 0.5), (12, 0.7), (18, 0.9))]
    judged = measure_claims(load(tmp_path, claim(LEVEL)), run_of(headline=table(*rows)))
    assert judged[["layer", "verdict"]].values.tolist() == [
        ["6", "reproduced"],
        ["12", "direction holds"],
        ["18", "does not hold"],
    ]
    assert set(judged["check_verdict"]) == set(judged["claim_verdict"]) == {"does not hold"}
    assert judged["measured"].tolist() == [0.5, 0.7, 0.9]


def test_a_claim_that_needs_what_failed_is_not_measured_unless_it_is_refuted(tmp_path: Path) -> None:
    ledger = load(
        tmp_path,
        claim(HOLDS | DECIDES, NEEDS | DECIDES, id="C1"),
        claim(HOLDS | DECIDES, NEEDS | DECIDES, REFUTED | DECIDES, id="C2"),
        claim(HOLDS | DECIDES, id="C3"),
        claim(HOLDS | DECIDES, NEEDS, id="C4"),  # for context alone
    )
    rows = [row(TOKENIZED, "nmse", 0.5, 0.01), row(BASELINE, "failed", 7.0)]
    run = run_of(headline=table(*rows))
    csv = write(ledger, run, tmp_path)
    judged = read_claims(csv)
    assert list(claim_verdicts(judged).values()) == [
        "not comparable here",
        "does not hold",
        "direction holds",
        "direction holds",
    ]
    needs = judged[judged["check"] == "needs"]
    assert set(needs["reason"]) == {f"{BASELINE} (layer 1, seed 0) failed in training"}
    assert set(needs["failed"]) == {f"{BASELINE} (layer 1, seed 0)"}
    lines = print_claims(csv).splitlines()
    assert [line.split()[1] for line in lines[1:5]] == ["needs", "refuted", "holds", "holds"]
    assert lines[-1] == f"{BASELINE} (layer 1, seed 0) failed in training, and is needed for C1, C2, C4"


def test_what_failed_at_one_layer_makes_its_check_not_comparable(tmp_path: Path) -> None:
    rows = [row(TOKENIZED, "nmse", 0.5), row(TOKENIZED, "failed", 7.0, layer=2)]
    judged = measure_claims(load(tmp_path, claim(LEVEL)), run_of(headline=table(*rows)))
    assert judged["verdict"].tolist() == ["reproduced", "not comparable here"]
    assert set(judged["check_verdict"]) == {"not comparable here"}


def test_a_claim_of_ours_is_listed_only_where_a_deciding_check_is_measured_or_failed(tmp_path: Path) -> None:
    ledger = load(
        tmp_path,
        claim(ABSENT | DECIDES, id="C1"),
        claim(ABSENT | DECIDES, id="B1"),
        claim(ABSENT | DECIDES, HOLDS, id="B2"),
        claim(ABSENT | DECIDES, HOLDS | DECIDES, id="B3"),
        claim(NEEDS | DECIDES, id="B4"),
    )
    run = run_of(headline=table(row(TOKENIZED, "nmse", 0.5, 0.01), row(BASELINE, "failed", 7.0)))
    assert list(claim_verdicts(measure_claims(ledger, run))) == ["C1", "B3", "B4"]


def test_what_is_lacking_everywhere_is_said_once(tmp_path: Path) -> None:
    rows = [row(TOKENIZED, "nmse", 0.5, layer=layer) for layer in (1, 2)]
    (only,) = measure_claims(load(tmp_path, claim(ABSENT | DECIDES)), run_of(headline=table(*rows))).to_dict("records")
    assert (only["layer"], only["text"], only["reason"]) == ("", "-", f"block 'headline' has no fvu of {TOKENIZED}")


def test_written_claims(tmp_path: Path) -> None:
    ledger = load(tmp_path, claim(LEVEL), claim({**LEVEL, "published": [0.1, 0.2]}, HOLDS, id="C2"))
    rows = (row(TOKENIZED, "nmse", 0.5 + s / 1e4, seed=s, over="tokens") for s in range(3))
    run = run_of(headline=table(*rows))
    first, second = (write(ledger, run, tmp_path, name) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert first.with_suffix(".md").read_bytes() == second.with_suffix(".md").read_bytes()
    lines = first.read_text().splitlines()
    assert lines[0] == (
        "id,claim,check,decides,layer,source,published,measured,low,high,text,over,verdict,reason,failed,check_verdict,"
        "claim_verdict"
    )
    assert lines[1].startswith("C1,Something holds.,level,True,1,somewhere,0.5 ± 0.1,0.5001,")
    assert lines[1].endswith(",tokens and 3 seeds,reproduced,,,reproduced,reproduced")
    assert ",level,True,1,somewhere,0.1 to 0.2 ± 0.1," in lines[2]
    assert lines[2].endswith("direction holds,0.3 above what was published,,direction holds,direction holds")
    assert ",holds,False,1,somewhere,no number," in lines[3]
    text = first.with_suffix(".md").read_text()
    assert "| C1: Something holds. | level | 0.5 ± 0.1 | 0.5 (0.5 to 0.5) at layer 1 | **reproduced** |" in text
    assert "## C2\n\nSomething holds. Source: somewhere. Verdict: **direction holds**.\n" in text
    assert (
        "| holds | context | no number | 0.5 (0.5 to 0.5) at layer 1 | tokens and 3 seeds | direction holds |" in text
    )


def test_every_layer_is_shown_and_the_reason_of_the_worst(tmp_path: Path) -> None:
    rows = [row(TOKENIZED, "nmse", value, layer=layer) for layer, value in ((6, 0.5), (12, 0.9), (18, 0.95))]
    csv = write(load(tmp_path, claim(LEVEL)), run_of(headline=table(*rows)), tmp_path)
    text = csv.with_suffix(".md").read_text()
    cells = "0.5 at layer 6; 0.9 at layer 12; 0.95 at layer 18 | - | does not hold | at layer 12, 18: not below 0.8 |"
    assert cells in text
    assert verdict_sentence(read_claims(csv), "C1") == (
        "C1 does not hold. level: 0.5 at layer 6; 0.9 at layer 12; 0.95 at layer 18 (at layer 12, 18: not below 0.8)."
    )
    assert print_claims(csv).splitlines()[1].split() == [
        "C1",
        "level",
        "0.5",
        "±",
        "0.1",
        "0.9",
        "12",
        "does",
        "not",
        "hold",
    ]
    with pytest.raises(ValueError, match="no claim C9"):
        verdict_sentence(read_claims(csv), "C9")


def test_a_bound_and_a_large_number_are_shown_as_such(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "architecture": "topk",
        "k": 4,
        "expansion": 4.0,
        "encoder_input": "residual",
        "table": "learned",
    }
    headline = [
        row(BASELINE, "nmse", 0.2),
        row(TOKENIZED, "nmse", 0.1, **settings),
        row(BASELINE, "n_parameters", 28.3e6),
    ]
    sooner = row(f"{TOKENIZED}-budget0.125", "nmse", 0.19, budget=0.125, **settings)
    speedup = HOLDS | DECIDES | {"measure": {"kind": "equal_loss_speedup", "metric": "nmse"}, "direction": {"above": 1}}
    size = {"kind": "value", "of": {"metric": "n_parameters", "subject": "baseline"}}
    context = {"name": "size", "measure": size, "published": None, "not_comparable": "said beside"}
    run = run_of(headline=table(*headline), speed=table(sooner))
    judged = measure_claims(load(tmp_path, claim(speedup, context)), run)
    assert judged["text"].tolist() == ["> 8", "28.3 million"]
    assert judged["measured"].tolist() == [8, 28.3e6]
    assert judged["verdict"].tolist() == ["direction holds", "not comparable here"]


@pytest.mark.refused("HTML in text, in the page of claims")
def test_the_page_of_claims_shows_hostile_text_as_text(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script> | [x](javascript:alert(2)) ![x](http://a/b.png) <img src=x>\n\n<b>&lt;"
    ledger = load(tmp_path, claim({**LEVEL, "name": hostile}) | {"claim": hostile, "source": hostile})
    html = write(ledger, half(), tmp_path).with_suffix(".html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt; |" in html
    assert not any(harmful in html for harmful in ("<script", "<img src=x", 'href="javascript', "<b>"))
    (summary, details) = (part.split("</table>")[0] for part in html.split("<table>")[1:])
    assert summary.count("<tr>") == details.count("<tr>") == 2 and summary.count("<td>") == 5


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return write(load_ledger(CONFIG / "claims.yaml"), half(), tmp_path)


def test_a_run_with_one_table_judges_every_check(written: Path) -> None:
    judged = read_claims(written)
    assert judged["id"].nunique() == 12
    assert set(judged["verdict"]) == {"not comparable here"}
    assert (judged["reason"] != "").all()
    assert judged.groupby("id")["decides"].any().all()
    text = written.with_suffix(".md").read_text()
    assert all(f"\n## C{number}\n" in text for number in range(1, 13))


def test_printed_claims_fit_a_terminal(written: Path, tmp_path: Path) -> None:
    lines = print_claims(written).splitlines()
    assert max(map(len, lines)) <= 120
    assert len(lines) == 14
    assert lines[-1] == "12 claims: 12 not comparable here"

    long = claim({**LEVEL, "name": "a check with quite a long name " * 5, "published": [0.1, 0.2]}, id="C2")
    lines = print_claims(write(load(tmp_path, claim(LEVEL), long), half(), tmp_path, "b")).splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[1].split() == ["C1", "level", "0.5", "±", "0.1", "0.5", "(0.49", "to", "0.51)", "1", "reproduced"]
    assert lines[2].endswith("0.1 to 0.2 ± 0.1  0.5 (0.49 to 0.51)  1      direction holds")
    assert "…" in lines[2]
    assert lines[3] == "2 claims: 1 reproduced, 1 direction holds"


def test_a_summary_shows_the_check_that_decides(tmp_path: Path) -> None:
    ledger = load(tmp_path, claim(LEVEL, REFUTED, HOLDS | DECIDES))
    csv = write(ledger, half(), tmp_path)
    assert print_claims(csv).splitlines()[1].split()[:2] == ["C1", "holds"]
    assert verdict_sentence(pd.DataFrame(read_claims(csv)), "C1") == (
        "The direction of C1 holds. holds: 0.5 (0.49 to 0.51) at layer 1 (95% intervals over tokens; no number was published)."
    )
