"""The DAG through real Snakemake: the smoke profile from nothing to every figure, in a copy of the project."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from fixtures import ROOT

# What is asked of a run on one machine is asked of a run on a cluster.
from fixtures.finished import (  # noqa: F401
    test_a_release_is_packed_twice_alike_and_checked_without_the_run,
    test_every_claim_has_a_verdict,
    test_every_figure_is_there,
    test_every_sae_is_measured,
    test_notebooks_are_executed,
    test_results_are_verified,
    test_the_explorer_shows_the_middle_layer,
    test_the_manifest_names_every_result_with_its_sha256,
)
from fixtures.workflow import NOTEBOOKS, SMOKE, copy_project, planned, read_csv, snakemake

from tsae.profile.figures import FIGURE_NAMES

FIGURES = FIGURE_NAMES


def changed_config(folder: Path, **sections: Mapping[str, object]) -> str:
    data = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    for name, values in sections.items():
        data[name] = data.get(name, {}) | values
    (folder / "changed.yaml").write_text(yaml.safe_dump(data))
    return "changed.yaml"


@contextmanager
def appended(path: Path, text: str) -> Iterator[None]:
    before, written = path.read_text(), path.stat()
    path.write_text(before + text)
    try:
        yield
    finally:
        path.write_text(before)
        os.utime(path, ns=(written.st_atime_ns, written.st_mtime_ns))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which the smoke profile ran to its end."""
    folder = tmp_path_factory.mktemp("smoke")
    copy_project(folder)
    code, output = snakemake(folder)
    assert code == 0, output
    return folder


def test_the_report_holds_figures_claims_and_notebooks(finished: Path) -> None:
    code, output = snakemake(finished, "--report", "report.html")
    assert code == 0, output
    text = (finished / "report.html").read_text()
    for name in (*(f"{figure}.svg" for figure in FIGURES), "claims.html", *(f"{name}.html" for name in NOTEBOOKS)):
        assert name in text


def test_hostile_text_of_the_corpus_is_shown_as_text(finished: Path) -> None:
    pages = {name: (finished / f"results/smoke/notebooks/{name}.html").read_text() for name in NOTEBOOKS}
    assert "script&gt;" in pages["04_features"]
    pages |= {path.name: path.read_text() for path in (finished / "figures/smoke").glob("*.svg")}
    pages |= {name: (finished / name).read_text() for name in ("results/smoke/claims.html", "report.html")}
    assert [name for name, page in pages.items() if re.search(r"script(</mark>)?>(</mark>)?alert", page)] == []


def test_a_second_run_has_nothing_to_do(finished: Path) -> None:
    code, output = snakemake(finished)
    assert code == 0
    assert "Nothing to be done" in output


def test_a_deleted_figure_is_one_job_and_the_same_bytes(finished: Path) -> None:
    kept = {path: path.read_bytes() for path in (finished / "figures/smoke").glob("speedup.*")}
    for path in kept:
        path.unlink()
    assert planned(finished, "speedup") == {"speedup": 1}
    code, output = snakemake(finished, "speedup")
    assert code == 0, output
    assert {path: path.read_bytes() for path in kept} == kept


def test_one_more_point_is_one_training_one_evaluation_and_what_shows_it(finished: Path) -> None:
    pareto = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())["sweep"]["pareto"]
    more = {"layers": [2], "k": [3], "expansion": [4], "table": ["none"]}
    configfile = changed_config(finished, sweep={"pareto": [*pareto, more]})
    shown = {"collect", "collect_all", "measure_claims", "pareto", "notebook", "verify", "manifest", "all"}
    assert planned(finished, configfile=configfile) == dict.fromkeys({"train", "evaluate"} | shown, 1)


def test_a_changed_figure_redraws_that_figure(finished: Path) -> None:
    with appended(finished / "tsae/figures/init_sweep.py", "\n# changed\n"):
        assert planned(finished) == dict.fromkeys(("init_sweep", "verify", "manifest", "all"), 1)


def test_changed_training_trains_anew_from_the_same_residuals(finished: Path) -> None:
    with appended(finished / "tsae/training/train.py", "\n# changed\n"):
        jobs = planned(finished)
    assert jobs["train"] == jobs["evaluate"] == len(SMOKE.jobs())
    assert not {
        "cache_residuals",
        "index_residuals",
        "unigrams",
        "ngrams",
        "conditional_means",
        "letter_tokens",
        "tokenize",
        "prepare_model",
        "ablate",
        "measure_baselines",
    } & set(jobs)


def test_other_settings_of_the_evaluation_take_the_same_tokens_of_first_letters(finished: Path) -> None:
    evaluation = {"bootstrap": 300, "ce_sequences": 30}
    jobs = planned(finished, configfile=changed_config(finished, evaluation=evaluation))
    assert jobs["evaluate"] == len(SMOKE.jobs()) and jobs["measure_baselines"] == 2
    assert "letter_tokens" not in jobs
    fewer = planned(finished, configfile=changed_config(finished, evaluation={"probe_tokens": 1000}))
    assert fewer == jobs | {"letter_tokens": 2}


def test_training_from_the_model(finished: Path, tmp_path: Path) -> None:
    # With a disk too small for them, forward passes in two jobs, and the same run continued.
    folder = tmp_path / "smoke"
    shutil.copytree(finished, folder, symlinks=True)
    residuals = {"disk_gb": 0.002, "mean_tokens": 4096, "jobs": 2}
    configfile = changed_config(folder, residuals=residuals)
    target = "results/smoke/saes/layer2/topk-k4-x4-learned-s0/sae.safetensors"
    again = {"cache_residuals": 2, "index_residuals": 1, "train": 1}
    assert planned(folder, target, configfile=configfile) == again
    code, output = snakemake(folder, target, configfile=configfile)
    assert code == 0, output
    cache = folder / "results/smoke/residuals"
    index = json.loads((cache / "index.json").read_text())
    assert index["streams"] and index["sampled"] == [0]
    assert sum(path.stat().st_size for path in cache.rglob("shard-*.safetensors")) < 2e6
    before, after = (
        read_csv(place / Path(target).with_name("history.csv"))[-1]["heldout_nmse"] for place in (finished, folder)
    )
    assert float(after) == pytest.approx(float(before), rel=0.05)


def test_a_machine_with_a_gpu_computes_nothing_again(finished: Path) -> None:
    configfile = changed_config(finished, compute={"gpu": True})
    code, output = snakemake(finished, "--dry-run", configfile=configfile)
    assert code == 0
    assert "Nothing to be done" in output


def test_a_failing_cell_fails_the_run(finished: Path) -> None:
    target = "results/smoke/notebooks/01_token_subspaces.html"
    with appended(finished / "notebooks/01_token_subspaces.py", "\n# %%\nraise RuntimeError('this cell fails')\n"):
        code, output = snakemake(finished, target)
    assert code != 0
    assert "this cell fails" in output


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("training", {"batch_szie": 4}, "changed.yaml: training.batch_szie: unknown key; did you mean 'batch_size'?"),
        ("residuals", {"layers": [1, 9]}, "there is no layer 9; the model has layers 0 to 3"),
        (
            "corpus",
            {"sources": [{"kind": "files", "paths": ["absent.txt"], "format": "lines"}]},
            "there is no file absent.txt",
        ),
        (
            "sweep",
            {"init": [{"layers": [2], "k": [400], "table": ["learned"]}]},
            "changed.yaml: sweep.init.0: k = 400 active features of 128",
        ),
    ],
)
def test_a_mistake_stops_it_before_any_job(
    finished: Path, section: str, values: dict[str, object], message: str
) -> None:
    code, output = snakemake(finished, configfile=changed_config(finished, **{section: values}))
    assert code != 0
    assert message in output
    assert "Traceback" not in output and "Execute" not in output


def test_a_claim_of_an_unknown_metric_stops_it_before_any_job(finished: Path) -> None:
    extra = """
- id: C13
  claim: Nothing.
  source: nowhere
  checks:
    - {name: none, measure: {kind: value, of: {metric: nmsee, subject: baseline}}, published: 1, tolerance: 1}
"""
    with appended(finished / "config/claims.yaml", extra):
        code, output = snakemake(finished)
    assert code != 0
    assert "config/claims.yaml: C13: " in output and "did you mean 'nmse'?" in output
    assert "Traceback" not in output and "Execute" not in output


def test_a_model_of_another_size_is_refused_as_soon_as_it_is_there(finished: Path) -> None:
    configfile = changed_config(finished, model={"d_model": 64})
    (finished / configfile).write_text((finished / configfile).read_text().replace("profile: smoke", "profile: other"))
    code, output = snakemake(finished, configfile=configfile)
    assert code != 0
    assert "model.d_model is 64, but the model has 32" in output
    assert not (finished / "results/other/residuals/index.json").exists()


def test_make_figure_plans_that_figure_alone() -> None:
    make = ["make", "--no-print-directory", "-o", ".venv/ready", "--dry-run", "figure", "FIG=lookup_geometry"]
    printed = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    command = f"{printed.splitlines()[-1]} --dry-run --forceall"
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lookup_geometry" in done.stdout and "last_token_detection" not in done.stdout


def test_an_unknown_figure_is_refused_with_the_list(tmp_path: Path) -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "-o", ".venv/ready", "figure", "FIG=nosuch"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "there is no figure 'nosuch'" in done.stdout and "last_token_detection" in done.stdout
