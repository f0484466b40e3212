"""What the Snakemake workflow catalogue asks of a repository with standardized usage."""

from pathlib import Path

import yaml
from fixtures import ROOT
from fixtures.workflow import copy_project, planned


def test_the_file_where_the_catalogue_looks_plans_the_same_jobs(tmp_path: Path) -> None:
    copy_project(tmp_path)
    jobs = planned(tmp_path)
    assert jobs.pop("all") == 1 and len(jobs) > 20
    from_catalogue = planned(tmp_path, "--snakefile", "workflow/Snakefile")
    assert from_catalogue.pop("everything") == 1
    assert from_catalogue == jobs


def test_the_catalogue_finds_its_files() -> None:
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert {"mandatory-flags", "software-stack-deployment"} <= usage.keys()
    readme = (ROOT / "README.md").read_text().lower()
    assert "snakemake" in readme and "workflow" in readme
    assert (ROOT / "config/README.md").is_file() and list((ROOT / "workflow/rules").glob("*.smk"))
