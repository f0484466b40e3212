"""Hostile configurations through make and Snakemake themselves."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.faults import Fault, Run
from fixtures.hostile import Mutated, assert_it_plans, mutated
from fixtures.workflow import snakemake
from hypothesis import HealthCheck, given, settings

from tsae.profile import config

pytestmark = pytest.mark.faults

# A folder's name that a shell would run, were it not quoted.
FOLDER = 'it\'s a $(touch code-ran) `touch code-ran` "x" & ; | tee code-ran * -rf #'
TEMPLATE = "__use_yte__: true\n? \"?__import__('pathlib').Path('code-ran').touch()\"\n: 1\n"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("hostile"))


def mutations(n: int) -> tuple[list[Mutated], list[Mutated]]:
    """Of n mutated configurations those that are accepted, each of which plans, and those that are refused."""
    accepted: list[Mutated] = []
    refused: list[Mutated] = []

    @settings(max_examples=n, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(mutated())
    def sort(made: Mutated) -> None:
        try:
            profile = config.parse(made.data)
        except ValueError:
            refused.append(made)
        else:
            assert_it_plans(profile)
            accepted.append(made)

    sort()
    return accepted, refused


def test_what_is_accepted_plans_and_what_is_refused_stops_before_any_job(copy: Run, faults: list[Fault]) -> None:
    accepted, refused = mutations(2000)
    assert len(accepted) > 100 and len(refused) > 1000
    for made in accepted[:: len(accepted) // 8]:
        code, output = dry_run(copy, made.data)
        missing = "there is no file" in output and "Traceback" not in output
        assert (code == 0 and "train" in output) or missing, f"{made}\n{output}"
    for made in refused[:: len(refused) // 4]:
        code, output = dry_run(copy, made.data)
        assert code != 0 and "mine.yaml: " in output and "Traceback" not in output, f"{made}\n{output}"
    faults.append(Fault("mutated configuration", len(accepted) + len(refused), len(refused), "none", None))


def dry_run(copy: Run, data: dict[str, Any]) -> tuple[int, str]:
    (copy.folder / "mine.yaml").write_text(yaml.safe_dump(data))
    return snakemake(copy.folder, "--dry-run", "--quiet", "rules", configfile="mine.yaml")


def test_names_of_folders_are_no_shell(copy: Run, faults: list[Fault]) -> None:
    folder = copy.folder / FOLDER.replace("/", "")
    shutil.copytree(copy.folder / "results/tiny", folder)
    data = yaml.safe_load((copy.folder / "config/smoke.yaml").read_text())
    data["model"]["source"]["path"] = f"{folder.name}/model"
    data["corpus"]["sources"][0]["paths"] = [f"{folder.name}/corpus.txt"]
    data["unigrams"] = {"prefix": FOLDER}
    (copy.folder / "mine.yaml").write_text(yaml.safe_dump(data))
    targets = ("results/smoke/tokens/train.safetensors", "results/smoke/unigrams/layer1.safetensors")
    code, output = snakemake(copy.folder, *targets, configfile="mine.yaml")
    assert code == 0, output
    assert all((copy.folder / target).is_file() for target in targets)
    assert not list(copy.folder.rglob("code-ran"))
    faults.append(Fault("shell in names of folders and in text", 3, None, "none", None))


@pytest.mark.parametrize("target", ["reproduce", "figure FIG=speedup", "report"])
def test_make_refuses_a_template_before_snakemake_runs_it(copy: Run, target: str, faults: list[Fault]) -> None:
    smoke = (copy.folder / "config/smoke.yaml").read_text()
    (copy.folder / "mine.yaml").write_text(TEMPLATE + smoke)
    code, output = copy.reproduce("make", "-o", ".venv/ready", *target.split(), "CONFIGFILE=mine.yaml", "CORES=2")
    assert code != 0
    assert "mine.yaml: not valid YAML: the key '__use_yte__' would have Snakemake run" in output
    assert not Path(copy.folder / "code-ran").exists()
    faults.append(Fault(f"code in a configuration, make {target.split()[0]}", 1, 1, "none", None))


def test_snakemake_alone_would_have_run_it(copy: Run) -> None:
    (copy.folder / "mine.yaml").write_text(TEMPLATE + (copy.folder / "config/smoke.yaml").read_text())
    code, output = snakemake(copy.folder, "--dry-run", configfile="mine.yaml")
    assert code != 0 and "__use_yte__" in output
    assert (copy.folder / "code-ran").exists()
    (copy.folder / "code-ran").unlink()
