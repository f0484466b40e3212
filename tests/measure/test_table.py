import hashlib
import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from fixtures import ROOT

import tsae
from tsae.measure.measurement import Measurement
from tsae.measure.table import COLUMNS, ON_THE_WAY, labelled, read_table, write_measurements, write_table
from tsae.profile.point import Point
from tsae.store.files import write_json
from tsae.store.manifest import write_manifest

POINT = Point(k=4, expansion=2.5, table="learned")
LABELS = {"layer": 8, "seed": 1, **POINT.model_dump(mode="json")}
MEASUREMENTS = [
    Measurement("nmse", 0.12345678, 0.1, 0.15, n=1234567),
    Measurement("share", 0.5, 0.25, 0.75, n=6, at=0.05, min_count=20),
    Measurement("scale", 17.0),
]
# Of all tables but the training curves.
SHOWN = [column for column in COLUMNS if column not in ON_THE_WAY]


@pytest.fixture
def measured(tmp_path: Path) -> list[Path]:
    write_measurements(tmp_path / "sae.json", LABELS, {POINT.id: MEASUREMENTS})
    write_measurements(
        tmp_path / "tables.json",
        {"layer": 8},
        {"unigram-residuals": [Measurement("table_fvu", 0.5, 0.4, 0.6, n=9)], "residuals": [Measurement("scale", 2.0)]},
    )
    return [tmp_path / "sae.json", tmp_path / "tables.json"]


def test_rows_come_back(measured: list[Path], tmp_path: Path) -> None:
    write_table(tmp_path / "metrics.csv", measured)
    table = read_table(tmp_path / "metrics.csv")
    assert list(table.columns) == SHOWN
    assert table.metric.tolist() == ["nmse", "share", "scale", "table_fvu", "scale"]
    assert table.subject.tolist() == [POINT.id] * 3 + ["unigram-residuals", "residuals"]

    nmse = table.iloc[0]
    assert (nmse.layer, nmse.seed, nmse.k, nmse.n) == (8, 1, 4, 1234567)
    assert (nmse.architecture, nmse.table, nmse.expansion, nmse.lookup_scale) == ("topk", "learned", 2.5, 0.5)
    assert (nmse.value, nmse.low, nmse.high) == (0.123457, 0.1, 0.15)
    assert (nmse.encoder_input, nmse.start, str(nmse.topk_relu)) == ("residual", "centred", "True")

    at = table.iloc[1]
    assert (at["at"], at.min_count, at.n, at.value) == (0.05, 20, 6, 0.5)


def test_missing_values_stay_missing(measured: list[Path], tmp_path: Path) -> None:
    write_table(tmp_path / "metrics.csv", measured)
    table = read_table(tmp_path / "metrics.csv")
    missing = {column: table[column].isna().tolist() for column in SHOWN}
    assert missing["at"] == missing["min_count"] == [True, False, True, True, True]
    assert missing["low"] == missing["high"] == missing["n"] == [False, False, True, False, True]
    assert missing["encoder_scale"] == missing["l1"] == [True] * 5
    for column in ("seed", "k", "architecture", "expansion", "table", "lookup_scale", "encoder_input", "topk_relu"):
        assert missing[column] == [False] * 3 + [True] * 2
    for column in ("layer", "subject", "metric", "value"):
        assert missing[column] == [False] * 5


def test_whole_numbers_are_written_whole(measured: list[Path], tmp_path: Path) -> None:
    write_table(tmp_path / "metrics.csv", measured)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == ",".join(SHOWN)
    assert (
        lines[1]
        == f"8,{POINT.id},1,topk,4,,,2.5,learned,unigram,0.5,,residual,centred,,,,True,1,1,nmse,,,0.123457,0.1,0.15,1234567,"
    )
    settings = "," * len(Point.model_fields)
    assert lines[5] == f"8,residuals,{settings},scale,,,2,,,,"
    table = read_table(tmp_path / "metrics.csv")
    assert {str(table[column].dtype) for column in ("layer", "seed", "k", "min_count", "n")} == {"Int64"}


def test_settings_of_every_architecture_come_back(tmp_path: Path) -> None:
    points = [
        POINT,
        Point(architecture="relu", l1=0.5, expansion=4, table="none"),
        Point(k=8, expansion=4, table="fixed", encoder_input="without_unigram", start="authors", topk_relu=False),
    ]
    paths = [tmp_path / f"{point.id}.json" for point in points]
    for path, point in zip(paths, points, strict=True):
        labels = {"layer": 8, "seed": 0, **point.model_dump(mode="json")}
        write_measurements(path, labels, {point.id: [Measurement("nmse", 0.5)]})
    write_table(tmp_path / "metrics.csv", paths)
    rows = read_table(tmp_path / "metrics.csv").astype(object).to_dict("records")
    for row, point in zip(rows, points, strict=True):
        settings = {name: row[name] for name in Point.model_fields if not pd.isna(row[name])}
        assert Point.model_validate(settings) == point
        assert row["subject"] == point.id


def test_training_curves_have_the_step_and_the_tokens(measured: list[Path], tmp_path: Path) -> None:
    rows = [
        row
        for step in (10, 5000)
        for row in labelled({"subject": POINT.id, **LABELS, "step": step, "tokens": 512 * step}, MEASUREMENTS[:1])
    ]
    write_json(tmp_path / "curve.json", rows)
    write_table(tmp_path / "curves.csv", [tmp_path / "curve.json"])
    table = read_table(tmp_path / "curves.csv")
    assert list(table.columns) == COLUMNS
    assert (table["step"].tolist(), table["tokens"].tolist()) == ([10, 5000], [5120, 2_560_000])
    assert {str(table[column].dtype) for column in ON_THE_WAY} == {"Int64"}
    # Beside rows of other tables the columns stay.
    write_table(tmp_path / "both.csv", [*measured, tmp_path / "curve.json"])
    both = read_table(tmp_path / "both.csv")
    assert both["step"].isna().tolist() == [True] * 5 + [False] * 2


def test_labels_do_not_change_and_measurements_are_whole() -> None:
    labels = {"subject": "residuals"}
    rows = labelled(labels, MEASUREMENTS)
    assert labels == {"subject": "residuals"}
    assert [row["metric"] for row in rows] == ["nmse", "share", "scale"]
    assert rows[1] == {
        "subject": "residuals",
        "metric": "share",
        "value": 0.5,
        "low": 0.25,
        "high": 0.75,
        "n": 6,
        "at": 0.05,
        "min_count": 20,
        "over": None,
    }


def test_same_measurements_same_bytes(measured: list[Path], tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        write_table(tmp_path / name, measured)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    before = measured[0].read_bytes()
    write_measurements(measured[0], LABELS, {POINT.id: MEASUREMENTS})
    assert measured[0].read_bytes() == before


def test_files_come_in_the_order_given(measured: list[Path], tmp_path: Path) -> None:
    write_table(tmp_path / "a.csv", measured)
    write_table(tmp_path / "b.csv", measured[::-1])
    a, b = (read_table(tmp_path / name) for name in ("a.csv", "b.csv"))
    assert b.metric.tolist() == ["table_fvu", "scale", "nmse", "share", "scale"]
    by = ["subject", "metric"]
    pd.testing.assert_frame_equal(
        a.sort_values(by, ignore_index=True), b.sort_values(by, ignore_index=True), check_dtype=False
    )


def test_manifest_names_every_file_with_its_sha256(tmp_path: Path) -> None:
    contents = {"b.csv": b"1,2\n", "a.bin": bytes(range(256)) * 5000, "empty": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    settings = {"profile": "smoke", "training": {"lr": 1e-4}}
    write_manifest(tmp_path / "manifest.json", settings, [tmp_path / name for name in contents])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["sha256"] == {
        str(tmp_path / name): hashlib.sha256(content).hexdigest() for name, content in contents.items()
    }
    assert list(manifest["sha256"]) == sorted(manifest["sha256"])
    assert manifest["config"] == settings
    assert manifest["versions"]["tsae"] == tsae.__version__
    assert manifest["versions"]["torch"].startswith("2.")


def test_manifest_states_the_commit(tmp_path: Path) -> None:
    write_manifest(tmp_path / "manifest.json", {}, [])
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    expected = git.stdout.strip() if git.returncode == 0 else None
    assert json.loads((tmp_path / "manifest.json").read_text())["git"]["commit"] == expected


def test_the_configurations_hash_does_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    hashes = []
    for settings in ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1, "b": 3}):
        write_manifest(tmp_path / "manifest.json", settings, [])
        hashes.append(json.loads((tmp_path / "manifest.json").read_text())["config_sha256"])
    assert hashes[0] == hashes[1] != hashes[2]
