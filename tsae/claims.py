"""How a run compares with what the write-up claims: a verdict for every check of the ledger, as a table and to be read."""

import io
import math
import textwrap
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from markdown_it import MarkdownIt

from tsae.files import read_text, write_text
from tsae.ledger import Check, Direction, Ledger
from tsae.measures import Measured, measure
from tsae.selection import FAILED, NotMeasuredError, Run, TrainingFailedError

Verdict = Literal["reproduced", "direction holds", "does not hold", "not comparable here"]
# From best to worst; a claim has the worst of its checks. What is not comparable counts only if nothing else does, or if the
# training of an SAE failed and nothing refutes the claim.
VERDICTS: tuple[Verdict, ...] = ("reproduced", "direction holds", "does not hold")
NOT_COMPARABLE: Verdict = "not comparable here"
HEADER = """\
# Claims

Measured by `tsae.claims` from the tables of this run; `config/claims.yaml` states what is measured.

- **reproduced**: the direction holds, and the value is within the tolerance of the published number or range.
- **direction holds**: the value and its whole interval are on the claimed side of a bound; the level differs, was not
  published or cannot be compared.
- **does not hold**: neither. A value whose interval includes the bound is undecided, and so counts as not holding.
- **not comparable here**: this profile lacks what is needed, an SAE that is needed failed in training, or the published
  number is of something else.

A claim's verdict is the worst of its checks, in this order; checks that are not comparable are left out unless all are.
A claim that needs an SAE that failed in training is not comparable either, unless another check does not hold.
The first table shows the first check with that verdict.

n counts what was averaged: layers and seeds, or points of a curve.
Intervals are conservative: over layers and seeds the hull of their 95% intervals; of a ratio or difference the hull of its
pairs', each from the far ends of both intervals; of a speed-up the range.
"""
PAGE = """\
<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Claims</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222 }}
table {{ border-collapse: collapse; margin: 1em 0 }}
th, td {{ border-bottom: 1px solid #ddd; padding: .35em .7em; text-align: left; vertical-align: top }}
</style>
{body}</html>
"""


def judge(check: Check, measured: Measured) -> tuple[Verdict, str]:
    """Verdict on what was measured, and its reason, empty if nothing is to be said."""
    if measured.failed:
        return "does not hold", measured.failed
    if check.direction is not None and (reason := _refute(check.direction, measured)):
        return "does not hold", reason
    best_without_level: Verdict = NOT_COMPARABLE if check.direction is None else "direction holds"
    if check.not_comparable is not None:
        return best_without_level, check.not_comparable
    if not isinstance(check.published, tuple) or check.tolerance is None:
        return best_without_level, "no number was published"
    low, high = check.published
    outside = max(low - measured.value, measured.value - high, 0.0)
    if outside <= check.tolerance + 1e-9:
        return "reproduced", ""
    reason = f"{outside:.3g} {'below' if measured.value < low else 'above'} what was published"
    return ("does not hold" if check.direction is None else "direction holds"), reason


def _refute(direction: Direction, measured: Measured) -> str:
    """Why a direction does not hold; empty if it does."""
    match direction:
        case Direction(below=float() as bound):
            side, holds = "below", measured.value < bound
        case Direction(above=float() as bound):
            side, holds = "above", measured.value > bound
    if measured.low <= bound <= measured.high:
        return f"undecided: the interval includes the bound {bound:g}"
    return "" if holds else f"not {side} {bound:g}"


def measure_claims(ledger: Ledger, run: Run) -> pd.DataFrame:
    """Measure and judge every check: a row each, with the columns of `claims.csv`."""
    rows = []
    for claim in ledger:
        checked = []
        needs_failed = False
        for check in claim.checks:
            verdict: Verdict
            try:
                measured = measure(check.measure, run)
                verdict, reason = judge(check, measured)
            except NotMeasuredError as error:
                measured, verdict, reason = Measured(math.nan, math.nan, math.nan, 0), NOT_COMPARABLE, str(error)
                needs_failed |= isinstance(error, TrainingFailedError)
            checked.append(
                {
                    "id": claim.id,
                    "claim": claim.claim,
                    "check": check.name,
                    "source": claim.source,
                    "published": check.published_text,
                    "measured": measured.value,
                    "low": measured.low,
                    "high": measured.high,
                    "n": measured.n,
                    "verdict": verdict,
                    "reason": reason,
                }
            )
        verdicts = [row["verdict"] for row in checked]
        overall = max((v for v in verdicts if v in VERDICTS), key=VERDICTS.index, default=NOT_COMPARABLE)
        if needs_failed and overall != "does not hold":
            overall = NOT_COMPARABLE
        rows += [row | {"claim_verdict": overall} for row in checked]
    return pd.DataFrame(rows)


def write_claims(
    ledger: Ledger,
    tables: Mapping[str, pd.DataFrame],
    headline: tuple[str, str],
    simple_threshold: float,
    csv: Path,
    markdown: Path,
    html: Path,
) -> None:
    """Measure every claim and write the verdicts.

    Args:
        ledger: of `load_ledger`.
        tables: table of every block that the profile has.
        headline: ids of the baseline and of the tokenized SAE.
        simple_threshold: share of activation mass from which a feature is simple.
        csv: a row per check.
        markdown: the same to be read.
        html: the same as a page.
    """
    checks = measure_claims(ledger, Run(tables, *headline, simple_threshold))
    write_text(csv, checks.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    text = _describe(checks)
    write_text(markdown, text)
    write_text(html, PAGE.format(body=MarkdownIt("commonmark", {"html": False}).enable("table").render(text)))


def _measured_text(row: "pd.Series[Any]") -> str:
    if pd.isna(row["measured"]):
        return "-"
    return f"{row['measured']:.3g} ({row['low']:.3g} to {row['high']:.3g})"


def _summary(checks: pd.DataFrame) -> pd.DataFrame:
    """A row per claim: of its first check that has the claim's verdict."""
    return checks[checks["verdict"] == checks["claim_verdict"]].drop_duplicates("id")


def _markdown_table(rows: list[dict[str, str]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return (
        "\n".join(
            "| " + " | ".join(" ".join(cell.replace("|", "\\|").splitlines()) for cell in line) + " |" for line in lines
        )
        + "\n"
    )


def _describe(checks: pd.DataFrame) -> str:
    """The contents of `claims.md`."""
    summary = [
        {
            "claim": f"{row['id']}: {row['claim']}",
            "check": row["check"],
            "published": row["published"],
            "measured": _measured_text(row),
            "verdict": f"**{row['claim_verdict']}**",
        }
        for _, row in _summary(checks).iterrows()
    ]
    parts = [HEADER, _markdown_table(summary)]
    for name, rows in checks.groupby("id", sort=False):
        first = rows.iloc[0]
        details = [
            {
                "check": row["check"],
                "published": row["published"],
                "measured": _measured_text(row),
                "n": str(row["n"]),
                "verdict": row["verdict"],
                "reason": row["reason"],
            }
            for _, row in rows.iterrows()
        ]
        about = f"{first['claim']} Source: {first['source']}. Verdict: **{first['claim_verdict']}**.\n"
        parts.append(f"## {name}\n\n{about}\n{_markdown_table(details)}")
    return "\n".join(parts)


def print_claims(csv: str | Path, width: int = 120) -> str:
    """The verdicts in `claims.csv` as a table for a terminal: a line per claim, with the check that decides it.

    Below it, what failed in training, and the claims that need it.
    """
    checks = pd.read_csv(io.StringIO(read_text(Path(csv))))
    summary = _summary(checks)
    columns = {
        "claim": summary["id"].tolist(),
        "check": summary["check"].tolist(),
        "published": summary["published"].tolist(),
        "measured": [_measured_text(row) for _, row in summary.iterrows()],
        "verdict of the claim": summary["claim_verdict"].tolist(),
    }
    widths = [max(map(len, (name, *cells))) for name, cells in columns.items()]
    widths[1] += min(0, width - sum(widths) - 2 * (len(widths) - 1))
    lines = [
        "  ".join(
            textwrap.shorten(cell, size, placeholder="…").ljust(size) for cell, size in zip(cells, widths, strict=True)
        ).rstrip()
        for cells in (columns, *zip(*columns.values(), strict=True))
    ]
    counts = Counter(summary["claim_verdict"])
    total = ", ".join(f"{counts[verdict]} {verdict}" for verdict in (*VERDICTS, NOT_COMPARABLE) if counts[verdict])
    failed = checks[checks["reason"].str.endswith(FAILED, na=False)].groupby("reason", sort=False)["id"].unique()
    needed = [f"{reason}, and is needed for {', '.join(ids)}" for reason, ids in failed.items()]
    return "\n".join([*lines, f"{len(summary)} claims: {total}", *needed])
