"""The larger profiles: planned without network, and run to their end on tiny models of their shape."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from fixtures import ROOT, tiny
from fixtures.workflow import COPIED, NOTEBOOKS, planned, read_csv, snakemake

from tsae.plan.costs import costs
from tsae.profile import config
from tsae.profile.figures import FIGURE_NAMES
from tsae.profile.point import Point

PROFILES = ("gpt2", "pythia", "gpt2-small-budget")
LAYERS = {8, 16}  # one of GPT-2 and one of Pythia


def copy_project(folder: Path) -> None:
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        (folder / name).parent.mkdir(exist_ok=True)
        copy(ROOT / name, folder / name)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which nothing has run."""
    folder = tmp_path_factory.mktemp("profiles")
    copy_project(folder)
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
        assert jobs.get(figure, 0) == (figure in settings.drawn())
    assert not any((project / "results").glob("*/model/*"))


def fewer(grid: dict[str, Any], headline: Point) -> dict[str, Any]:
    """A grid with one layer, one seed, the first penalty and the headline's sizes, so that blocks share SAEs.

    A setting that a figure is laid out along keeps a second value.
    """
    kept: dict[str, Any] = {name: values for name, values in grid.items() if name != "seeds"}
    for name in kept:
        match name:
            case "layers":
                kept[name] = [layer for layer in grid[name] if layer in LAYERS]
            case "k":
                kept[name] = [headline.k]
            case "l1":
                kept[name] = grid[name][:1]
            case "expansion":
                another = grid[name][:1] if grid["table"] == ["none"] else []
                kept[name] = sorted({*another, headline.expansion})
            case "lookup_scale":
                kept[name] = sorted({grid[name][0], grid[name][-1]})
    return kept


def shrunk(profile: dict[str, Any], headline: Point, folder: Path) -> dict[str, Any]:
    """A profile with a tiny model and text: every block, every kind of point and every switch stays.

    There are as few SAEs as can be: a process takes seconds to start, whatever it does then.
    """
    sizes: dict[str, dict[str, Any]] = {
        "model": {
            "source": {"kind": "folder", "path": str(folder / "model")},
            "d_model": tiny.D_MODEL,
            "vocab_size": tiny.VOCABULARY,
        },
        "corpus": {"sources": [{"kind": "files", "paths": [str(folder / "corpus.txt")], "format": "lines"}]},
        "tokens": {"n_ctx": 32, "train": 8192, "heldout": 2048},
        "residuals": {
            "layers": [layer for layer in profile["residuals"]["layers"] if layer in LAYERS],
            "batch_sequences": 64,
            "shard_sequences": 64,
            "jobs": 1,
        },
        "training": {"tokens": 8192, "batch_size": 256, "buffer_tokens": 4096, "history_points": 3},
        "curves": {"checkpoints": 3, "ce_sequences": 8},
        "evaluation": {
            "ce_sequences": 16,
            "bootstrap": 50,
            "dead_window": 4096,
            "similarity_rows": 64,
            "detection_tokens": 64,
        },
        "compute": {"gpu": False},
    }
    assert sizes.keys() <= profile.keys()
    if "phrases" in profile:
        sizes["phrases"] = {"min_count": 6, "n_phrases": 10, "bootstrap": 50}
    sweep = {
        block: [fewer(grid, headline) for grid in grids if not LAYERS.isdisjoint(grid.get("layers", LAYERS))]
        for block, grids in profile["sweep"].items()
    }
    return profile | {name: profile[name] | changed for name, changed in sizes.items()} | {"sweep": sweep}


class Finished(NamedTuple):
    """A profile that has run to its end."""

    folder: Path
    """A copy of the project."""
    shrunk: config.Config
    """What ran."""
    whole: config.Config
    """The profile itself."""

    def results(self, name: str) -> Path:
        return self.folder / "results" / self.whole.profile / name


# gpt2-small-budget has the blocks and kinds of points of gpt2.
@pytest.fixture(scope="module", params=["gpt2", "pythia"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp(request.param)
    copy_project(folder)
    whole = config.load(ROOT / f"config/{request.param}.yaml")
    tiny.write_corpus(folder / "corpus.txt")
    write = tiny.write_gpt_neox if request.param == "pythia" else tiny.write_gpt2
    write(folder / "model", folder / "corpus.txt", n_layers=whole.model.n_layers)
    profile = shrunk(
        yaml.safe_load((ROOT / f"config/{request.param}.yaml").read_text()), whole.jobs("headline")[0].point, folder
    )
    (folder / "tiny.yaml").write_text(yaml.safe_dump(profile))
    code, output = snakemake(folder, configfile="tiny.yaml")
    assert code == 0, output
    return Finished(folder, config.load(folder / "tiny.yaml"), whole)


def test_a_profile_runs_to_its_end(finished: Finished) -> None:
    shrunk, whole = finished.shrunk, finished.whole
    assert set(shrunk.jobs()) < set(whole.jobs()) and shrunk.headline() == whole.headline()
    assert shrunk.sweep.keys() == whole.sweep.keys() and shrunk.figures == whole.figures
    for figure in shrunk.drawn():
        for ending in ("svg", "pdf", "png"):
            assert (finished.folder / f"figures/{whole.profile}/{figure}.{ending}").stat().st_size > 5000
    for block in shrunk.sweep:
        rows = read_csv(finished.results(f"tables/{block}.csv"))
        measured = {
            (int(row["layer"]), row["subject"], int(row["seed"])) for row in rows if row["metric"] == "ce_added"
        }
        assert measured == {(job.layer, job.point.id, job.seed) for job in shrunk.jobs(block)}
    assert all(row["verdict"] and row["claim_verdict"] for row in read_csv(finished.results("claims.csv")))
    verified = finished.results("verified.txt").read_text()
    assert " passed" in verified and " failed" not in verified
    notebooks = {path.stem for path in finished.results("notebooks").glob("*.html")}
    assert notebooks == {name for name in NOTEBOOKS if name != "02_training_and_pareto" or "pareto" in shrunk.sweep}
    manifest = json.loads(finished.results("manifest.json").read_text())
    assert manifest["config"]["profile"] == whole.profile
