"""Checks that a run's results are consistent and agree with the run on record; the rule `verify` runs them.

A claim that does not hold is a finding, not a failure; see `claims.md`.
"""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tsae.claims.ledger import load_ledger
from tsae.claims.replicates import load_sums_of_run, paths_of_sums
from tsae.claims.report import measure_claims, read_claims
from tsae.claims.selection import Run
from tsae.measure.table import read_table
from tsae.profile.config import Config
from tsae.profile.point import Point
from tsae.sae.offset import off_centre
from tsae.store import layout
from tsae.store.manifest import config_sha256

ROOT = Path(__file__).parents[2]
SETTINGS = json.loads(os.environ["TSAE_CONFIG"])
CONFIG = Config.model_validate(SETTINGS)
RESULTS, FIGURES = Path(os.environ["TSAE_RESULTS"]), Path(os.environ["TSAE_FIGURES"])
RECORD = json.loads(Path(os.environ["TSAE_RECORD"]).read_bytes())
OPTIONAL = {"curves": CONFIG.curve_jobs(), "released": CONFIG.released}
BLOCKS = [*CONFIG.sweep, "baselines", *(name for name, has in OPTIONAL.items() if has)]
TABLES = {name: read_table(RESULTS / layout.TABLE.format(table=name)) for name in BLOCKS}
CLAIMED = TABLES | (
    {"phrases": read_table(RESULTS / layout.TABLE.format(table="phrases"))} if "encoder" in CONFIG.sweep else {}
)
METRICS = read_table(RESULTS / layout.METRICS)
CLAIMS = read_claims(RESULTS / layout.CLAIMS)
CURVES = TABLES.get("curves", METRICS.iloc[:0])
SUMS = load_sums_of_run([*paths_of_sums(RESULTS, METRICS), *paths_of_sums(RESULTS, CURVES, layout.CURVE_SUMS)])
LEDGER = load_ledger(ROOT / "config/claims.yaml")
SHARES = (
    *("dead_", "feature_", "features_", "simple_", "last_token_detection", "outlier_share", "heldout_"),
    *("neighbour_overlap_", "token_bias_feature_first", "unigram_feature_first", "token_bias_same_word"),
    *("phrase_token_recall", "phrase_firings_", "phrases_left_out"),
)


def test_no_training_failed() -> None:
    failed = METRICS[METRICS["metric"] == "failed"]
    saes = failed.rename(columns={"value": "step"})[["subject", "layer", "seed", "step"]].drop_duplicates()
    assert saes.empty, f"failed in training:\n{saes.to_string(index=False)}"


def rows(metric: str, table: pd.DataFrame = METRICS) -> pd.DataFrame:
    chosen = table[table["metric"] == metric]
    assert len(chosen), f"there is no {metric}"
    return chosen


@pytest.mark.parametrize("metric", ["nmse", "fvu", "ce_added", "l0", "dead_heldout"])
def test_every_sae_of_the_configuration_is_measured_once(metric: str) -> None:
    # Another test names the failed ones.
    failed = METRICS[METRICS["metric"] == "failed"].drop_duplicates(["layer", "subject", "seed"])
    found = pd.concat([rows(metric), failed])
    released = found["subject"].str.startswith("released-")
    assert released.any() == (CONFIG.released is not None)
    assert not found[released].duplicated(["layer", "subject"]).any()
    found = found[~released]
    measured = sorted(zip(found["layer"], found["subject"], found["seed"], strict=True))
    assert measured == sorted((job.layer, job.point.id, job.seed) for job in CONFIG.jobs())


def test_values_are_finite_and_inside_their_intervals() -> None:
    assert np.isfinite(METRICS["value"]).all()
    bounded = METRICS.dropna(subset=["low", "high"])
    assert (bounded["low"] <= bounded["high"]).all()
    # A nearly constant ratio of sums may be a little outside the quantiles of its bootstrap.
    slack = 1e-6 + 0.05 * (bounded["high"] - bounded["low"])
    assert ((bounded["low"] - slack <= bounded["value"]) & (bounded["value"] <= bounded["high"] + slack)).all()


def test_shares_are_between_zero_and_one() -> None:
    shares = METRICS[METRICS["metric"].str.startswith(SHARES)]
    assert shares["value"].between(0, 1).all()


def test_no_more_features_are_active_than_allowed() -> None:
    topk = rows("l0").query("architecture == 'topk'")
    assert (topk["value"] <= topk["k"].astype(float) + 1e-9).all()
    assert (rows("l0")["value"] > 0).all()


def test_sparsity_penalties_order_l0() -> None:
    penalised = rows("l0").dropna(subset=["l1"]).sort_values("l1")
    settings = ["layer", "seed", *(name for name in Point.model_fields if name not in ("k", "l1"))]
    for _, family in penalised.groupby(settings, dropna=False):
        assert family["value"].is_monotonic_decreasing


def test_fixed_tables_stay_and_learned_ones_move() -> None:
    cosine = METRICS[METRICS["metric"] == "token_bias_unigram_cosine"]
    cosine = cosine[(cosine["min_count"] == cosine["min_count"].max()) & (cosine["lookup_scale"] > 0)]
    cosine = cosine[cosine["rows"] == "unigram"]
    assert (cosine.loc[cosine["table"] == "fixed", "value"] > 0.9999).all()
    assert (cosine.loc[cosine["table"] == "learned", "value"] < 0.9999).all()


def test_encoders_that_should_start_on_centre_do() -> None:
    assert off_centre(METRICS).empty


def test_the_clean_loss_is_the_same_for_every_sae_of_a_layer() -> None:
    assert (rows("ce_clean").groupby("layer")["value"].nunique() == 1).all()


@pytest.mark.skipif("curves" not in TABLES, reason="no checkpoints are measured")
def test_the_last_checkpoint_is_the_trained_sae() -> None:
    curves = rows("nmse", CURVES)
    last = curves[curves["step"] == curves["step"].max()].set_index(["layer", "subject", "seed"])["value"]
    final = rows("nmse", TABLES["headline"]).set_index(["layer", "subject", "seed"])["value"]
    pd.testing.assert_series_equal(last.sort_index(), final.sort_index(), rtol=1e-4)


def test_a_table_is_part_of_all_metrics() -> None:
    keys = ["layer", "subject", "seed", "metric", "at", "min_count", "value"]
    known = {tuple(map(str, row)) for row in METRICS[keys].itertuples(index=False, name=None)}
    for name, table in TABLES.items():
        if name != "curves":
            assert {tuple(map(str, row)) for row in table[keys].itertuples(index=False, name=None)} <= known, name


def test_every_claim_is_measured_from_the_tables() -> None:
    settings = CONFIG.evaluation
    run = Run(CLAIMED, CONFIG.headline().roles, CONFIG.simple.threshold, SUMS, settings.bootstrap, settings.seed)
    again = measure_claims(LEDGER, run)
    for column in ("verdict", "check_verdict", "claim_verdict"):
        assert again[column].tolist() == CLAIMS[column].tolist()
    for column in ("measured", "low", "high"):
        np.testing.assert_allclose(again[column], CLAIMS[column], rtol=1e-4)


def test_metrics_over_documents_are_those_of_the_sums() -> None:
    over_documents = pd.concat([METRICS, CURVES]).query("over == 'documents'")
    assert len(over_documents)
    for row in over_documents.to_dict("records"):
        seed, step, at = (None if pd.isna(row.get(key)) else row[key] for key in ("seed", "step", "at"))
        ratio = SUMS[row["layer"], row["subject"], seed, step].ratio(row["metric"], at)
        assert ratio.value == pytest.approx(row["value"], rel=1e-4), row


@pytest.mark.parametrize("figure", CONFIG.drawn())
@pytest.mark.parametrize("ending", ["svg", "pdf", "png"])
def test_every_figure_is_there(figure: str, ending: str) -> None:
    assert (FIGURES / f"{figure}.{ending}").stat().st_size > 5000


@pytest.mark.skipif(
    RECORD["config_sha256"] != config_sha256(SETTINGS),
    reason="the run on record is of another configuration",
)
def test_claims_agree_with_the_run_on_record() -> None:
    """Within the tolerance of the ledger, or inside the recorded interval where it has none."""
    tolerance = {(claim.id, check.name): check.tolerance or 0.0 for claim in LEDGER for check in claim.checks}
    found = CLAIMS.set_index(["id", "check", "layer"])["measured"].to_dict()
    differing = []
    for row in RECORD["claims"]:
        key = (row["id"], row["check"], row.get("layer"))
        # It was not measured then, or the ledger has changed.
        if row["measured"] is None or key not in found:
            continue
        inside = row["low"] <= found[key] <= row["high"]
        if not inside and not abs(found[key] - row["measured"]) <= tolerance[key[:2]] + 1e-9:
            differing.append(f"{key}: {found[key]} here, {row['measured']} on record")
    assert not differing
