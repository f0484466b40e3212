"""The smoke profile on a cluster, with the profile that users run there: `make test-slurm`."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import cluster
import pytest
from fixtures.workflow import copy_project, planned

from tsae.profile.figures import FIGURE_NAMES

# What is asked of a run on one machine is asked of a run on a cluster.

# These stay where Snakemake runs: what downloads, what gathers, and what draws.
LOCAL = {
    "all",
    "collect",
    "collect_all",
    "collect_phrases",
    "manifest",
    "measure_claims",
    "prepare_documents",
    "prepare_model",
    "verify",
    *FIGURE_NAMES,
}
TIMEOUT_S = 3600
CPUS = len(os.sched_getaffinity(0))
MEMORY_MB = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20


class Finished(NamedTuple):
    folder: Path
    """A copy of the project, in which the smoke profile ran to its end."""
    planned: dict[str, int]
    """Number of jobs by rule, before it ran."""
    jobs: list[tuple[str, str]]
    """State and comment of every job that SLURM's controller knows."""


# Terminated, pytest ends without tearing fixtures down; interrupted, it stops the cluster.
signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("smoke")
    copy_project(folder)
    expected = planned(folder)
    command = [
        *(sys.executable, "-m", "snakemake", "--workflow-profile", "profiles/slurm"),
        *("--configfile", "config/smoke.yaml", "--cores", str(CPUS)),
        # A node without accounting has no sacct; nor does one wait for a queue.
        *("--slurm-status-command", "squeue"),
        *("--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1"),
    ]
    with (
        tempfile.TemporaryDirectory(prefix="slurm", dir="/tmp") as files,
        cluster.one_node_cluster(Path(files), CPUS, MEMORY_MB) as environment,
        (folder / "snakemake.out").open("w") as out,
    ):
        environment |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}",
            "PYTHONPATH": str(folder),
        }
        done = subprocess.run(
            command, cwd=folder, stdout=out, stderr=subprocess.STDOUT, env=environment, timeout=TIMEOUT_S
        )
        assert done.returncode == 0, (folder / "snakemake.out").read_text()
        listed = cluster.output_of(["squeue", "--noheader", "--states=all", "--format=%T %k"], environment)
    jobs = [(state, comment) for state, comment in map(str.split, listed.splitlines())]
    return Finished(folder, expected, jobs)


@pytest.fixture(scope="module")
def finished(run: Finished) -> Path:
    return run.folder


def test_every_job_but_the_local_ones_ran_under_slurm(run: Finished) -> None:
    assert {state for state, _ in run.jobs} == {"COMPLETED"}
    found = Counter(re.sub(r"_wildcards_.*", "", comment) for _, comment in run.jobs)
    assert found == {f"rule_{rule}": n for rule, n in run.planned.items() if rule not in LOCAL}
