"""Machines unlike ours: little memory, no home, no user, a read-only folder, another locale, spaces in every path."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fixtures.workflow import ROOT, copy_project, snakemake

DRY = ("--dry-run", "--quiet", "rules")
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and user namespaces need root")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("machines") / "a project with spaces"
    folder.mkdir()
    copy_project(folder)
    shutil.copy2(ROOT / "docs/cost.json", folder / "docs/cost.json")
    return folder


def inside(project: Path, before: str, environment: dict[str, str]) -> tuple[int, str]:
    """A dry run after a shell command, in a mount namespace of its own."""
    command = [sys.executable, "-m", "snakemake", "--configfile", "config/smoke.yaml", "--cores", "8", *DRY]
    script = ["unshare", "-m", "bash", "-ec", f'{before}\ncd "$0"; "$@"', str(project), *command]
    settings = os.environ | {"PYTHONPATH": str(project)} | environment
    done = subprocess.run(script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=settings)
    return done.returncode, done.stdout


def test_memory_is_limited_unless_the_user_says_so(project: Path) -> None:
    """Of a run: in a dry run Snakemake does not say what it gives."""
    target = "results/smoke/documents.jsonl"
    code, output = snakemake(project, target, "--forcerun", "prepare_documents", "--cores", "2")
    assert code == 0 and 'gpu=Resource("gpu", 1)' in output and 'mem_mb=Resource("mem_mb", ' in output, output
    code, output = snakemake(
        project, target, "--forcerun", "prepare_documents", "--resources", "mem_mb=1234", "--cores", "2"
    )
    assert code == 0 and 'gpu=Resource("gpu", 1)' in output and 'Resource("mem_mb", 1234)' in output, output
    assert "less than a minute left" in output


def test_a_job_that_never_fits_is_refused_before_any_work(project: Path) -> None:
    code, output = snakemake(project, "--resources", "mem=600MB", "--cores", "2")
    assert code != 0 and "Traceback" not in output
    assert (
        "a job of evaluate needs 0.8 GB of memory, and 0.6 GB are there for jobs (--resources mem_mb); lower" in output
    )
    assert not (project / "results/smoke/tokens").exists()
    assert "Finished jobid" not in output


def test_what_a_job_needs_where_it_is_submitted_is_not_limited(project: Path) -> None:
    profile = ("--workflow-profile", "profiles/slurm", "--executor", "local")
    code, output = snakemake(project, *profile, *DRY)
    assert code == 0 and "Jobs take at most" not in output, output


@AS_ROOT
def test_the_limit_of_a_container_is_taken(project: Path, tmp_path: Path) -> None:
    """The machine's groups are hidden by made-up ones, for this process alone."""
    groups = Path("/proc/self/cgroup").read_text().splitlines()
    version_1 = [line.split(":")[2] for line in groups if line.split(":")[1] == "memory"]
    top, name = ("/sys/fs/cgroup/memory", "memory.limit_in_bytes") if version_1 else ("/sys/fs/cgroup", "memory.max")
    hide = f"mount -t tmpfs none {top}; echo 4000000000 > {top}/{name}"
    code, output = inside(project, hide, {})
    assert code == 0, output
    assert (
        "Jobs take at most 3.5 GB of memory together (7/8 of the limit of its control group): 4 of evaluate" in output
    )


@pytest.mark.parametrize(
    "environment",
    [
        {"HOME": "/dev/null", "XDG_CACHE_HOME": ""},
        {"HOME": "/nowhere", "TMPDIR": "/nowhere"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "tr_TR.UTF-8", "PYTHONUTF8": "0"},
    ],
    ids=lambda environment: " ".join(environment),
)
def test_homes_and_locales(project: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, output = snakemake(project, *DRY)
    assert code == 0 and "This was a dry-run" in output, output


@AS_ROOT
def test_a_user_without_a_name(project: Path) -> None:
    settings = {
        name: value for name, value in os.environ.items() if name not in ("USER", "LOGNAME", "LNAME", "USERNAME")
    }
    command = [sys.executable, "-m", "snakemake", "--configfile", "config/smoke.yaml", "--cores", "2", *DRY]
    unknown = subprocess.run(
        ["unshare", "-U", "--map-user=12345", *command],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=settings | {"HOME": "/", "PYTHONPATH": str(project)},
    )
    assert unknown.returncode == 0 and "This was a dry-run" in unknown.stdout, unknown.stdout


@AS_ROOT
def test_a_folder_that_cannot_be_written(project: Path) -> None:
    code, output = inside(project, 'mount --bind "$0" "$0"; mount -o remount,ro,bind "$0"', {})
    assert code != 0 and "Traceback" not in output
    assert f"{project}: cannot be written; a run keeps its state and its results there" in output


def test_spaces_in_every_path(project: Path) -> None:
    shutil.copytree(project / "results/tiny", project / "my data")
    data = yaml.safe_load((project / "config/smoke.yaml").read_text())
    data["model"]["source"]["path"] = "my data/model"
    data["corpus"]["sources"][0]["paths"] = ["my data/corpus.txt"]
    (project / "my profile.yaml").write_text(yaml.safe_dump(data | {"profile": "spaced"}))
    target = "results/spaced/unigrams/layer1.safetensors"
    code, output = snakemake(project, target, configfile="my profile.yaml")
    assert code == 0 and (project / target).is_file(), output
    shutil.copy2(ROOT / "Makefile", project)
    (project / ".venv").symlink_to(Path(sys.prefix))
    make = ["make", "-o", ".venv/ready", "check-config", "CONFIGFILE=my profile.yaml"]
    done = subprocess.run(
        make, cwd=project, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(project)}
    )
    assert done.returncode == 0 and "my profile.yaml: ok\n  makes " in done.stdout, done.stderr
    dry = ["make", "-n", "-o", ".venv/ready", "figure", "FIG=pareto", "CONFIGFILE=my profile.yaml", "MEM_MB=900"]
    said = subprocess.run(dry, cwd=project, capture_output=True, text=True, check=True).stdout
    assert '--configfile "my profile.yaml" --resources mem_mb=900 --cores all pareto' in said
    assert "check-config --quiet" in said
