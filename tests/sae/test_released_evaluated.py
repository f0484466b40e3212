"""Released SAEs evaluated: their metrics by hand, in the ledger and in the figures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fixtures import ROOT
from fixtures.authors import TABLE, D, F, V, by_hand, released_config, state_of, write
from fixtures.evaluation import FEATURES, MIN_FIRINGS, SETTINGS, Evaluated
from fixtures.training import LAYER, Prepared
from torch import nn

from tsae.claims.ledger import load_ledger
from tsae.claims.report import measure_claims
from tsae.claims.selection import Run, SumsOf
from tsae.figures.draw import draw
from tsae.figures.inputs import Inputs
from tsae.figures.style import save as save_figure
from tsae.measure.evaluate import evaluate
from tsae.measure.measurement import Measurement
from tsae.measure.sums import DocumentSums, load_sums
from tsae.measure.table import read_table, write_table
from tsae.profile.config import Headline
from tsae.sae.exchange.released import (
    find_released,
    import_released,
)
from tsae.store import files


@pytest.fixture(scope="module")
def measured(prepared: Prepared, evaluated: Evaluated, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Measurements of a released tokenized SAE and of its baseline, a file each, and their table."""
    folder = tmp_path_factory.mktemp("released")
    for name in ("ot30", "o30"):
        import_released(write(folder / "files", f"gpt2_resid_pre_{LAYER}_{name}.pt"), folder / name, D, V)
    for job, file in find_released(released_config(folder / "files")).items():
        name = job.removeprefix(f"layer{LAYER}/released-")
        evaluate(
            file.job,
            folder / name,
            prepared.model,
            prepared.residuals,
            prepared.heldout_tokens,
            prepared.references,
            evaluated.ablations,
            SETTINGS,
            FEATURES,
            MIN_FIRINGS,
            False,
            folder / f"{name}.json",
            folder / f"{name}.parquet",
            folder / f"{name}.safetensors",
            folder / "ot30",
        )
    write_table(folder / "released.csv", [folder / "ot30.json", folder / "o30.json"])
    return folder


@pytest.mark.parametrize("name", ["ot30", "o30"])
def test_metrics_are_those_of_the_parameters_by_hand(evaluated: Evaluated, measured: Path, name: str) -> None:
    state = state_of(name == "ot30")
    heldout = evaluated.heldout.kept_rows()
    x = heldout.residuals.float()
    acts, x_hat = by_hand(state, 30, x, heldout.tokens.long())
    assert (acts < 0).any()
    table = read_table(measured / "released.csv")
    table = table[(table["subject"] == f"released-{name}") & (table["layer"] == LAYER)]
    value = {(m.metric, m.at, m.min_count): m.value for m in (Measurement(**row) for row in rows_of(measured, name))}
    errors = (x - x_hat).square().sum(1)
    expected = {
        "nmse": (errors / x.square().sum(1)).mean(),
        "fvu": errors.sum() / (x - x.mean(0)).square().sum(),
        "l0": (acts != 0).sum(1).float().mean(),
        "l0_original": (acts > 0).sum(1).float().mean(),
        "dead_heldout": (acts == 0).all(0).float().mean(),
    }
    for metric, by in expected.items():
        assert value[metric, None, None] == pytest.approx(by.item(), rel=1e-4), metric
        assert table.loc[table["metric"] == metric, "value"].item() == pytest.approx(by.item(), rel=1e-4)
    assert value["l0", None, None] == pytest.approx(30) and value["l0_original", None, None] < 29.9
    # Features are compared with the released table, not with ours.
    rows, counts = state_of()[TABLE], evaluated.train.token_counts(V)
    cosine = nn.functional.normalize(state["W_dec"].T) @ nn.functional.normalize(rows[counts >= 1]).T
    similar = (cosine.amax(1) >= 0.3).float().mean().item()
    assert value["feature_token_bias_similarity", 0.3, 1] == pytest.approx(similar)
    metrics = set(table["metric"])
    assert not {"dead_training", "dead_training_original"} & metrics
    assert {"ce_added", "simple_unigram"} <= metrics
    assert ({"last_token_detection", "token_bias_unigram_cosine"} <= metrics) == (name == "ot30")
    assert table[["seed", "lookup_scale", "encoder_scale", "start"]].isna().all(axis=None)


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    fields = Measurement.__dataclass_fields__
    return [{key: row[key] for key in fields} for row in json.loads((folder / f"{name}.json").read_text())]


def test_the_ledger_measures_them_where_the_profile_has_them(measured: Path) -> None:
    ledger = load_ledger(ROOT / "config/claims.yaml")
    baselines = pd.DataFrame(
        [{"layer": LAYER, "subject": "unigram-residuals", "metric": "last_token_detection", "value": 0.5}],
        columns=read_table(measured / "released.csv").columns,
    )
    tables = {"released": read_table(measured / "released.csv"), "baselines": baselines}
    # The SAEs that the authors recommend are in a folder of their own.
    folder = tables["released"].assign(subject=tables["released"]["subject"].str.replace("-o", "-gpt2-layers-o"))
    sums: dict[SumsOf, DocumentSums] = {
        (LAYER, f"released-{prefix}{name}", None, None): load_sums(measured / f"{name}.safetensors")
        for name in ("ot30", "o30")
        for prefix in ("", "gpt2-layers-")
    }
    flat, in_folder = (
        measure_claims(ledger, Run(tables | {"released": released}, {}, 0.5, sums))
        for released in (tables["released"], folder)
    )
    # Replicates of features depend on the SAE's name, so they are left out.
    columns = ["id", "check", "layer", "measured", "over", "verdict"]
    pd.testing.assert_frame_equal(flat[columns], in_folder[columns])
    for present in (True, False):
        checks = measure_claims(ledger, Run(tables if present else {}, {}, 0.5, sums))
        checks = checks[checks["check"].str.contains("released")]
        assert set(checks["id"]) == {"C1", "C4", "C5", "C7", "C8", "C9"}
        if not present:
            assert set(checks["verdict"]) == {"not comparable here"}
            assert set(checks["reason"]) == {"this profile has no block 'released'"}
    by_hand = tables["released"].set_index(["subject", "metric"])["value"]
    value = flat.set_index("check")["measured"]
    assert value["NMSE, released SAEs, tokenized / baseline, k = 30"] == pytest.approx(
        by_hand["released-ot30", "nmse"] / by_hand["released-o30", "nmse"], rel=1e-4
    )
    assert value["detection with token-biases, released SAEs"] == pytest.approx(
        by_hand["released-ot30", "last_token_detection"], rel=1e-4
    )
    assert value["detection, released token-biases - unigram residuals"] == pytest.approx(
        by_hand["released-ot30", "last_token_detection"] - 0.5
    )


def drawn(figure: str, output: Path, **tables: pd.DataFrame) -> tuple[list[list[float]], str]:
    """The positions of stars in a figure, and the figure as text."""
    files = {name: ROOT / f"config/{name}.yaml" for name in ("claims", "published")}
    roles = Headline("ours-none", "ours-learned").roles
    drawing = draw(figure, Inputs(tables, files, (), roles, simple_threshold=0.5, bootstrap=50, seed=0))
    save_figure(drawing.figure, [output], *drawing.shown)
    lines = [line for ax in drawing.figure.axes for line in ax.lines if line.get_marker() == "*"]
    return [np.asarray(line.get_xydata())[0].tolist() for line in lines], output.read_text()


@pytest.mark.parametrize(
    ("figure", "subjects", "metrics"),
    [
        ("pareto", ["o30", "ot30"], ["nmse", "ce_added"]),
        ("reconstruction_by_layer", ["o30", "ot30"], ["nmse", "fvu", "ce_added"]),
        ("last_token_detection", ["ot30"], ["last_token_detection", "last_token_detection_any_position"]),
    ],
)
def test_figures_show_them_as_stars(
    measured: Path, tmp_path: Path, figure: str, subjects: list[str], metrics: list[str]
) -> None:
    ours = [
        {"layer": layer, "subject": f"ours-{table}", "seed": 0, "architecture": "topk", "k": 30, "table": table}
        | {"expansion": F / D, "encoder_input": "residual"}
        | {"metric": metric, "value": 0.5, "low": 0.4, "high": 0.6}
        for layer in (1, LAYER)
        for table in ("none", "learned")
        for metric in ("l0", "nmse", "fvu", "ce_added", "last_token_detection", "last_token_detection_any_position")
    ]
    alone = [
        row | {"subject": subject, "seed": None, "k": None}
        for row in ours
        for subject in ("unigram-residuals", "conditional-means")
        if row["table"] == "none"
    ]
    tables = {}
    for name, rows in (("headline", ours), ("pareto", ours), ("baselines", alone)):
        files.write_json(tmp_path / f"{name}.json", rows)
        write_table(tmp_path / f"{name}.csv", [tmp_path / f"{name}.json"])
        tables[name] = read_table(tmp_path / f"{name}.csv")

    released = read_table(measured / "released.csv")
    # Not comparable with ours: another size, another encoder.
    rows = json.loads((measured / "ot30.json").read_text())
    files.write_json(
        tmp_path / "others.json",
        [
            row | {"subject": f"released-{name}", **change}
            for name, change in (("ot30_x3", {"expansion": 3.0}), ("t8", {"encoder_input": "without_unigram"}))
            for row in rows
        ],
    )
    write_table(tmp_path / "others.csv", [tmp_path / "others.json"])
    theirs = pd.concat([released, read_table(tmp_path / "others.csv")])
    stars, text = drawn(figure, tmp_path / "with.svg", released=theirs, **tables)
    assert "released by the authors" in text
    table = released.set_index(["subject", "metric"])["value"]
    percent = {"nmse": 1, "fvu": 1}
    expected = [
        table[f"released-{subject}", metric] * percent.get(metric, 100) for metric in metrics for subject in subjects
    ]
    if figure == "reconstruction_by_layer":  # with layers from top to bottom
        stars = [[y, x] for x, y in stars]
    assert sorted(y for _, y in stars) == pytest.approx(sorted(expected))
    if figure != "pareto":
        # At the second of the two layers, the only one of theirs.
        assert all(0.5 < x < 1.5 for x, _ in stars)

    stars, text = drawn(figure, tmp_path / "without.svg", **tables)
    assert not stars and "released by the authors" not in text
