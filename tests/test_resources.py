"""A full or read-only disk, too little memory, a clock that jumps, many files: a clear error or the same results."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults import Fault, Run, differences

pytestmark = pytest.mark.faults

# A rule of each stage that writes, and what it is called in the table.
STAGES = {
    "prepare_model": "the model",
    "prepare_documents": "documents",
    "tokenize": "tokens",
    "cache_residuals": "residuals",
    "unigrams": "unigram residuals",
    "train": "an SAE",
    "evaluate": "measurements",
    "collect_all": "a table",
    "speedup": "a figure",
}
WHOLE_MB = 2000
SPARE_BYTES = 16_000


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of its own at a folder, with what is in it."""
    aside = folder.with_name(f"{folder.name}-aside")
    folder.rename(aside)
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={WHOLE_MB}m", "tsae", str(folder)], capture_output=True
    )
    if mounted.returncode:
        aside.rename(folder)
        pytest.skip("mounting a file system takes root")
    try:
        shutil.copytree(aside, folder, dirs_exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def copy(undisturbed: Run, tmp_path: Path) -> Run:
    """A finished run."""
    run = Run(tmp_path / "copy")
    for top in ("results", "figures", ".snakemake"):
        shutil.copytree(undisturbed.folder / top, run.folder / top, dirs_exist_ok=True)
    return run


def only(run: Run, rule: str) -> tuple[int, str]:
    return run.reproduce(
        "snakemake", "--configfile", run.configfile, "--cores", "2", "--forcerun", rule, "--until", rule
    )


def test_a_full_disk(copy: Run, undisturbed: Run, faults: list[Fault]) -> None:
    (copy.folder / "figures").rename(copy.results / "figures")
    (copy.folder / "figures").symlink_to(copy.results / "figures")
    with small_disk(copy.results):
        filler = copy.results / "filler"
        for rule, what in STAGES.items():
            free = shutil.disk_usage(copy.results).free
            filler.write_bytes(bytes(free - SPARE_BYTES))
            code, output = only(copy, rule)
            assert code != 0, what
            assert any(word in output for word in ("could not be written", "GB are free", "No space left")), (
                what,
                output,
            )
            filler.unlink()
            assert list(copy.results.rglob("*.tmp")) == [], what
        code, output = copy.reproduce()
        assert code == 0, output
        found = {name: digest for name, digest in copy.outputs().items() if not name.startswith("results/figures/")}
        assert differences(found, undisturbed.outputs()) == []
    faults.append(
        Fault(f"disk full while writing {', '.join(STAGES.values())}", len(STAGES), len(STAGES), "the job", len(STAGES))
    )


def test_a_read_only_disk(copy: Run, faults: list[Fault]) -> None:
    with small_disk(copy.results):
        for path in copy.results.glob("tables/*.csv"):
            path.unlink()
        subprocess.run(["mount", "-o", "remount,ro", str(copy.results)], check=True)
        code, output = copy.reproduce()
        assert code != 0
        assert "Read-only file system" in output
        subprocess.run(["mount", "-o", "remount,rw", str(copy.results)], check=True)
        code, output = copy.reproduce()
        assert code == 0, output
    faults.append(Fault("results on a read-only disk", 1, 1, "none", 1))


LIMITED = """
import resource, sys
import torch, tsae.cache, tsae.train, transformer_lens
from tsae.__main__ import run
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + {spare}, used + {spare}))
run()
"""


@pytest.mark.parametrize("rule", ["cache_residuals", "train"])
def test_too_little_memory(copy: Run, rule: str, faults: list[Fault]) -> None:
    code, output = copy.reproduce(
        "snakemake", "--configfile", copy.configfile, "--cores", "2", "--forcerun", rule, "--until", rule, "-n", "-p"
    )
    command = next(line.strip() for line in output.splitlines() if "python -m tsae" in line)
    for path in (copy.results / "residuals").rglob("shard-*"):
        if rule == "cache_residuals":
            path.unlink()
    launcher = copy.folder / "limited.py"
    launcher.write_text(LIMITED.format(spare=2_000_000))
    code, output = copy.reproduce("bash", "-c", command.replace("python -m tsae", f"{sys.executable} {launcher}"))
    assert code != 0
    assert "error: out of memory" in output, output
    assert copy.left_behind() == []
    faults.append(Fault(f"too little memory ({rule})", 1, 1, "the job", None))


def test_a_clock_that_jumps_back(copy: Run, undisturbed: Run, faults: list[Fault]) -> None:
    # What was written before the jump has times that are yet to come.
    tomorrow = time.time() + 86_400
    for top in ("results", "figures"):
        for path in (copy.folder / top).rglob("*"):
            os.utime(path, (tomorrow, tomorrow))
    for pattern in ("tables/headline.csv", "saes/layer1/*-s0/sae.safetensors"):
        next(iter(sorted(copy.results.glob(pattern)))).unlink()
    code, output = copy.reproduce()
    assert code == 0, output
    assert differences(copy.outputs(), undisturbed.outputs()) == []
    code, output = copy.reproduce()
    assert code == 0, output
    faults.append(Fault("a clock that jumps back a day", 1, None, "none", 1))


def test_ten_thousand_small_files(tmp_path: Path, faults: list[Fault]) -> None:
    run = Run(tmp_path / "many")
    (run.folder / "texts").mkdir()
    lines = (run.folder / "results/tiny/corpus.txt").read_text().splitlines()
    for number in range(10_000):
        (run.folder / f"texts/{number:05d}.txt").write_text(lines[number % len(lines)] + f" {number}\n")
    config = run.folder / run.configfile
    config.write_text(
        config.read_text()
        .replace("paths: [results/tiny/corpus.txt]", "paths: [texts]")
        .replace("format: lines", "format: text")
    )
    code, output = run.reproduce(
        "snakemake", "--configfile", run.configfile, "--cores", "2", "--", "results/smoke/documents.jsonl"
    )
    assert code == 0, output
    assert len((run.results / "documents.jsonl").read_text().splitlines()) == 10_000
    faults.append(Fault("a corpus of 10 000 files", 1, None, "none", None))
