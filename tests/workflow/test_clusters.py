"""Profiles of clusters, as far as they go without one; `make test-slurm` runs one."""

from pathlib import Path

import pytest
import test_workflow
import yaml
from snakemake.cli import get_argument_parser

PROFILES = sorted((test_workflow.ROOT / "profiles").glob("*/profile.v9+.yaml"))
PLUGINS = ("slurm-", "kubernetes-", "storage-s3-")


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.parent.name)
def test_every_option_is_snakemakes_or_a_plugins(profile: Path) -> None:
    known = {option for action in get_argument_parser()._actions for option in action.option_strings}
    options = {f"--{key}" for key in yaml.safe_load(profile.read_text()) if not key.startswith(PLUGINS)}
    assert options <= known


@pytest.mark.parametrize("gpu", ["false", "true"])
def test_the_slurm_profile_plans_every_job(tmp_path: Path, gpu: str) -> None:
    """With its resources and no limit to GPUs, on another executor: SLURM's is not installed here."""
    test_workflow.copy_project(tmp_path)
    profile = ("--workflow-profile", "profiles/slurm", "--executor", "local")
    planned = test_workflow.planned(tmp_path, *profile, "--config", f"compute={{gpu: {gpu}}}")
    assert planned["train"] == planned["evaluate"] == len(test_workflow.SMOKE.jobs())
