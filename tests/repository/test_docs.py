"""Pages are in step with the code and the run on record, and their links lead somewhere."""

import itertools
import json
import re
from pathlib import Path

import captions
import fill
import pandas as pd
import pytest
import run
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
    text = (ROOT / "docs/metrics.md").read_text()
    copy = tmp_path / "metrics.md"
    copy.write_text(text.replace("`dead_heldout` | share of features", "`dead_heldout` | number of features"))
    fill.fill(copy)
    assert copy.read_text() == text, "run `make docs`"
    for name in ("`dead_heldout`", "`feature_{rows}_similar{of}`", "`_alive` (alive features)"):
        assert name in text


def test_the_table_of_figures_is_up_to_date() -> None:
    figures = fill.BLOCKS["figures"]()
    assert f"<!-- begin figures -->\n{figures}\n<!-- end figures -->" in (ROOT / "README.md").read_text(), (
        "run `make docs`"
    )


def test_captions_under_figures_of_benchmarks_are_up_to_date() -> None:
    pages = "\n".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    for name in captions.OF_BENCHMARKS:
        caption = captions.BLOCKS[f"figure_{name}"]()
        assert f"<!-- begin figure_{name} -->\n{caption}\n<!-- end figure_{name} -->" in pages, "run `make docs`"


def test_a_caption_changes_with_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    with pytest.raises(run.NotMeasuredError):
        captions.BLOCKS["figure_pareto"]()
    write_text(tmp_path / "manifest.json", "{}")
    found = captions.BLOCKS["figure_pareto"]()
    assert found.startswith("![NMSE and CE added against L0") and "> **NMSE and CE added against L0" in found


PAGES = fill.pages()
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: f"{path.parent.name}-{path.stem}")


@each_page
def test_every_marker_of_a_page_is_one_of_a_pair(page: Path) -> None:
    text = page.read_text()
    found = [match[2] for match in fill.BLOCK.finditer(text)]
    assert len(re.findall(r"<!-- begin ", text)) == len(found) == len(re.findall(r"<!-- end \w+ -->", text))
    assert len(re.findall(r"<!-- (?:verdict|sentence) ", text)) == len(verdicts.MARKER.findall(text))
    assert set(found) <= fill.BLOCKS.keys()


def test_every_block_is_on_a_page() -> None:
    assert {match[2] for page in PAGES for match in fill.BLOCK.finditer(page.read_text())} == fill.BLOCKS.keys()


def test_a_block_that_nothing_writes_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- begin lost -->\n<!-- end lost -->")
    with pytest.raises(ValueError, match=r"page.md: no function of docs/ writes the block lost"):
        fill.fill(page)


def test_without_a_finished_run_its_blocks_and_verdicts_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    write_text(tmp_path / "claims.csv", CLAIMS.to_csv(index=False))
    page = tmp_path / "page.md"
    text = "<!-- begin claims -->\nold\n<!-- end claims -->\n<!-- verdict C3 -->old<!-- end -->"
    page.write_text(text)
    fill.fill(page)
    assert page.read_text() == text
    missing = tmp_path / "manifest.json"
    assert capsys.readouterr().out == (
        f"page.md: claims stays as it is: there is no {missing}\n"
        f"page.md: verdicts stay as they are: there is no {missing}\n"
    )


MANIFEST = {
    "versions": {"python": "3.11", "torch": "2.13"},
    "machine": {"cores": 2, "architecture": "x86_64", "system": "Linux"},
    "git": {"commit": "0123456789abcdef"},
    "config_sha256": "fedcba9876543210",
}
FILLED = """<!-- begin machine -->
2 cores (x86_64, Linux), commit `0123456789ab`, configuration `fedcba987654`.
python 3.11, torch 2.13.
<!-- end machine -->
<!-- begin claims -->
- **reproduced**: said

| claim |
| --- |
| C1 |

### C1

Text.
<!-- end claims -->
<!-- begin claims_summary -->
| claim |
| --- |
| C1 |
<!-- end claims_summary -->
"""


def test_blocks_are_filled_from_the_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    report = "# Claims\n\n- **reproduced**: said\n\n| claim |\n| --- |\n| C1 |\n\n## C1\n\nText.\n"
    (tmp_path / "claims.md").write_text(report)
    page = tmp_path / "page.md"
    page.write_text(fill.BLOCK.sub(r"\1\nold\n\3", FILLED))
    fill.fill(page)
    assert page.read_text() == FILLED


MARKDOWN = [
    *PAGES,
    *(ROOT / name for name in ("CONTRIBUTING.md", "figures/README.md", "results/README.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$", re.MULTILINE)
CITED = re.compile(
    r"`((?:benchmarks|config|docs|envs|notebooks|tests|tsae|workflow)/[\w/.-]+\.(?:json|lock|md|py|smk|yaml))`"
)


def without_code(page: Path) -> str:
    """The text of a page, less its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What a link into a page may name: its headings, as GitHub spells them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Links within the repository that lead nowhere."""
    broken = []
    for link in filter(None, itertools.chain.from_iterable(LINK.findall(without_code(page)))):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if "://" not in link and (not target.exists() or (anchor and anchor not in anchors(target))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_links_lead_somewhere_and_cited_files_exist(page: Path) -> None:
    assert broken_links(page) == []
    assert [path for path in CITED.findall(page.read_text()) if not (ROOT / path).exists()] == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A title, with `code`\n[a](#a-title-with-code) [b](page.md#none) [c](lost.md) [d](https://example.org)\n\n[e]: lost.py\n"
    )
    assert broken_links(page) == ["page.md#none", "lost.md", "lost.py"]


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.[mp]*")), ids=lambda path: path.name)
def test_no_page_or_module_is_long(page: Path) -> None:
    assert len(page.read_text().splitlines()) <= 300


RECORDED = verdicts.recorded_verdicts(json.loads((ROOT / "docs/record.json").read_text()))


@each_page
def test_a_page_states_the_verdicts_of_the_run_on_record(page: Path) -> None:
    assert not list(verdicts.wrong_verdicts(page.read_text(), RECORDED)), "run `make docs`"


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
    with pytest.raises(ValueError, match=r"says that C3 holds, and the run has inconclusive; rewrite"):
        verdicts.require(CLAIMS, "C3")
    with pytest.raises(ValueError, match=r"says that C3: 'NMSE' holds, and the run has inconclusive"):
        verdicts.require(CLAIMS, "C3", "NMSE")
    with pytest.raises(ValueError, match=r"C12: 'cosines' holds, and the run has no such check"):
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
    (tmp_path / "manifest.json").touch()
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    fill.fill(document)
    assert document.read_text() == "C3: <!-- verdict C3 -->inconclusive<!-- end -->"
