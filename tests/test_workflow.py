"""The DAG through real Snakemake: the smoke profile from nothing to every figure, in a folder of its own."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import tiny
import yaml
from matplotlib import image

ROOT = Path(__file__).parent.parent
# Rules call `python`: let that be the interpreter that runs the tests.
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
FIGURES = sorted(path.stem for path in (ROOT / "workflow/scripts").glob("*.py"))


def snakemake(folder: Path, *arguments: str, configfile: Path = ROOT / "config/smoke.yaml") -> tuple[int, str]:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    command += ["--configfile", str(configfile), "--cores", "2", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT)
    return done.returncode, done.stdout


def changed_config(folder: Path, **sections: Mapping[str, object]) -> Path:
    data = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    for name, values in sections.items():
        data[name] |= values
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the smoke profile ran to its end."""
    folder = tmp_path_factory.mktemp("smoke")
    corpus, model = folder / "results/tiny/corpus.txt", folder / "results/tiny/model"
    corpus.parent.mkdir(parents=True)
    tiny.write_corpus(corpus)
    tiny.write_gpt2(model, corpus)
    code, output = snakemake(folder)
    assert code == 0, output
    return folder


def test_every_figure_and_table_is_there(finished: Path) -> None:
    assert FIGURES
    for figure in FIGURES:
        for ending in ("svg", "pdf", "png"):
            assert (finished / f"figures/smoke/{figure}.{ending}").stat().st_size > 5000
        assert image.imread(finished / f"figures/smoke/{figure}.png").std() > 0.05
    assert len({(finished / f"figures/smoke/{figure}.svg").read_text() for figure in FIGURES}) == len(FIGURES)
    with (finished / "results/smoke/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    measured = {(row["layer"], row["subject"], row["seed"]) for row in rows if row["metric"] == "ce_added"}
    assert measured == {
        *((layer, f"topk-k4-x4-{table}", "0") for layer in "12" for table in ("none", "learned")),
        ("2", "topk-k4-x4-fixed", "0"),
    }
    nmse = [row for row in rows if row["metric"] == "nmse"]
    assert all(0 < float(row["low"]) <= float(row["value"]) <= float(row["high"]) < 1 for row in nmse)


def test_the_manifest_names_every_result_with_its_sha256(finished: Path) -> None:
    manifest = json.loads((finished / "results/smoke/manifest.json").read_text())
    assert manifest["config"]["profile"] == "smoke"
    assert {f"figures/smoke/{figure}.svg" for figure in FIGURES} < set(manifest["sha256"])


def test_a_second_run_has_nothing_to_do(finished: Path) -> None:
    code, output = snakemake(finished)
    assert code == 0
    assert "Nothing to be done" in output


def test_a_deleted_figure_is_one_job(finished: Path) -> None:
    kept = {path: path.read_bytes() for path in (finished / "figures/smoke").glob("lookup_geometry.*")}
    for path in kept:
        path.unlink()
    code, output = snakemake(finished, "lookup_geometry")
    assert code == 0, output
    assert "1 of 1 steps (100%) done" in output
    assert {path: path.read_bytes() for path in kept} == kept


def test_one_more_point_is_one_training_and_one_evaluation(finished: Path) -> None:
    more = {"more": {"layers": [1], "k": [2], "expansion": [4], "table": ["none"]}}
    _, output = snakemake(finished, "--dry-run", "--quiet", "rules", configfile=changed_config(finished, sweep=more))
    planned = dict(line.split() for line in output.splitlines() if len(line.split()) == 2 and line.split()[1].isdigit())
    assert (planned["train"], planned["evaluate"], planned["collect"]) == ("1", "1", "1")
    assert not {"cache_residuals", "unigrams", "tokenize", "ablate", "measure_tables"} & set(planned)


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
    ],
)
def test_a_mistake_stops_it_before_any_job(
    finished: Path, section: str, values: dict[str, object], message: str
) -> None:
    code, output = snakemake(finished, configfile=changed_config(finished, **{section: values}))
    assert code != 0
    assert message in output
    assert "Traceback" not in output and "Execute" not in output


def test_a_model_of_another_size_is_refused_as_soon_as_it_is_there(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "results/tiny", tmp_path / "results/tiny")
    code, output = snakemake(tmp_path, configfile=changed_config(tmp_path, model={"d_model": 64}))
    assert code != 0
    assert "model.d_model is 64, but the model has 32" in output
    assert not (tmp_path / "results/smoke/residuals/index.json").exists()


def test_make_figure_plans_that_figure_alone() -> None:
    make = ["make", "--no-print-directory", "-o", ".venv/ready", "--dry-run", "figure", "FIG=lookup_geometry"]
    printed = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    command = f"{printed.splitlines()[-1]} --dry-run --forceall"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, env=ENVIRONMENT)
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
