"""SAEs that failed in training: named in figures, missing in no claim without a word, and the rest of the run finishes."""

import json
import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from fixtures import ROOT
from fixtures.faults import Run
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from pydantic import TypeAdapter

from tsae.claims import selection
from tsae.claims.measures import Measure, measure
from tsae.claims.replicates import Measured
from tsae.claims.report import read_claims
from tsae.figures.draw import draw
from tsae.figures.inputs import Inputs
from tsae.figures.style import save
from tsae.measure.definitions import DEFINITIONS
from tsae.measure.measurement import Measurement
from tsae.measure.table import labelled, read_table, write_measurements, write_table
from tsae.profile import config
from tsae.profile.figures import FIGURE_NAMES
from tsae.profile.sweep import Job
from tsae.store.files import write_text

SMOKE = config.load(ROOT / "config/smoke.yaml")
BASELINE, TOKENIZED, REMAINDER = (point or "" for point in SMOKE.headline())
STEPS = (39, 78, 156)
WITH_COUNT = ("feature_", "token_bias_")
WITH_THRESHOLD = ("similarity", "similarity_alive", "_share", "_unigram", "_bigram")


def places_of(metric: str) -> tuple[float | None, ...]:
    """Values of `at` at which a metric is measured."""
    if metric.endswith(WITH_THRESHOLD):
        return 0.4, 0.5
    if metric.endswith(("_by_count", "_by_rate")) or metric == "density":
        return 0.0, 1.0
    if metric.endswith("_by_position") or metric == "first_letter_accuracy":
        return 1.0, 2.0
    return (None,)


def measurements(job: Job) -> list[Measurement]:
    """A value of every metric of an SAE: of its layer, so that points of two layers are told apart."""
    of_tables = ("token_bias_", "last_token_detection")
    of_layers = ("table_fvu", "residual_", "heldout_tokens", "outlier_", "scale", "failed", "phrase")
    return [
        Measurement(
            metric,
            0.1 * job.layer,
            0.09 * job.layer,
            0.11 * job.layer,
            10,
            at,
            20 if metric.startswith("token_bias_") else 1 if metric.startswith(WITH_COUNT) else None,
        )
        for metric in DEFINITIONS
        if not metric.startswith(of_layers) and (job.point.table != "none" or not metric.startswith(of_tables))
        for at in places_of(metric)
    ]


def baselines(layer: int) -> dict[str, list[Measurement]]:
    detections = [Measurement(f"last_token_detection{suffix}", 0.5, 0.4, 0.6, 10) for suffix in ("", "_any_position")]
    cosines = [
        Measurement(f"residual_{other}_cosine", 0.5, 0.4, 0.6, 10, at)
        for other in ("unigram", "other")
        for at in (2, 8)
    ]
    cosines += [Measurement("heldout_share_by_count", 0.5, at=float(edge)) for edge in (0, 1)]
    cosines += [Measurement("first_letter_accuracy", 0.9, 0.8, 0.95, 10)]
    of_components, of_orders = (
        [Measurement(metric, 0.5, 0.4, 0.6, 10, float(at)) for at in (1, 2)]
        for metric in ("pca_fvu", "table_fvu_by_order")
    )
    fitted = [Measurement("table_fvu_fitted", 0.5, 0.4, 0.6, 10)]
    return {
        "unigram-residuals": [*detections, *fitted],
        "conditional-means": [*detections, *of_orders],
        "residuals": [*cosines, *of_components],
    }


def phrases_of(job: Job, failed: bool) -> pd.DataFrame:
    """The phrase table of an SAE, without a row if it failed."""
    seen = job.point.encoder_input
    score = 0.3 if seen == "without_unigram" else 0.5
    counts = {"firings": 4, "lost": 3, "lost_matched": 1}
    labels = {"layer": job.layer, "seed": job.seed, "table": job.point.table, "encoder_input": seen}
    return pd.DataFrame([{"text": " a b", "score": score} | counts | labels]).iloc[: 1 - failed]


class Tables:
    """The tables of a run of the smoke profile in which some SAEs failed."""

    def __init__(self, folder: Path, failed: Collection[str], features_compared: bool = True):
        """Write them; `failed` are ids of jobs."""
        self.folder = folder
        stopped = [Measurement("failed", 7.0)]
        for block in SMOKE.sweep:
            files = []
            for job in SMOKE.jobs(block):
                measured = [
                    m for m in measurements(job) if features_compared or not m.metric.startswith("feature_token_bias")
                ]
                if block == "encoder":
                    measured += [Measurement(m, 0.5, 0.4, 0.6) for m in DEFINITIONS if m.startswith("phrase")]
                files.append(folder / f"metrics/{job.id}.json")
                write_measurements(files[-1], job.labels, {job.subject: stopped if job.id in failed else measured})
            write_table(folder / f"tables/{block}.csv", files)
        for layer in (1, 2):
            write_measurements(folder / f"layer{layer}.json", {"layer": layer}, baselines(layer))
        write_table(folder / "tables/baselines.csv", [folder / f"layer{layer}.json" for layer in (1, 2)])
        rows = []
        for job in SMOKE.jobs("headline"):
            labels = job.labels | {"subject": job.subject}
            if job.id in failed:  # before it was saved once
                rows += labelled(labels | {"step": 0, "tokens": 0}, stopped)
                continue
            sooner = 2 if job.point.table == "none" else 4
            for step in STEPS:
                value = 1 / (sooner * step)
                measured = [Measurement(metric, value, value, value) for metric in ("nmse", "ce_added")]
                rows += labelled(labels | {"step": step, "tokens": 128 * step}, measured)
        write_text(folder / "curves.json", json.dumps(rows))
        phrases = pd.concat(phrases_of(job, job.id in failed) for job in SMOKE.jobs("encoder"))
        write_text(folder / "tables/phrases.csv", phrases.to_csv(index=False))
        write_table(folder / "tables/curves.csv", [folder / "curves.json"])

    def run(self) -> selection.Run:
        """As claims are measured from."""
        tables = {path.stem: read_table(path) for path in (self.folder / "tables").glob("*.csv")}
        roles: dict[selection.Role, str] = {"baseline": BASELINE, "tokenized": TOKENIZED, "remainder": str(REMAINDER)}
        return selection.Run(tables, roles, 0.5)

    def draw(self, figure: str) -> tuple[list[Any], str]:
        """Draw a figure: its panels, row by row, and the text of the SVG."""
        files = [ROOT / "config/claims.yaml", ROOT / "config/published.yaml"]
        paths = [*(self.folder / "tables").glob("*.csv"), *files]
        drawing = draw(figure, Inputs.read(paths, SMOKE.headline().roles, simple_threshold=0.5, bootstrap=20, seed=0))
        svg = self.folder / f"{figure}.svg"
        save(drawing.figure, [svg], *drawing.shown)
        return list(drawing.figure.axes), " ".join(re.findall(r"<text[^>]*>([^<]*)<", svg.read_text()))


def job_of(subject: str, layer: int) -> str:
    (found,) = (job.id for job in SMOKE.jobs() if (job.subject, job.layer) == (subject, layer))
    return found


def places(ax: Axes, label: str, along: int = 0) -> list[float]:
    """Where the points with a label are, along x or y."""
    drawn = [bars for bars in ax.containers if isinstance(bars, ErrorbarContainer) and bars.get_label() == label]
    return [x for bars in drawn for x in np.asarray(bars.lines[0].get_data()[along], float).tolist()]


def tick_labels(ax: Axes) -> list[str]:
    return [tick.get_text() for tick in ax.get_xticklabels()]


@pytest.mark.parametrize("figure", FIGURE_NAMES)
def test_every_figure_is_drawn_though_every_training_failed(tmp_path: Path, figure: str) -> None:
    tables = Tables(tmp_path, [job.id for job in SMOKE.jobs()])
    _, text = tables.draw(figure)
    assert ("failed in training" in text) == (figure not in ("token_subspaces", "table_orders"))  # these show no SAE


@pytest.mark.parametrize("figure", ["speedup", "training_curves", "last_token_detection", "reconstruction_by_layer"])
def test_a_figure_names_what_failed_and_draws_the_rest_in_its_place(tmp_path: Path, figure: str) -> None:
    # The tokenized SAE of the first layer: the second keeps its place.
    found, text = Tables(tmp_path, [job_of(TOKENIZED, 1)]).draw(figure)
    assert f"failed in training, and not drawn: {TOKENIZED} (layer 1, seed 0) at step 7" in text
    match figure:
        case "speedup":
            ax = found[0]
            assert tick_labels(ax)[:4] == ["1", "2", "1", "2"]
            # At equal loss that of layer 2 alone, twice or more; on one schedule that of the remainder at both.
            points = [(x, y) for bars in ax.containers for x, y in zip(*bars.lines[0].get_data(), strict=True)]
            equal, *one_schedule = sorted(points)
            assert equal == pytest.approx((1, 2))
            assert one_schedule == [pytest.approx((x, 2)) for x in (2.95, 3.65, 3.95)]
        case "training_curves":
            assert "training tokens (thousands)" in text
            (drawn, whole) = ({line.get_label() for line in ax.lines if len(line.get_xdata())} for ax in found[:2])
            assert "tokenized, learned table" in whole - drawn
            assert {"baseline", "tokenized, remainder"} <= drawn & whole
        case "last_token_detection":
            assert tick_labels(found[0]) == ["1", "2"]
            assert places(found[0], "token-biases") == pytest.approx([0.805])
            assert places(found[0], "unigram residuals") == pytest.approx([0.065, 1.065])
        case "reconstruction_by_layer":
            for ax in found:
                assert [tick.get_text() for tick in found[0].get_yticklabels()] == ["layer 1", "layer 2"]
                assert places(ax, "tokenized, learned table", 1) == pytest.approx([1])
                assert places(ax, "tokenized, remainder", 1) == pytest.approx([0.26, 1.26])
                assert places(ax, "baseline", 1) == pytest.approx([-0.26, 0.74])


def test_no_smaller_baseline_takes_the_place_of_the_largest(tmp_path: Path) -> None:
    for name, failed, drawn in (("whole", [], True), ("failed", [job_of("topk-k4-x4-none", 2)], False)):
        found, _ = Tables(tmp_path / name, failed).draw("expansion")
        assert tick_labels(found[0]) == ["2x", "4x"]
        level = [line for line in found[0].lines if list(line.get_xdata()) == [0, 1]]
        assert bool(level) == drawn


def test_a_table_that_failed_is_compared_with_nothing(tmp_path: Path) -> None:
    tables = Tables(tmp_path, [job_of(TOKENIZED, layer) for layer in (1, 2)], features_compared=False)
    _, text = tables.draw("token_bias_similarity")
    assert text.count("not measured") == 4  # of the baseline, in the panels of both layers and of expansions
    assert f"{TOKENIZED} (layer 2, seed 0)" in text


@pytest.mark.parametrize("failed", [[], ["topk-k4-x4-learned"]])
def test_phrases_are_paired_only_where_both_saes_are_there(tmp_path: Path, failed: list[str]) -> None:
    found, text = Tables(tmp_path, [job_of(subject, 2) for subject in failed]).draw("encoder_ablation")
    assert [label.get_text() for label in found[2].get_yticklabels()] == ["learned table"]
    means = [places(ax, "mean") for ax in found[2:]]
    if failed:
        assert text.count("not measured") == 2 and means == [[], []]
    else:
        assert means == [pytest.approx([50]), pytest.approx([-20])]
        assert text.count("a b") == 2  # the phrase is named


def taken(declared: dict[str, Any], run: selection.Run) -> list[Measured]:
    return measure(TypeAdapter(Measure).validate_python(declared), run)


EXPANSION = {"block": "expansion", "metric": "nmse", "points": {"table": "learned", "expansion": "min"}}
SIMILAR = {"metric": "feature_token_bias_similar", "subject": "baseline", "min_count": 1}


@pytest.mark.parametrize(
    ("declared", "subject", "layer"),
    [
        ({"kind": "value", "of": {"metric": "nmse", "subject": "tokenized"}}, TOKENIZED, 1),
        ({"kind": "value", "of": {"metric": "nmse", "subject": "tokenized", "layer": "last"}}, TOKENIZED, 2),
        ({"kind": "value", "of": EXPANSION}, "topk-k4-x2-learned", 2),
        (
            {"kind": "ratio", "of": EXPANSION, "to": {"points": {"table": "none", "expansion": "max"}}},
            "topk-k4-x4-none",
            2,
        ),
        ({"kind": "pareto", "architecture": "topk", "metric": "nmse"}, "topk-k2-x4-none", 2),
        ({"kind": "speedup", "metric": "nmse"}, BASELINE, 1),
        (
            {
                "kind": "phrases",
                "of": {"table": "learned", "encoder_input": "without_unigram", "column": "score"},
                "to": {"encoder_input": "residual"},
            },
            "topk-k4-x4-learned-nounigram",
            2,
        ),
    ],
)
def test_a_measure_that_needs_what_failed_is_not_taken(
    tmp_path: Path, declared: dict[str, Any], subject: str, layer: int
) -> None:
    run = Tables(tmp_path, [job_of(subject, layer)]).run()
    (measured,) = (m for m in taken(declared, run) if m.failed)
    assert measured.layer == str(layer) and math.isnan(measured.value)
    assert measured.failed == (f"{subject} (layer {layer}, seed 0)",)
    assert measured.missing == f"{subject} (layer {layer}, seed 0) failed in training"


def test_a_measure_that_does_not_need_it_is_taken(tmp_path: Path) -> None:
    run = Tables(tmp_path, [job_of(TOKENIZED, 1), job_of("topk-k4-x2-learned", 2)]).run()
    for declared in (
        {"kind": "value", "of": {"metric": "nmse", "subject": "baseline"}},
        {"kind": "value", "of": {"metric": "nmse", "subject": "tokenized", "layer": "last"}},
        {"kind": "value", "of": EXPANSION | {"points": {"table": "learned", "expansion": "max"}}},
    ):
        assert all(m.value > 0 for m in taken(declared, run))


def test_similarity_to_a_table_that_failed_is_not_measured(tmp_path: Path) -> None:
    run = Tables(tmp_path, [job_of(TOKENIZED, 2)], features_compared=False).run()
    reason = f"{TOKENIZED} (layer 2, seed 0), with whose table features are compared, failed in training"
    points = {"table": "none", "expansion": "max"}
    for of in (SIMILAR, SIMILAR | {"block": "expansion", "points": points, "subject": None}):
        (measured,) = (m for m in taken({"kind": "value", "of": of}, run) if m.layer == "2")
        assert (measured.missing, measured.failed) == (reason, (f"{TOKENIZED} (layer 2, seed 0)",))


# --- a whole run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def failed_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, int, str]:
    """`make reproduce` of a profile in which learned tables diverge, its exit status and what it said."""
    run = Run(tmp_path_factory.mktemp("failed"), "failing")
    settings = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    grid = {"layers": [2], "k": [4], "expansion": [4], "table": ["none", "learned"]}
    settings |= {
        "profile": "failing",
        # Both blocks are of the same two SAEs; the second has its notebook.
        "sweep": {"headline": [grid], "pareto": [grid]},
        "figures": ["training_curves", "last_token_detection"],
    }
    settings["training"]["table_lr"] = 1e30
    (run.folder / run.configfile).write_text(yaml.safe_dump(settings))
    return run, *run.reproduce()


def test_the_rest_of_the_run_goes_on(failed_run: tuple[Run, int, str]) -> None:
    run, code, output = failed_run
    assert code == 2, output  # make's own
    assert (run.results / "manifest.json").is_file()
    notebooks = {path.stem for path in (run.results / "notebooks").glob("*.html")}
    assert notebooks == {path.stem for path in (ROOT / "notebooks").glob("*.py")}
    assert not (run.results / "verified.txt").exists()
    for name in ("02_training_and_pareto", "03_token_biases", "04_features"):
        page = (run.results / f"notebooks/{name}.html").read_text()
        assert f"{TOKENIZED} (layer 2, seed 0) failed in training at step" in page
    log = (run.results / "logs/verify.log").read_text()
    assert re.search(rf"{TOKENIZED} +2 +0 +\d", log)
    assert re.search(r"^13 claims: .*not comparable here$", output, re.MULTILINE), output
    named = rf"^{TOKENIZED} \(layer 2, seed 0\) failed in training, and is needed for C1, C2, C5, C7, C8, C9, C11, B2$"
    assert re.search(named, output, re.MULTILINE), output


def test_a_run_says_what_failed(failed_run: tuple[Run, int, str]) -> None:
    run, _, _ = failed_run
    metrics = read_table(run.results / "metrics.csv")
    assert metrics.loc[metrics["subject"] == TOKENIZED, "metric"].tolist() == ["failed"]
    of_baseline = set(metrics.loc[metrics["subject"] == BASELINE, "metric"])
    assert "feature_unigram_similar" in of_baseline and "feature_token_bias_similar" not in of_baseline
    for figure in ("training_curves", "last_token_detection"):
        svg = (run.folder / f"figures/failing/{figure}.svg").read_text()
        assert f"{TOKENIZED} (layer 2, seed 0)" in svg
    claims = read_claims(run.results / "claims.csv")
    not_measured = claims[claims["failed"] == f"{TOKENIZED} (layer 2, seed 0)"]
    assert {"speed-up to the baseline's NMSE, one schedule", "detection with token-biases"} < set(not_measured["check"])
    assert {"C1", "C2", "C5", "C7", "C8", "C9", "C11", "B2"} == set(not_measured["id"])
    assert set(not_measured["verdict"]) == {"not comparable here"} and not_measured["measured"].isna().all()
