"""Fill README.md, config/README.md, notebooks/README.md and docs/*.md with the numbers and figures of the last finished run: `make docs`.

A block between `<!-- begin NAME -->` and `<!-- end NAME -->`, on any page, is replaced by what the function NAME of BLOCKS returns. What
was not measured here stays as it is. Verdicts within sentences are those of the ledger: see verdicts.py.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import beyond
import captions
import cost
import declared
import findings
import kept
import licences
import other_tools
import performance
import surprises
import tables
import verdicts
from run import FIGURES, RESULTS, ROOT, NotMeasuredError, manifest, of_run, run_claims, write_json

from tsae.profile import config
from tsae.store import layout

BLOCKS: dict[str, Callable[[], str]] = {
    block.__name__: block
    for module in (cost, declared, findings, kept, licences, other_tools, performance, surprises, tables)
    for block in module.BLOCKS
}
BLOCKS |= captions.BLOCKS | beyond.BLOCKS
BLOCK = re.compile(r"(<!-- begin (\w+) -->).*?(<!-- end \2 -->)", re.DOTALL)


def pages() -> list[Path]:
    """Every page that may have blocks or verdicts."""
    first = (ROOT / folder / "README.md" for folder in ("", "config", "notebooks"))
    return [*first, *sorted((ROOT / "docs").glob("*.md"))]


def fill(path: Path) -> None:
    """Replace every block and every verdict of a page.

    Raises:
        ValueError: there is no such block or claim, or a finding says of a claim what the run does not.
    """

    def replace(match: re.Match[str]) -> str:
        if match[2] not in BLOCKS:
            raise ValueError(f"{path.name}: no function of docs/ writes the block {match[2]}")
        try:
            return f"{match[1]}\n{BLOCKS[match[2]]()}\n{match[3]}"
        except NotMeasuredError as error:
            print(f"{path.name}: {match[2]} stays as it is: there is no {error}")
            return match[0]

    text = BLOCK.sub(replace, path.read_text(encoding="utf-8"))
    if verdicts.MARKER.search(text):
        try:
            text = verdicts.fill_verdicts(text, run_claims())
        except NotMeasuredError as error:
            print(f"{path.name}: verdicts stay as they are: there is no {error}")
    path.write_text(text, encoding="utf-8")


def keep_run() -> None:
    """Copy the figures of the finished run to docs/figures, and write its claims to docs/record.json.

    Raises:
        NotMeasuredError: there is no finished run.
    """
    record = run_claims()[["id", "check", "layer", "measured", "low", "high", "verdict", "claim_verdict"]]
    write_json(
        ROOT / "docs/record.json",
        {"config_sha256": manifest()["config_sha256"], "claims": json.loads(record.to_json(orient="records"))},
    )
    (ROOT / "docs/figures").mkdir(exist_ok=True)
    of_steps = [performance.BENCH / f"{name}.png" for name in ("growth", "peers")]
    for figure in (*sorted(FIGURES.glob("*.png")), *of_steps):
        if figure.is_file():
            shutil.copyfile(figure, ROOT / "docs/figures" / figure.name)


if __name__ == "__main__":
    (ROOT / "workflow/schemas/config.schema.json").write_text(config.json_schema(), encoding="utf-8")
    for keep in (cost.write_record, keep_run, kept.keep_notebooks, beyond.keep_runs):
        with contextlib.suppress(NotMeasuredError):
            keep()
    for profile in cost.profiles():
        profile.write_text(cost.with_plan(profile), encoding="utf-8")
    for page in pages():
        fill(page)
    try:
        of_run(layout.MANIFEST)
    except NotMeasuredError:
        raise SystemExit(f"error: no finished run in {RESULTS}; run make reproduce first") from None
