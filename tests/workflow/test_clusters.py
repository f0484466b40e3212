"""Profiles of clusters, as far as they go without one; `make test-slurm` runs one."""

from pathlib import Path

import pytest
import yaml
from fixtures import ROOT
from fixtures.workflow import SMOKE, copy_project, planned
from snakemake.cli import get_argument_parser

PROFILES = sorted((ROOT / "profiles").glob("*/profile.v9+.yaml"))
SLURM = ("--workflow-profile", "profiles/slurm", "--executor", "local")
PLUGINS = ("slurm-", "kubernetes-", "storage-s3-")


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.parent.name)
def test_every_option_is_snakemakes_or_a_plugins(profile: Path) -> None:
    known = {option for action in get_argument_parser()._actions for option in action.option_strings}
    options = {f"--{key}" for key in yaml.safe_load(profile.read_text()) if not key.startswith(PLUGINS)}
    assert options <= known


@pytest.mark.parametrize("gpu", ["false", "true"])
def test_the_slurm_profile_plans_every_job(tmp_path: Path, gpu: str) -> None:
    """With its resources and no limit to GPUs, on another executor: SLURM's is not installed here."""
    copy_project(tmp_path)
    jobs = planned(tmp_path, *SLURM, "--config", f"compute={{gpu: {gpu}}}")
    assert jobs["train"] == jobs["evaluate"] == len(SMOKE.jobs())


def test_the_slurm_profile_plans_a_single_sae(tmp_path: Path) -> None:
    copy_project(tmp_path)
    jobs = planned(tmp_path, *SLURM, configfile="config/minimal.yaml")
    assert jobs["train"] == jobs["evaluate"] == 1 and "measure_curve" not in jobs
