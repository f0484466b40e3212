"""Sentences of the documents that contain a verdict: filled in from the ledger, and checked against the run on record.

<!-- verdict C3 -->inconclusive<!-- end -->                          the verdict of a claim
<!-- sentence C3 -->C3 is inconclusive. NMSE, ...<!-- end -->        the whole sentence: verdict, check, values, reason
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from tsae.claims.report import claim_verdicts, statement, verdict_sentence

MARKER = re.compile(r"(<!-- (verdict|sentence) (C\d+) -->)(.*?)(<!-- end -->)", re.DOTALL)
HOLDING = ("reproduced", "direction holds")
# What is copied from the ledger's own report; other blocks are sentences like any.
REPORT = re.compile(r"<!-- begin (claims|claims_summary) -->.*?<!-- end \1 -->", re.DOTALL)
# A claim and what is said of it within a sentence, such as "so C6 holds" or "calls C3 undecided".
TYPED = re.compile(
    r"\bC\d+\b[^.;:|]{0,60}?\b(holds|does not hold|do not hold|hold|undecided|inconclusive|reproduced|not comparable)\b"
)


def fill_verdicts(text: str, checks: pd.DataFrame) -> str:
    """A document with every verdict as the rows of `claims.csv` have it.

    Raises:
        ValueError: there is no such claim.
    """
    verdicts = claim_verdicts(checks)

    def replace(match: re.Match[str]) -> str:
        claim = match[3]
        if claim not in verdicts:
            raise ValueError(f"a document asks for the verdict of {claim}, which is no claim of the ledger")
        return match[1] + (verdicts[claim] if match[2] == "verdict" else verdict_sentence(checks, claim)) + match[5]

    return MARKER.sub(replace, text)


def require(checks: pd.DataFrame, claim: str, check: str | None = None, said_in: str = "docs/findings.py") -> None:
    """See that a sentence which says that a claim holds, or one check of it, may be said.

    Args:
        checks: rows of `claims.csv`.
        claim: its id.
        check: one of its checks; None: the claim itself.
        said_in: the file with the sentence.

    Raises:
        ValueError: it does not hold in this run, or there is no such claim or check.
    """
    rows = (
        checks[checks["id"] == claim] if check is None else checks[(checks["id"] == claim) & (checks["check"] == check)]
    )
    found = rows["claim_verdict" if check is None else "check_verdict"].unique().tolist()
    if not found or not set(found) <= set(HOLDING):
        what = claim if check is None else f"{claim}: {check!r}"
        raise ValueError(
            f"a sentence in {said_in} says that {what} holds, and the run has {' and '.join(found) or 'no such check'}; rewrite it"
        )


def recorded_verdicts(record: Mapping[str, Any]) -> dict[str, str]:
    """The verdict of each claim in docs/record.json."""
    return {row["id"]: row["claim_verdict"] for row in record["claims"] if "claim_verdict" in row}


def wrong_verdicts(text: str, verdicts: Mapping[str, str]) -> Iterator[str]:
    """What a document says of claims that is not their verdict, or that no marker keeps in step with it: a line each."""
    for match in MARKER.finditer(text):
        kind, claim, stated = match[2], match[3], " ".join(match[4].split())
        if claim not in verdicts:
            yield f"{claim}: the run on record has no verdict for it, and the document says {stated!r}"
            continue
        verdict = verdicts[claim]
        right = stated == verdict if kind == "verdict" else stated.startswith(f"{statement(claim, verdict)}. ")
        if not right:
            yield f"{claim}: the run on record has {verdict!r}, and the document says {stated!r}"
    rest = REPORT.sub("", MARKER.sub("", text))
    for match in TYPED.finditer(rest):
        yield f"a verdict typed by hand: {' '.join(match[0].split())!r}; write <!-- verdict ... --><!-- end --> instead"
