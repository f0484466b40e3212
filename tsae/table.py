"""The tidy table: one row per subject and metric, from one JSON file per job."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from tsae.files import write_json, write_text
from tsae.metrics import Measurement

COLUMNS = [
    "layer", "subject", "seed",
    "architecture", "k", "expansion", "table", "lookup_scale", "encoder_scale", "b_dec", "topk_relu",
    "metric", "at", "min_count", "value", "low", "high", "n",
]  # fmt: skip
WHOLE_NUMBERS = ["layer", "seed", "k", "min_count", "n"]


def write_measurements(path: Path, labels: Mapping[str, Any], measured: Mapping[str, Sequence[Measurement]]) -> None:
    """Write the measurements of one job.

    Args:
        path: the JSON file.
        labels: columns that all its rows share.
        measured: measurements by subject: the id of a point, or what else was measured.
    """
    rows = [
        dict(labels) | {"subject": subject} | asdict(m)
        for subject, measurements in measured.items()
        for m in measurements
    ]
    write_json(path, rows)


def write_table(path: Path, measurements: Sequence[Path]) -> None:
    """Write `metrics.csv`: the rows of all files, in their order."""
    rows = [row for file in measurements for row in json.loads(file.read_text())]
    table = pd.DataFrame(rows, columns=COLUMNS)
    for column in WHOLE_NUMBERS:
        table[column] = table[column].astype("Int64")
    write_text(path, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def read_table(path: str | Path) -> pd.DataFrame:
    """Read `metrics.csv`; the columns are described in `results/README.md`."""
    return pd.read_csv(path, dtype=dict.fromkeys(WHOLE_NUMBERS, "Int64"))
