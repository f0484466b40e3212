"""What tests of faults share: a copy of the project to run, disturb and compare, and the table of what was tried."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import psutil
import tiny

ROOT = Path(__file__).parents[1]
COPIED = (
    "Makefile",
    "Snakefile",
    "config",
    "docs/record.json",
    "envs",
    "notebooks",
    "profiles",
    "pyproject.toml",
    "tsae",
    "workflow",
)
REPORT = ROOT / "results/faults.json"
# What says when and how long, not what.
NOT_COMPARED = ("logs", "benchmarks", "notebooks", "verified.txt", "manifest.json")


class Fault(NamedTuple):
    """A row of the table."""

    fault: str
    tried: int
    detected: int | None  # None: a fault that is survived, and not noticed
    work_lost: str
    outputs_equal: int | None  # of those tried; None: there are no outputs to compare


def write_table(rows: list[Fault]) -> None:
    """Keep the table for docs/reliability.md."""
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps([row._asdict() for row in rows], indent=2) + "\n")


class Run:
    """A copy of the project with its own results."""

    def __init__(self, folder: Path, profile: str = "smoke", copy: bool = True):
        """Copy what a run needs, and write the inputs of the smoke profile, unless they are there."""
        self.folder, self.profile = folder, profile
        if copy:
            self._copy(folder)

    def _copy(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            (folder / name).parent.mkdir(exist_ok=True)
            copy(ROOT / name, folder / name)
        (folder / ".venv").symlink_to(Path(sys.prefix))
        tiny.write_corpus(folder / "results/tiny/corpus.txt")
        tiny.write_gpt2(folder / "results/tiny/model", folder / "results/tiny/corpus.txt")

    @property
    def configfile(self) -> str:
        """Relative to the copy."""
        return f"config/{self.profile}.yaml"

    @property
    def results(self) -> Path:
        """Where the run's results are."""
        return self.folder / "results" / self.profile

    @property
    def environment(self) -> dict[str, str]:
        """Of commands: the interpreter that runs the tests, and the package in the copy."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return os.environ | {"PATH": path, "PYTHONPATH": str(self.folder)}

    def start(self, *command: str, output: IO[str] | int = subprocess.PIPE) -> "subprocess.Popen[str]":
        """Start a command, by default `make reproduce`, in a session of its own."""
        # The environment is there: -o keeps make from setting it up.
        command = command or ("make", "-o", ".venv/ready", "reproduce", f"CONFIGFILE={self.configfile}", "CORES=2")
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def reproduce(self, *command: str) -> tuple[int, str]:
        """Run a command, by default `make reproduce`, to its end; its exit status and what it said."""
        process = self.start(*command)
        output, _ = process.communicate()
        return process.returncode, output

    def stage(self, *arguments: str) -> tuple[int, str]:
        """Run one stage, `python -m tsae ...`."""
        return self.reproduce(sys.executable, "-m", "tsae", *arguments)

    def outputs(self) -> dict[str, str]:
        """sha256 of every file that a run must give again."""
        found = {}
        for top in (self.results, self.folder / "figures" / self.profile):
            for path in sorted(top.rglob("*")):
                name = path.relative_to(top)
                if path.is_file() and name.parts[0] not in NOT_COMPARED:
                    found[f"{top.parent.name}/{name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    def left_behind(self) -> list[str]:
        """Temporary files."""
        tops = (self.results, self.folder / "figures" / self.profile)
        return [str(path) for top in tops for path in top.rglob("*.tmp")]


def differences(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """Files that are missing, not expected, or not the same."""
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def descendants(process: "subprocess.Popen[Any]") -> list[psutil.Process]:
    """The processes that a process has started, directly or not."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def words(process: psutil.Process) -> list[str]:
    """The command line, empty if the process is gone."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def stage_of(process: psutil.Process) -> str | None:
    """What a process works at, if it is a job of the workflow."""
    line = words(process)
    if "tsae" in line[:3] and "--log" in line:
        return line[line.index("--log") + 2]
    if any("scripts/" in word and "tmp" in word for word in line[:3]) or any(
        ".snakemake/scripts" in word for word in line[:3]
    ):
        return "figure"
    if any("jupytext" in word for word in line[:4]):
        return "notebook"
    return None


def kill_all(process: "subprocess.Popen[Any]") -> None:
    """Kill a process and all it has started, none of them having time to say or tidy up anything."""
    victims = descendants(process)
    for victim in victims:
        try:
            victim.kill()
        except psutil.Error:
            continue
    process.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(victims, timeout=10)


def seconds_since_start(process: psutil.Process) -> float:
    """How long a process has run."""
    return time.time() - process.create_time()


def show() -> str:
    """The table of the last `make test-faults`, for a terminal."""
    head = ("fault", "tried", "detected", "work lost", "outputs equal")
    rows = [tuple("" if cell is None else str(cell) for cell in row.values()) for row in json.loads(REPORT.read_text())]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)
    )


if __name__ == "__main__":
    print(show())
