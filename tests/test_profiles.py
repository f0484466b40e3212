"""The larger profiles: planned without network, and run to their end on models of their shape but of no size."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny
import yaml
from test_workflow import COPIED, NOTEBOOKS, ROOT, planned, read_csv, snakemake

from tsae import config
from tsae.costs import costs
from tsae.figures import FIGURE_BLOCKS, FIGURE_NAMES

PROFILES = ("gpt2", "pythia", "gpt2-small-budget")
LAYERS = (5, 8, 12, 20)  # those of GPT-2 and those of Pythia
# Run with residuals from the model, where every job loads it, and so without blocks that gpt2 runs too.
STREAMED, LEFT_OUT = "gpt2-small-budget", {"pareto", "expansion", "init"}


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
    """A profile with a tiny model and text: every kind of point and every switch stays, and every block but those left out.

    Lists of the sweep are shortened, and of seeds one is left: a process takes seconds to start, whatever it does then.
    """
    streamed = profile["profile"] == STREAMED
    left_out = LEFT_OUT if streamed else set()
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
    if streamed:
        sizes["residuals"] |= {"disk_gb": 0.001, "mean_tokens": 2048}
        sizes["compute"] |= {"tf32": True}  # which changes nothing on a CPU, but every command must take it
    sweep = {
        block: [{key: fewer(key, values) for key, values in grid.items() if key != "seeds"} for grid in grids]
        for block, grids in profile["sweep"].items()
        if block not in left_out
    }
    figures = [name for name in profile.get("figures", FIGURE_NAMES) if left_out.isdisjoint(FIGURE_BLOCKS[name])]
    return (
        profile
        | {name: profile[name] | changed for name, changed in sizes.items()}
        | {"sweep": sweep, "figures": figures}
    )


class Finished(NamedTuple):
    """A profile that ran to its end."""

    folder: Path
    """A copy of the project."""
    shrunk: config.Config
    """What ran."""
    whole: config.Config
    """The profile itself."""

    def results(self, name: str) -> Path:
        return self.folder / "results" / self.whole.profile / name


@pytest.fixture(scope="module", params=PROFILES)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp(request.param)
    copy_project(folder)
    whole = config.load(ROOT / f"config/{request.param}.yaml")
    tiny.write_corpus(folder / "corpus.txt")
    write = tiny.write_gpt_neox if request.param == "pythia" else tiny.write_gpt2
    write(folder / "model", folder / "corpus.txt", n_layers=whole.model.n_layers)
    profile = shrunk(yaml.safe_load((ROOT / f"config/{request.param}.yaml").read_text()), folder)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(profile))
    code, output = snakemake(folder, configfile="tiny.yaml")
    assert code == 0, output
    return Finished(folder, config.load(folder / "tiny.yaml"), whole)


def test_a_profile_runs_to_its_end(finished: Finished) -> None:
    shrunk, whole = finished.shrunk, finished.whole
    left_out = LEFT_OUT if whole.profile == STREAMED else set()
    assert set(shrunk.jobs()) < set(whole.jobs()) and shrunk.headline() == whole.headline()
    assert shrunk.sweep.keys() == whole.sweep.keys() - left_out
    assert shrunk.figures == tuple(name for name in whole.figures if left_out.isdisjoint(FIGURE_BLOCKS[name]))
    for figure in shrunk.figures:
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
    streams = json.loads(finished.results("residuals/index.json").read_text())["streams"]
    assert streams == (whole.profile == STREAMED)
