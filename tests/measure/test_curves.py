"""Training curves: a row per checkpoint and metric, the trained SAE last."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.evaluation import SETTINGS, Evaluated, by_name, losses, losses_of, reconstruction
from fixtures.training import LAYER, Prepared

from tsae.measure.curves import measure_curve
from tsae.measure.sequences import spread
from tsae.measure.sums import DocumentSums, load_curve
from tsae.measure.table import read_table, write_table
from tsae.profile.point import Point
from tsae.profile.sweep import Job
from tsae.profile.training import Curves, Training
from tsae.sae.checkpoint import load
from tsae.store import files
from tsae.store.tensors import load_tensors
from tsae.training.train import train

CHECKPOINTS = (2, 11)
JOB = Job(layer=LAYER, point=Point(k=4, expansion=2, table="learned"), seed=0)
TRAINING = Training(tokens=7000, batch_size=70, lr=3e-3, lr_end=3e-4, table_lr=1e-2, buffer_tokens=2000)
CURVES = Curves(ce_sequences=SETTINGS.ce_sequences)


@pytest.fixture(scope="module")
def sae_folder(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curves") / "sae"
    train(JOB, TRAINING, prepared.residuals, prepared.unigrams, folder, CHECKPOINTS)
    return folder


def measure(
    evaluated: Evaluated,
    prepared: Prepared,
    sae_folder: Path,
    curves: Curves = CURVES,
    checkpoints: Sequence[int] = CHECKPOINTS,
) -> list[dict[str, Any]]:
    return measure_curve(
        JOB,
        sae_folder,
        checkpoints,
        prepared.model,
        prepared.residuals,
        prepared.heldout_tokens,
        evaluated.ablations,
        evaluated.trained_ones,
        SETTINGS,
        curves,
        False,
        sae_folder / "curve.json",
        sae_folder / "sums.safetensors",
    )


@pytest.fixture(scope="module")
def measured(
    evaluated: Evaluated, prepared: Prepared, sae_folder: Path
) -> tuple[list[dict[str, Any]], dict[int, DocumentSums]]:
    rows = measure(evaluated, prepared, sae_folder)
    return rows, load_curve(sae_folder / "sums.safetensors")


@pytest.fixture(scope="module")
def rows(measured: tuple[list[dict[str, Any]], dict[int, DocumentSums]]) -> list[dict[str, Any]]:
    return measured[0]


@pytest.fixture(scope="module")
def curve(measured: tuple[list[dict[str, Any]], dict[int, DocumentSums]]) -> dict[int, DocumentSums]:
    return measured[1]


def at_step(rows: list[dict[str, Any]], step: int) -> dict[str, dict[str, Any]]:
    return {row["metric"]: row for row in rows if row["step"] == step and row["min_count"] is None}


def test_every_checkpoint_has_every_metric_and_the_trained_sae_comes_last(rows: list[dict[str, Any]]) -> None:
    steps = list(dict.fromkeys(row["step"] for row in rows))
    assert steps == [*CHECKPOINTS, 100]
    assert all(row["tokens"] == 70 * row["step"] for row in rows)
    metrics = [[(row["metric"], row["min_count"]) for row in rows if row["step"] == step] for step in steps]
    assert metrics[0] == metrics[1] == metrics[2]
    assert len(set(metrics[0])) == len(metrics[0])
    assert {"nmse", "fvu", "ce_added", "ce_added_nats", "dead_heldout"} <= {metric for metric, _ in metrics[0]}
    of_table = {"feature_token_bias_similar", "token_bias_unigram_cosine"}
    assert {row for row in metrics[0] if row[1] is not None} == {(metric, at) for metric in of_table for at in (1, 20)}
    for row in rows:
        assert row["low"] <= row["value"] <= row["high"]


def test_the_last_rows_are_the_evaluation_of_the_trained_sae(
    evaluated: Evaluated, sae_folder: Path, rows: list[dict[str, Any]]
) -> None:
    sae, last = load(sae_folder), at_step(rows, 100)
    ablations = load_tensors(evaluated.ablations)
    expected = by_name([*reconstruction(sae, evaluated.whole)[0], *losses(sae, evaluated, ablations)])
    assert set(last) == set(expected)
    for name, row in last.items():
        of_row = (row["value"], row["low"], row["high"], row["n"])
        assert of_row == (expected[name].value, expected[name].low, expected[name].high, expected[name].n), name


@pytest.mark.parametrize("step", CHECKPOINTS)
def test_checkpoints_are_measured_as_they_were_on_the_way(
    evaluated: Evaluated, sae_folder: Path, rows: list[dict[str, Any]], step: int
) -> None:
    sae, row = load(sae_folder / f"checkpoints/step{step:08d}"), at_step(rows, step)
    heldout = evaluated.heldout.kept_rows()
    errors = (heldout.residuals - sae(heldout.residuals, heldout.tokens)).square().sum(1)
    assert row["nmse"]["value"] == pytest.approx((errors / heldout.residuals.square().sum(1)).mean().item(), rel=1e-5)
    ablations = load_tensors(evaluated.ablations)
    scored = ablations["scored"]
    patched = losses_of(sae, evaluated.model, evaluated.sequences)[scored].double()
    clean = ablations["clean"][scored].double()
    added = (patched - clean).sum()
    assert row["ce_added"]["value"] == pytest.approx((added / clean.sum()).item(), rel=1e-6)
    assert row["ce_added_nats"]["value"] == pytest.approx((added / scored.sum()).item(), rel=1e-6)
    assert row["nmse"]["value"] > at_step(rows, 100)["nmse"]["value"]


def test_the_sums_of_every_checkpoint_give_its_rows(
    rows: list[dict[str, Any]], curve: dict[int, DocumentSums], evaluated: Evaluated
) -> None:
    assert list(curve) == [*CHECKPOINTS, 100]
    for step, sums in curve.items():
        assert torch.equal(sums.documents, evaluated.whole.documents.unique())
        expected = {name: row for name, row in at_step(rows, step).items() if name != "dead_heldout"}
        found = by_name(sums.measure(SETTINGS.bootstrap, SETTINGS.seed))
        assert found.keys() == expected.keys()
        for name, measured in found.items():
            assert asdict(measured) == {key: expected[name][key] for key in asdict(measured)}
        assert {m.over for m in found.values()} == {"documents"}


def test_the_loss_is_measured_on_its_own_number_of_sequences(
    prepared: Prepared, evaluated: Evaluated, sae_folder: Path, rows: list[dict[str, Any]]
) -> None:
    # Of the sequences whose loss is measured at all.
    assert len(evaluated.sequences.tokens) == SETTINGS.ce_sequences
    for limit in (3, 7):
        other = at_step(measure(evaluated, prepared, sae_folder, Curves(ce_sequences=limit)), 100)
        assert other["ce_added"]["n"] == spread(evaluated.sequences, limit).kept[:, :-1].sum()
        assert other["ce_added"]["value"] != at_step(rows, 100)["ce_added"]["value"]
        assert other["nmse"] == at_step(rows, 100)["nmse"]


def test_an_sae_without_checkpoints_has_its_end_alone(prepared: Prepared, evaluated: Evaluated) -> None:
    measured = measure(evaluated, prepared, evaluated.saes["none"], checkpoints=())
    assert {(row["step"], row["tokens"]) for row in measured} == {(100, 12_800)}


def test_a_damaged_checkpoint_is_named(
    evaluated: Evaluated, prepared: Prepared, sae_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(sae_folder, tmp_path / "sae")
    (tmp_path / "sae/checkpoints/step00000011/sae.safetensors").write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"checkpoints/step00000011/sae\.safetensors"):
        measure(evaluated, prepared, tmp_path / "sae")
    shutil.rmtree(tmp_path / "sae/checkpoints/step00000011")
    with pytest.raises(ValueError, match=r"checkpoints/step00000011/config\.json: no such file"):
        measure(evaluated, prepared, tmp_path / "sae")


def test_curves_make_a_table(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    files.write_json(tmp_path / "curve.json", rows)
    write_table(tmp_path / "curves.csv", [tmp_path / "curve.json"])
    table = read_table(tmp_path / "curves.csv")
    nmse = table[(table["metric"] == "nmse") & (table["subject"] == JOB.point.id)]
    assert list(zip(nmse["step"], nmse["tokens"], strict=True)) == [(2, 140), (11, 770), (100, 7000)]
    assert nmse["value"].tolist() == pytest.approx(
        [at_step(rows, step)["nmse"]["value"] for step in (2, 11, 100)], rel=1e-5
    )
