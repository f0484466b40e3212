"""The larger profiles: planned without network, and the paper's sweep run whole on a model of GPT-2's shape but of no size."""

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from test_workflow import COPIED, ROOT, planned, snakemake

from tsae import config
from tsae.costs import costs
from tsae.figures import FIGURE_NAMES

N_LAYERS, D_MODEL = 12, 16
LAYERS = [5, 8]
PROFILES = ("gpt2", "pythia", "gpt2-small-budget")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which nothing has run."""
    folder = tmp_path_factory.mktemp("profiles")
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        (folder / name).parent.mkdir(exist_ok=True)
        copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_is_planned_without_network(project: Path, profile: str) -> None:
    settings = config.load(ROOT / f"config/{profile}.yaml")
    jobs = planned(project, "--cores", "all", configfile=f"config/{profile}.yaml")
    for cost in costs(settings):
        assert jobs[cost.stage] == cost.jobs, cost.stage
    assert jobs["train"] == len(settings.jobs())
    for figure in FIGURE_NAMES:
        assert jobs.get(figure, 0) == (figure in settings.figures)
    assert not any((project / "results").glob("*/model/*"))


def fewer(key: str, values: Any) -> Any:
    """Of layers those that are run, of penalties the first, of what else is swept the first and the last."""
    match key:
        case "layers":
            return [layer for layer in values if layer in LAYERS]
        case "l1":
            return values[:1]
    return [values[0], values[-1]] if isinstance(values, list) and len(values) > 2 else values


def shrunk(profile: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A profile with a tiny model and text: every block, every kind of point and every switch stays.

    Lists of the sweep are shortened, and of seeds one is left: a process takes seconds to start, whatever it does then.
    """
    sizes: dict[str, dict[str, Any]] = {
        "model": {
            "source": {"kind": "folder", "path": str(folder / "model")},
            "n_layers": N_LAYERS,
            "d_model": D_MODEL,
            "vocab_size": tiny.VOCABULARY,
        },
        "corpus": {"sources": [{"kind": "files", "paths": [str(folder / "corpus.txt")], "format": "lines"}]},
        "tokens": {"n_ctx": 32, "train": 8192, "heldout": 2048},
        "residuals": {"layers": LAYERS, "batch_sequences": 64, "shard_sequences": 64, "jobs": 1},
        "training": {"tokens": 8192, "batch_size": 256, "buffer_tokens": 4096, "history_points": 3},
        "curves": {"checkpoints": 3, "ce_sequences": 8},
        "evaluation": {
            "ce_sequences": 16,
            "bootstrap": 50,
            "dead_window": 4096,
            "similarity_rows": 64,
            "detection_tokens": 64,
        },
        "phrases": {"min_count": 6, "n_phrases": 10, "bootstrap": 50},
        "compute": {"gpu": False},
    }
    assert sizes.keys() <= profile.keys()
    sweep = {
        block: [{key: fewer(key, values) for key, values in grid.items() if key != "seeds"} for grid in grids]
        for block, grids in profile["sweep"].items()
    }
    return profile | {name: profile[name] | changed for name, changed in sizes.items()} | {"sweep": sweep}


@pytest.fixture(scope="module")
def tiny_paper(project: Path, tmp_path_factory: pytest.TempPathFactory) -> config.Config:
    """The profile gpt2 on a tiny model, run to all figures in `project`."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny.write_corpus(folder / "corpus.txt")
    tiny.write_gpt2(folder / "model", folder / "corpus.txt", n_layers=N_LAYERS, d_model=D_MODEL)
    profile = shrunk(yaml.safe_load((ROOT / "config/gpt2.yaml").read_text()), folder)
    (project / "tiny.yaml").write_text(yaml.safe_dump(profile))
    code, output = snakemake(project, *FIGURE_NAMES, configfile="tiny.yaml")
    assert code == 0, output
    return config.load(project / "tiny.yaml")


def test_the_papers_sweep_runs_to_all_figures(project: Path, tiny_paper: config.Config) -> None:
    paper = config.load(ROOT / "config/gpt2.yaml")
    assert tiny_paper.figures == paper.figures == FIGURE_NAMES
    assert tiny_paper.sweep.keys() == paper.sweep.keys()
    assert set(tiny_paper.jobs()) < set(paper.jobs()) and tiny_paper.headline() == paper.headline()
    for figure in FIGURE_NAMES:
        for ending in ("svg", "pdf", "png"):
            assert (project / f"figures/gpt2/{figure}.{ending}").stat().st_size > 5000
    for block in ("headline", "pareto", "expansion", "init", "encoder"):
        with (project / f"results/gpt2/tables/{block}.csv").open() as file:
            rows = list(csv.DictReader(file))
        measured = {
            (int(row["layer"]), row["subject"], int(row["seed"])) for row in rows if row["metric"] == "ce_added"
        }
        assert measured == {(job.layer, job.point.id, job.seed) for job in tiny_paper.jobs(block)}
