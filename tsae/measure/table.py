"""The tidy table: one row per subject and metric, from one JSON file per job."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from tsae.measure.measurement import Measurement
from tsae.profile.point import Point
from tsae.store.arguments import Files
from tsae.store.files import check, read_text, write_json, write_text

COLUMNS = [
    "layer", "subject", "seed",
    *Point.model_fields,
    "step", "tokens", "metric", "at", "min_count", "value", "low", "high", "n", "over",
]  # fmt: skip
ON_THE_WAY = ["step", "tokens"]  # in training curves alone
WHOLE_NUMBERS = ["layer", "seed", "k", *ON_THE_WAY, "min_count", "n"]


def write_measurements(path: Path, labels: Mapping[str, Any], measured: Mapping[str, Sequence[Measurement]]) -> None:
    """Write the measurements of one job.

    Args:
        path: the JSON file.
        labels: columns that all its rows share.
        measured: measurements by subject, such as the id of a point.
    """
    write_json(
        path, [row for subject, rows in measured.items() for row in labelled({"subject": subject, **labels}, rows)]
    )


def labelled(labels: Mapping[str, Any], measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Rows of a table: measurements with their shared columns."""
    return [dict(labels) | asdict(measurement) for measurement in measurements]


def write_table(output: Path, measurements: Files) -> None:
    """Gather measurements in one tidy table.

    Args:
        output: the table.
        measurements: files of `write_measurements`.
    """
    rows = [row for file in measurements for row in json.loads(read_text(file))]
    table = pd.DataFrame(rows, columns=COLUMNS)
    for column in WHOLE_NUMBERS:
        table[column] = table[column].astype("Int64")
    table = table.drop(columns=[column for column in ON_THE_WAY if table[column].isna().all()])
    write_text(output, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a table; the columns are described in `results/README.md`."""
    check(Path(path))
    # Read in chunks, a long table has columns of mixed types.
    return pd.read_csv(path, dtype=dict.fromkeys(WHOLE_NUMBERS, "Int64"), low_memory=False)


def read_tables(paths: Iterable[str | Path]) -> pd.DataFrame:
    """Read tables into one; without tables, no rows."""
    tables = [read_table(path) for path in paths]
    return pd.concat(tables) if tables else pd.DataFrame(columns=COLUMNS)
