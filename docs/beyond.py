"""What runs beyond the paper measured: docs/beyond.json and the blocks of docs/beyond.md and docs/two_models.md.

The page has several runs, and not all are made together. So each is kept in the record when it is finished, and the page is filled from
the record.
"""

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from captions import OF_THE_PAPER, with_caption
from other_tools import compared
from performance import BENCH
from run import ROOT, NotMeasuredError, write_json

from tsae.claims.ledger import is_ours, load_ledger
from tsae.claims.report import claim_verdicts, read_claims
from tsae.profile.figures import FIGURES, caption_of, title_of
from tsae.store import layout
from tsae.store.markdown import markdown_table

RECORD = ROOT / "docs/beyond.json"
PEERS = BENCH / "beyond/quality.json"
PROFILES = {"beyond": "SmolLM2", "random": "SmolLM2 with random weights", "gemma": "Gemma 3 270M"}
# Of the profile `beyond`: those that a claim of ours is about, and its sparsity sweep.
SHOWN = (*(name for name in FIGURES if name not in OF_THE_PAPER), "pareto")
KEPT = [
    "id",
    "claim",
    "check",
    "decides",
    "layer",
    "measured",
    "low",
    "high",
    "text",
    "verdict",
    "check_verdict",
    "claim_verdict",
]


def keep_runs() -> None:
    """Copy the claims of every finished run beyond the paper to the record, and the figures of one."""
    record = json.loads(RECORD.read_bytes()) if RECORD.is_file() else {}
    for profile in PROFILES:
        results = ROOT / layout.results_of(profile)
        if not (results / layout.MANIFEST).is_file():
            continue
        made = json.loads((results / layout.MANIFEST).read_bytes())
        claims = read_claims(results / layout.CLAIMS)[KEPT]
        record[profile] = {
            "config_sha256": made["config_sha256"],
            "commit": made["git"]["commit"],
            "machine": made["machine"],
            "job_minutes": job_minutes(results),
            "claims": json.loads(claims.to_json(orient="records")),
        }
        for name in SHOWN if profile == "beyond" else ():
            drawn = ROOT / layout.figures_of(profile) / f"{name}.png"
            if drawn.is_file():
                (ROOT / "docs/figures/beyond").mkdir(parents=True, exist_ok=True)
                shutil.copyfile(drawn, ROOT / f"docs/figures/beyond/{name}.png")
    if PEERS.is_file():
        record["peers"] = json.loads(PEERS.read_bytes())
    if record:
        write_json(RECORD, record)


def job_minutes(results: Path) -> float:
    """Time of all jobs of a run, one after the other [min]. Snakemake samples processor time and misses the end of a job."""
    of_jobs = [pd.read_csv(path, sep="\t")["s"].sum() for path in (results / layout.BENCHMARKS).rglob("*.tsv")]
    return round(float(sum(of_jobs)) / 60, 1)


def recorded(profile: str) -> dict[str, Any]:
    """What is on record of a run.

    Raises:
        NotMeasuredError: nothing is.
    """
    record: dict[str, Any] = json.loads(RECORD.read_bytes()) if RECORD.is_file() else {}
    if profile not in record:
        raise NotMeasuredError(f"{RECORD.name} of the profile {profile}")
    found: dict[str, Any] = record[profile]
    return found


def claims_of(profile: str) -> pd.DataFrame:
    """The claims of a run on record: the columns KEPT."""
    return pd.DataFrame(recorded(profile)["claims"])


def measured(claim: str, check: str, profile: str = "beyond") -> str:
    """What was measured for a check, with its interval.

    Raises:
        NotMeasuredError: the run is not on record.
        ValueError: it has no such check.
    """
    rows = claims_of(profile)
    rows = rows[(rows["id"] == claim) & (rows["check"] == check)]
    if len(rows) != 1:
        raise ValueError(f"the profile {profile} has {len(rows)} rows of {claim}: {check!r}")
    return str(rows["text"].iloc[0])


def beyond_runs() -> str:
    """What each run was made with."""
    lines = []
    for profile, model in PROFILES.items():
        try:
            made = recorded(profile)
        except NotMeasuredError:
            lines.append(f"- `{profile}`, {model}: not run yet.")
            continue
        about = made["machine"]
        took = f", jobs of {made['job_minutes']:.0f} min in all" if "job_minutes" in made else ""
        lines.append(
            f"- `{profile}`, {model}: {about['cores']} cores ({about['architecture']}, {about['system']}){took}, commit "
            f"`{(made['commit'] or 'unknown')[:12]}`, configuration `{made['config_sha256'][:12]}`."
        )
    return "\n".join(lines)


def beyond_verdicts() -> str:
    """Every claim of ours with its verdict."""
    return markdown_table(
        [
            {"id": claim, "claim": rows["claim"].iloc[0], "verdict": f"**{rows['claim_verdict'].iloc[0]}**"}
            for claim, rows in _ours()
        ]
    )


def beyond_checks() -> str:
    """Every check of the claims of ours."""
    return markdown_table(
        [
            {
                "claim": claim,
                "layer": row["layer"],
                "check": row["check"] + ("" if row["decides"] else " (context)"),
                "measured": row["text"],
                "verdict": row["verdict"],
            }
            for claim, rows in _ours()
            for row in rows.to_dict("records")
        ]
    )


def beyond_peers() -> str:
    """SAEs of other tools on the residuals of the profile `beyond`."""
    return compared(recorded("peers"))


def both_models() -> str:
    """The verdict of each claim of the paper on both models, with its deciding checks at the middle layer of each."""
    second = claims_of("gemma")
    first = _claims_of_the_paper()
    verdicts = [claim_verdicts(rows) for rows in (first, second)]
    rows = []
    for claim in load_ledger(ROOT / "config/claims.yaml"):
        if claim.is_ours:
            continue
        deciding = [check.name for check in claim.checks if check.decides]
        for place, name in enumerate(deciding):
            numbers = [_middle(rows_of, claim.id, name) for rows_of in (first, second)]
            said = [f"**{of.get(claim.id, '-')}**" if place == 0 else "" for of in verdicts]
            rows.append(
                {
                    "claim": claim.id if place == 0 else "",
                    "deciding check": name,
                    "SmolLM2": numbers[0],
                    "Gemma": numbers[1],
                    "SmolLM2, claim": said[0],
                    "Gemma, claim": said[1],
                }
            )
    return markdown_table(rows)


def both_tally() -> str:
    """On how many models each claim of the paper holds."""
    second = claim_verdicts(claims_of("gemma"))
    first = claim_verdicts(_claims_of_the_paper())
    holds = ("reproduced", "direction holds")
    groups: dict[str, list[str]] = {"both": [], "SmolLM2 alone": [], "Gemma alone": [], "neither": []}
    names = {(True, True): "both", (True, False): "SmolLM2 alone", (False, True): "Gemma alone"}
    for claim in first:
        groups[names.get((first[claim] in holds, second.get(claim) in holds), "neither")].append(claim)
    return "\n".join(
        f"- It holds on {name if name != 'both' else 'both models'}: {', '.join(claims)}."
        for name, claims in groups.items()
        if claims
    )


def _claims_of_the_paper() -> pd.DataFrame:
    """The claims of the paper in the embedded run on record."""
    rows = pd.DataFrame(json.loads((ROOT / "docs/record.json").read_bytes())["claims"])
    return rows[~rows["id"].map(is_ours)]


def _ours() -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each claim of ours, from the first run that measured it."""
    found: dict[str, pd.DataFrame] = {}
    for profile in PROFILES:
        try:
            rows = claims_of(profile)
        except NotMeasuredError:
            if profile == "beyond":
                raise
            continue
        for claim, of_claim in rows[rows["id"].map(is_ours)].groupby("id"):
            found.setdefault(str(claim), of_claim)
    yield from sorted(found.items())


def _middle(rows: pd.DataFrame, claim: str, check: str) -> str:
    """What was measured for a check at the middle one of its layers."""
    rows = rows[(rows["id"] == claim) & (rows["check"] == check)]
    rows = rows[rows["measured"].notna()]
    if rows.empty:
        return "-"
    row = rows.iloc[len(rows) // 2]
    ends = "" if row["low"] == row["high"] else f" ({row['low']:.3g} to {row['high']:.3g})"
    return f"{row['measured']:.3g}{ends}"


def _figure(name: str) -> str:
    """A figure of the profile `beyond`, with its caption."""
    recorded("beyond")
    return with_caption(f"beyond/{name}", title_of(name), caption_of(name))


BLOCKS: dict[str, Callable[[], str]] = {
    **{
        block.__name__: block
        for block in (beyond_runs, beyond_verdicts, beyond_checks, beyond_peers, both_models, both_tally)
    },
    **{f"beyond_{name}": functools.partial(_figure, name) for name in SHOWN},
}
