"""Runs at the same time in one folder."""

import os
import re
import time
from pathlib import Path

import pytest
import yaml
from fixtures import ROOT
from fixtures.faults import Fault, Run, differences, jobs_of, kill_all

from tsae.store.locks import hold

pytestmark = pytest.mark.faults


def test_a_second_run_of_a_profile_says_so_and_stops(tmp_path: Path, faults: list[Fault]) -> None:
    run = Run(tmp_path / "one")
    first = run.start()
    lock = run.results / ".lock"
    while not lock.exists() or not lock.read_text():
        assert first.poll() is None
        time.sleep(0.1)
    code, output = run.reproduce()
    assert code != 0
    assert re.search(r"process \d+ on .* is running this profile here; wait", output), output
    assert first.poll() is None
    kill_all(first)
    # No lock is left behind.
    third = run.start()
    while not jobs_of(third):
        assert third.poll() is None
        time.sleep(0.1)
    kill_all(third)
    faults.append(Fault("two runs of one profile in one folder", 1, 1, "none", None))


def test_two_profiles_do_not_fetch_one_file_at_once(tmp_path: Path, faults: list[Fault]) -> None:
    run = Run(tmp_path / "two")
    source = yaml.safe_load((ROOT / "config/config.yaml").read_text())["corpus"]["sources"][-1]
    settings = yaml.safe_load((run.folder / run.configfile).read_text())
    (run.folder / run.configfile).write_text(yaml.safe_dump(settings | {"corpus": {"sources": [source]}}))
    file = run.folder / "results/sources" / Path(source["member"]).name
    hold(run.folder / "results/other", [file])
    code, output = run.reproduce()
    assert code != 0
    assert re.search(
        rf"\.{file.name}\.lock: process {os.getpid()} on .* which fetches this file; start again", output
    ), output
    assert not file.exists() and not (run.results / "logs").exists()
    # Once the file is there, it is not to be fetched, and not locked.
    file.write_text("")
    code, output = run.snakemake("results/smoke/model/source.json")
    assert code == 0, output
    faults.append(Fault("two profiles that fetch one file at once", 1, 1, "none", None))


def test_two_profiles_at_once(tmp_path: Path, undisturbed: Run, faults: list[Fault]) -> None:
    run = Run(tmp_path / "two")
    other = run.folder / "config/other.yaml"
    other.write_text((run.folder / run.configfile).read_text().replace("profile: smoke", "profile: other"))
    profiles = [run, Run(run.folder, "other", copied=None)]
    processes = [
        each.start(
            *("snakemake", "--configfile", each.configfile, "--cores", "2", "--"),
            f"results/{each.profile}/unigrams/layer1.safetensors",
            f"results/{each.profile}/residuals/index.json",
        )
        for each in profiles
    ]
    for process in processes:
        output, _ = process.communicate()
        assert process.returncode == 0, output
    expected = undisturbed.outputs()
    for each in profiles:
        found = each.outputs()
        assert {"results/unigrams/layer1.safetensors", "results/residuals/index.json"} <= found.keys()
        assert differences(found, {name: expected[name] for name in found if name in expected}) == []
    faults.append(
        Fault("two profiles at once in one folder, up to residuals and unigram residuals", 1, None, "none", 1)
    )
