"""The small benchmark with a history."""

import csv
import subprocess
import sys
from pathlib import Path

from fixtures import ROOT


def run(history: Path, *options: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks/speed.py"), "--rounds", "1", "--history", str(history), *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_step_that_became_slow_is_said(tmp_path: Path) -> None:
    history = tmp_path / "speed.csv"
    assert "SLOWER" not in run(history, "--keep")
    with history.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and all(
        float(row["ratio_low"]) <= float(row["ratio"]) <= float(row["ratio_high"]) for row in rows
    )
    # As if the first step had been fast once, and the last one only on another processor.
    rows[0] |= {"ratio": "0.01", "ratio_low": "0.01", "ratio_high": "0.01"}
    rows[-1] |= {"ratio": "0.01", "ratio_low": "0.01", "ratio_high": "0.01", "cpu": "another"}
    rows[1]["ratio_high"] = rows[2]["ratio_high"] = "1000"
    with history.open("w") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    kept = history.read_bytes()
    lines = run(history).splitlines()[-4:]
    assert ["SLOWER" in line for line in lines] == [True, False, False, False]
    assert "| - |" in " ".join(lines[-1].split())
    assert history.read_bytes() == kept
