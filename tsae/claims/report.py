"""The verdict of every check of the ledger, as a table, text and a page."""

import io
import math
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
from markdown_it import MarkdownIt

from tsae.claims.ledger import Check, Claim, Ledger
from tsae.claims.measures import measure
from tsae.claims.replicates import Measured
from tsae.claims.selection import Run
from tsae.claims.verdicts import NOT_COMPARABLE, VERDICTS, judge, worst
from tsae.store.files import check as check_file
from tsae.store.files import read_text, write_text
from tsae.store.markdown import escaped, markdown_table

HEADER = """\
# Claims

Measured by `tsae.claims` from the tables and the sums of this run; `config/claims.yaml` states what is measured.

- **reproduced**: the whole interval is on the claimed side of a bound, and within the tolerance of the published number or range.
- **direction holds**: the whole interval is on the claimed side. The level differs, is open, was not published or cannot be compared.
- **inconclusive**: the interval includes the bound, or, where a level is all that is claimed, the end of the tolerance. The reason says
  roughly what it would take.
- **does not hold**: the whole interval is on the other side.
- **not comparable here**: this profile lacks what is needed, an SAE that is needed failed in training, or the published
  number is of something else.

A check is judged at each layer, and has the verdict of its worst one. A claim has the verdict of the worst of its deciding checks;
the others are context. What is not comparable is left out unless all is. A claim that needs an SAE that failed in training is
not comparable either, unless a deciding check does not hold.

Intervals are 95%, paired over the same documents and seeds; each row says what its own are over. docs/methods.md describes them.
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
STATEMENTS = {
    "reproduced": "{} is reproduced",
    "direction holds": "The direction of {} holds",
    "inconclusive": "{} is inconclusive",
    "does not hold": "{} does not hold",
    "not comparable here": "{} is not comparable here",
}
BETWEEN_SAES = "; "


def measure_claims(ledger: Ledger, run: Run) -> pd.DataFrame:
    """Measure and judge every check at every layer: a row each, with the columns of `claims.csv`.

    A claim of ours is left out where the profile measures none of its deciding checks.
    """
    measured = [(claim, _measure_claim(claim, run)) for claim in ledger]
    return pd.DataFrame(row for claim, rows in measured if not claim.is_ours or _is_measured(rows) for row in rows)


def _is_measured(rows: list[dict[str, Any]]) -> bool:
    """Whether a deciding check has a number, or lacks one because a training failed."""
    return any(row["decides"] and (row["text"] != "-" or row["failed"]) for row in rows)


def _measure_claim(claim: Claim, run: Run) -> list[dict[str, Any]]:
    by_check = [[_row(claim, check, measured) for measured in measure(check.measure, run)] for check in claim.checks]
    for rows in by_check:
        verdict = worst([row["verdict"] for row in rows], failed=any(row["failed"] for row in rows))
        for row in rows:
            row["check_verdict"] = verdict
    deciding = [row for rows in by_check for row in rows if row["decides"]]
    verdict = worst([row["check_verdict"] for row in deciding], failed=any(row["failed"] for row in deciding))
    return [row | {"claim_verdict": verdict} for rows in by_check for row in rows]


def _row(claim: Claim, check: Check, measured: Measured) -> dict[str, Any]:
    verdict, reason = judge(check, measured)
    least, most = measured.ends
    value, low, high = (min(max(number, least), most) for number in measured[:3])
    return {
        "id": claim.id,
        "claim": claim.claim,
        "check": check.name,
        "decides": check.decides,
        "layer": measured.layer,
        "source": claim.source,
        "published": check.published_text,
        "measured": value,
        "low": low,
        "high": high,
        "text": _text(measured),
        "over": measured.over,
        "verdict": verdict,
        "reason": reason,
        "failed": BETWEEN_SAES.join(measured.failed),
    }


def _text(measured: Measured) -> str:
    """A number and its interval; `<` and `>` mark values outside the measurable range."""
    if measured.missing:
        return "-"
    least, most = measured.ends

    def shown(number: float) -> str:
        if number < least or number > most:
            return f"< {least:.3g}" if number < least else f"> {most:.3g}"
        if math.isinf(number):
            return "unbounded"
        return f"{number / 1e6:.3g} million" if abs(number) >= 1e5 else f"{number:.3g}"

    value, low, high = map(shown, measured[:3])
    alone = low == high and (not measured.over or measured.high < least or measured.low > most)
    return value if alone else f"{value} ({low} to {high})"


def write_claims(ledger: Ledger, run: Run, csv: Path, markdown: Path, html: Path) -> None:
    """Measure every claim and write the verdicts; see `measure_run`."""
    checks = measure_claims(ledger, run)
    write_text(csv, checks.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    text = _describe(checks)
    write_text(markdown, text)
    write_text(html, PAGE.format(body=MarkdownIt("commonmark", {"html": False}).enable("table").render(text)))


def read_claims(csv: Path) -> pd.DataFrame:
    """Read `claims.csv`; missing text is empty.

    Raises:
        ValueError: the file is missing or damaged.
    """
    check_file(csv)
    text = dict.fromkeys(["layer", "over", "reason", "failed", "text"], str)
    table = pd.read_csv(io.StringIO(read_text(csv)), dtype=text)
    return table.fillna(dict.fromkeys(text, ""))


def claim_verdicts(checks: pd.DataFrame) -> dict[str, str]:
    """The verdict of every claim, from the rows of `claims.csv`."""
    return dict(checks.drop_duplicates("id")[["id", "claim_verdict"]].itertuples(index=False, name=None))


def statement(claim: str, verdict: str) -> str:
    """The beginning of a sentence: `C3 is inconclusive`."""
    return STATEMENTS[verdict].format(claim)


def verdict_sentence(checks: pd.DataFrame, claim: str) -> str:
    """A claim's verdict, and the check it comes from with its value at each layer, in a sentence.

    Args:
        checks: rows of `claims.csv`.
        claim: its id.

    Raises:
        ValueError: there is no such claim.
    """
    if claim not in set(checks["id"]):
        raise ValueError(f"there is no claim {claim}")
    rows = _shown_check(checks[checks["id"] == claim])
    first = rows.iloc[0]
    over = ", ".join(dict.fromkeys(over for over in rows["over"] if over))
    about = [f"95% intervals over {over}"] * bool(over) + [_reasons(rows)] * bool(_reasons(rows))
    brackets = f" ({'; '.join(about)})" if about else ""
    return f"{statement(claim, first['claim_verdict'])}. {first['check']}: {_by_layer(rows)}{brackets}."


def _shown_check(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of a claim's first deciding check that has the claim's verdict."""
    deciding = rows[rows["decides"]]
    same = deciding[deciding["check_verdict"] == deciding["claim_verdict"]]
    shown = (deciding if same.empty else same)["check"].iloc[0]
    return rows[rows["check"] == shown]


def _by_layer(rows: pd.DataFrame) -> str:
    parts = [f"{row['text']} at layer {row['layer']}" if row["layer"] else row["text"] for _, row in rows.iterrows()]
    return "; ".join(parts)


def _reasons(rows: pd.DataFrame) -> str:
    """The reasons of a check's verdict, at the layers that have it."""
    same = rows[rows["verdict"] == rows["check_verdict"]]
    chosen = (rows if same.empty else same).groupby("reason", sort=False)["layer"].agg(list)
    if len(chosen) == 1 and len(same) == len(rows):
        return str(chosen.index[0])
    parts = [f"at layer {', '.join(layers)}: {reason}" for reason, layers in chosen.items() if reason]
    return "; ".join(parts)


def _table(rows: list[dict[str, str]]) -> str:
    return markdown_table([{name: escaped(cell) for name, cell in row.items()} for row in rows], others="---") + "\n"


def _describe(checks: pd.DataFrame) -> str:
    """The contents of `claims.md`."""
    summary, parts = [], []
    for name, rows in checks.groupby("id", sort=False):
        first, shown = rows.iloc[0], _shown_check(rows)
        summary.append(
            {
                "claim": f"{name}: {first['claim']}",
                "deciding check": shown.iloc[0]["check"],
                "published": shown.iloc[0]["published"],
                "measured": _by_layer(shown),
                "verdict": f"**{first['claim_verdict']}**",
            }
        )
        details = [
            {
                "check": of_check.iloc[0]["check"],
                "": "decides" if of_check.iloc[0]["decides"] else "context",
                "published": of_check.iloc[0]["published"],
                "measured": _by_layer(of_check),
                "interval over": "; ".join(dict.fromkeys(over for over in of_check["over"] if over)) or "-",
                "verdict": of_check.iloc[0]["check_verdict"],
                "reason": _reasons(of_check),
            }
            for _, of_check in rows.groupby("check", sort=False)
        ]
        about = f"{first['claim']} Source: {first['source']}. Verdict: **{first['claim_verdict']}**.\n"
        parts.append(f"## {name}\n\n{about}\n{_table(details)}")
    return "\n".join([HEADER, _table(summary), *parts])


def print_claims(csv: str | Path, width: int = 120) -> str:
    """`claims.csv` for a terminal: a line per claim with its worst deciding check and layer, and the SAEs that failed."""
    checks = read_claims(Path(csv))
    shown = []
    for _, rows in checks.groupby("id", sort=False):
        of_check = _shown_check(rows)
        same = of_check[of_check["verdict"] == of_check["check_verdict"]]
        shown.append((of_check if same.empty else same).iloc[0])
    columns = {
        "claim": [row["id"] for row in shown],
        "check": [row["check"] for row in shown],
        "published": [row["published"] for row in shown],
        "measured": [row["text"] for row in shown],
        "layer": [row["layer"] for row in shown],
        "verdict of the claim": [row["claim_verdict"] for row in shown],
    }
    widths = [max(map(len, (name, *cells))) for name, cells in columns.items()]
    widths[1] += min(0, width - sum(widths) - 2 * (len(widths) - 1))
    lines = [
        "  ".join(
            textwrap.shorten(cell, size, placeholder="…").ljust(size) for cell, size in zip(cells, widths, strict=True)
        ).rstrip()
        for cells in (columns, *zip(*columns.values(), strict=True))
    ]
    counts = Counter(row["claim_verdict"] for row in shown)
    total = ", ".join(f"{counts[verdict]} {verdict}" for verdict in (*VERDICTS, NOT_COMPARABLE) if counts[verdict])
    needed: dict[str, list[str]] = {}
    for claim, failed in checks[["id", "failed"]].drop_duplicates().itertuples(index=False, name=None):
        for sae in filter(None, failed.split(BETWEEN_SAES)):
            needed[sae] = list(dict.fromkeys([*needed.get(sae, []), claim]))
    failures = [f"{sae} failed in training, and is needed for {', '.join(ids)}" for sae, ids in needed.items()]
    return "\n".join([*lines, f"{len(shown)} claims: {total}", *failures])
