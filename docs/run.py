"""The files of the last finished run of the embedded profile, and what the pages read from them."""

import functools
import json
from pathlib import Path
from typing import Any

import pandas as pd

from tsae.claims.replicates import estimate, load_sums_of_run, paths_of_sums, sample
from tsae.claims.report import read_claims
from tsae.claims.selection import Run
from tsae.measure.table import read_table
from tsae.profile import config
from tsae.store import layout

ROOT = Path(__file__).parent.parent
PROFILE = config.load(ROOT / "config/config.yaml")
RESULTS = ROOT / layout.results_of(PROFILE.profile)
FIGURES = ROOT / layout.figures_of(PROFILE.profile)
# The default profile has all three.
BASELINE, TOKENIZED, REMAINDER = (point or "" for point in PROFILE.headline())


class NotMeasuredError(Exception):
    """What a block shows has not been measured here; the message names the missing file."""


def of_run(name: str) -> Path:
    """A file of the finished run.

    Raises:
        NotMeasuredError: the file is missing, or the run is not finished: the manifest is its last file.
    """
    for path in (RESULTS / layout.MANIFEST, RESULTS / name):
        if not path.is_file():
            raise NotMeasuredError(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
    return RESULTS / name


def manifest() -> dict[str, Any]:
    """The manifest of the run."""
    content: dict[str, Any] = json.loads(of_run(layout.MANIFEST).read_bytes())
    return content


@functools.cache
def read(name: str) -> pd.DataFrame:
    """A table of the run."""
    return read_table(of_run(name))


def run_claims() -> pd.DataFrame:
    """The rows of the run's `claims.csv`."""
    return read_claims(of_run(layout.CLAIMS))


def rows_of(table: pd.DataFrame, **where: object) -> pd.DataFrame:
    """Rows with these values in these columns."""
    for column, value in where.items():
        table = table[table[column] == value]
    return table


@functools.cache
def sums() -> Run:
    """The sums of the run, from which means of seeds have their intervals."""
    found = load_sums_of_run(paths_of_sums(RESULTS, read(layout.METRICS)))
    settings = PROFILE.evaluation
    return Run({}, {}, PROFILE.simple.threshold, found, settings.bootstrap, settings.seed)


def of_seeds(table: pd.DataFrame, form: str, scale: float = 1.0) -> str:
    """Mean of the seeds of one SAE at one layer, with its 95% interval."""
    if table.empty:
        return "-"
    measured = estimate(sums(), lambda values: values, [sample(sums(), table)])
    value, low, high = (form.format(number * scale) for number in measured[:3])
    return f"{value} ({low} to {high})"


def size_on_disk() -> int:
    """Bytes of all files of the finished run."""
    return sum(path.stat().st_size for path in of_run(layout.MANIFEST).parent.rglob("*") if path.is_file())


def write_json(path: Path, content: Any) -> None:
    """Write a file of the repository, which has its history in git and no record beside it."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
