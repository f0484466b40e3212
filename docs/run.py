"""The files of the last embedded run, and how documents show them."""

import functools
import json
from pathlib import Path
from typing import Any

import pandas as pd

from tsae.claims.replicates import estimate, load_sums_of_run, paths_of_sums, sample
from tsae.claims.selection import Run
from tsae.measure.table import read_table
from tsae.profile import config

ROOT = Path(__file__).parent.parent
PROFILE = config.load(ROOT / "config/config.yaml")
RESULTS = ROOT / "results" / PROFILE.profile
FIGURES = ROOT / "figures" / PROFILE.profile
BASELINE, TOKENIZED, REMAINDER = PROFILE.headline()


def of_seeds(table: pd.DataFrame, form: str, scale: float = 1.0) -> str:
    """Mean of the seeds of one SAE at one layer, with its 95% interval."""
    if table.empty:
        return "-"
    measured = estimate(sums(), lambda values: values, [sample(sums(), table)])
    value, low, high = (form.format(number * scale) for number in measured[:3])
    return f"{value} ({low} to {high})"


@functools.cache
def sums() -> Run:
    """The sums of the run, from which means of seeds have their intervals."""
    found = load_sums_of_run(paths_of_sums(RESULTS / "sums", read("metrics")))
    settings = PROFILE.evaluation
    return Run({}, {}, PROFILE.simple.threshold, found, settings.bootstrap, settings.seed)


def write_json(path: Path, content: Any) -> None:
    """Write a file of the repository, which has its history in git and no record beside it."""
    path.write_text(json.dumps(content, indent=2) + "\n")


@functools.cache
def read(name: str) -> pd.DataFrame:
    """A table of the run."""
    return read_table(RESULTS / f"{name}.csv")


def rows_of(table: pd.DataFrame, **where: object) -> pd.DataFrame:
    """Rows with these values in these columns."""
    for column, value in where.items():
        table = table[table[column] == value]
    return table
