"""The tables of phrases as they are written."""

import json
from pathlib import Path

import pandas as pd
import pytest
from fixtures.phrases import IDS, firing, identity_sae, measure, write_residuals

from tsae.phrases.collect_phrases import write_phrase_tables
from tsae.phrases.coverage import COLUMNS, EXAMPLE_COLUMNS
from tsae.phrases.measure_phrases import write_phrase_table


def test_nothing_to_measure(tmp_path: Path) -> None:
    found = measure(identity_sae(4), write_residuals(tmp_path, firing(), IDS), [])
    assert found.measurements == []
    write_phrase_table(tmp_path / "phrases.csv", found.table)
    assert (tmp_path / "phrases.csv").read_text() == ",".join(COLUMNS) + "\n"
    write_phrase_table(tmp_path / "examples.csv", found.examples)
    assert (tmp_path / "examples.csv").read_text() == ",".join(EXAMPLE_COLUMNS) + "\n"


def test_the_table_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "phrases.csv"
    frame = measure(identity_sae(4), write_residuals(tmp_path, firing(), IDS)).table
    recalls = pd.Series([[1 / 3, 1.0]], dtype=object)
    write_phrase_table(path, frame.assign(recall=recalls, untrained_score=0.125))
    assert path.read_text().splitlines() == [
        ",".join(COLUMNS),
        ' Golden Gate,"[3, 4]",7,5,5,1,0,"[0.333333, 1.0]",1,4,0,0,0,0,0,0,0,"[1.0, 1.0]",0.125',
    ]
    write_phrase_tables(tmp_path / "both.csv", [path, path])
    read = pd.read_csv(tmp_path / "both.csv")
    assert json.loads(read["recall"][1]) == [0.333333, 1.0]
    assert read["mean_recall"].tolist() == pytest.approx([2 / 3, 2 / 3], abs=1e-5)
