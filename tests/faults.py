"""What tests of faults share: a copy of the project to run, disturb and compare, and the table of what was tried."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import psutil
import pytest
import tiny

from tsae.files import sha256

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
# What says when and how long, not what; locks; and what Snakemake keeps in folders.
NOT_COMPARED = ("logs", "benchmarks", "notebooks", "verified.txt", "manifest.json", ".lock", ".jobs")
SNAKEMAKES = ".snakemake_timestamp"
# What is left of work that did not come to its end.
UNFINISHED = ("*.tmp", ".training", "*.partial", "*.progress.json")

Item = TypeVar("Item")


class Fault(NamedTuple):
    """A row of the table."""

    fault: str
    tried: int | str
    detected: int | str | None  # None: a fault that is survived, and not noticed
    work_lost: str
    outputs_equal: int | str | None  # of those tried; None: there are no outputs to compare


def keep(test: str, rows: Sequence[Fault]) -> None:
    """Put the rows of a test in the place of those that it had in the table."""
    table = _table()
    before = [place for place, row in enumerate(table) if row["test"] == test]
    place = before[0] if before else len(table)
    others = [row for row in table if row["test"] != test]
    _write([*others[:place], *({"test": test} | row._asdict() for row in rows), *others[place:]])


def keep_only(tests: Sequence[str]) -> None:
    """Leave the rows of these tests in the table, in their order."""
    _write([row for test in tests for row in _table() if row["test"] == test])


def named(test: str, outcome: str) -> Fault:
    """The row of a test that did not pass."""
    name = test.partition("::")[2].removeprefix("test_").replace("_", " ")
    return Fault(f"{outcome}: {name}", "", "", "", "")


def _table() -> list[dict[str, Any]]:
    return json.loads(REPORT.read_text()) if REPORT.is_file() else []


def _write(table: list[dict[str, Any]]) -> None:
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(table, indent=2) + "\n")


class Run:
    """A copy of the project with its own results."""

    def __init__(self, folder: Path, profile: str = "smoke", copied: Path | None = ROOT):
        """Copy what a run needs from the project, or all there is from another copy; None: it is there."""
        self.folder, self.profile = folder, profile
        if copied == ROOT:
            self._copy(folder)
        elif copied is not None:
            shutil.copytree(copied, folder, symlinks=True)

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

    def start(
        self, *command: str, output: IO[str] | int = subprocess.PIPE, environment: Mapping[str, str] | None = None
    ) -> "subprocess.Popen[str]":
        """Start a command, by default `make reproduce`, in a session of its own."""
        # The environment is there: -o keeps make from setting it up.
        command = command or ("make", "-o", ".venv/ready", "reproduce", f"CONFIGFILE={self.configfile}", "CORES=2")
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment | dict(environment or {}),
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def reproduce(self, *command: str, **environment: str) -> tuple[int, str]:
        """Run a command, by default `make reproduce`, to its end; its exit status and what it said."""
        process = self.start(*command, environment=environment)
        output, _ = process.communicate()
        return process.returncode, output

    def snakemake(self, *arguments: str) -> tuple[int, str]:
        """Run Snakemake on the profile."""
        return self.reproduce("snakemake", "--configfile", self.configfile, "--cores", "2", *arguments)

    def stage(self, *arguments: str) -> tuple[int, str]:
        """Run one stage, `python -m tsae ...`."""
        return self.reproduce(sys.executable, "-m", "tsae", *arguments)

    def commands(self) -> dict[str, str]:
        """The shell command of every job, by the name of its log: `train/layer1/topk-k4-x4-none-s0`."""
        code, output = self.snakemake("--forceall", "--dry-run", "--printshellcmds")
        assert code == 0, output
        commands = re.findall(r"^Shell command: (.*)", output, flags=re.MULTILINE)
        log = re.compile(rf"results/{self.profile}/logs/(\S+)\.log")
        return {found[1]: command for command in commands if (found := log.search(command))}

    def outputs(self) -> dict[str, str]:
        """sha256 of every file that a run must give again; jobs may be at work."""
        found: dict[str, str] = {}
        for kind in ("results", "figures"):
            top = self.folder / kind / self.profile
            compared = [path for path in top.rglob("*") if _is_compared(path.relative_to(top))]
            found |= {f"{kind}/{name}": digest for name, digest in digests(top, compared).items()}
        return found

    def left_behind(self, *patterns: str) -> list[str]:
        """Files and folders of work that did not come to its end."""
        tops = (self.results, self.folder / "figures" / self.profile)
        return [str(path) for top in tops for pattern in patterns or UNFINISHED for path in top.rglob(pattern)]

    def at_work(self) -> list[psutil.Process]:
        """Processes in the copy, whoever started them."""
        found = []
        for process in psutil.process_iter():
            try:
                if Path(process.cwd()).is_relative_to(self.folder) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def clear(self) -> None:
        """Kill what a test has left at work in the copy."""
        psutil.wait_procs(kill(self.at_work), timeout=10)


def _is_compared(name: Path) -> bool:
    first = name.parts[0]
    return (
        name.name != SNAKEMAKES
        and first not in NOT_COMPARED
        and first.removeprefix(".").removesuffix(".sha256") not in NOT_COMPARED
    )


def digests(top: Path, paths: Iterable[Path]) -> dict[str, str]:
    """sha256 of files by their names below a folder; of those that are still there, since jobs may be at work."""
    found = {}
    for path in sorted(paths):
        try:
            if path.is_file():
                found[str(path.relative_to(top))] = sha256(path)
        except FileNotFoundError:
            continue
    return found


def differences(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """Files that are missing, not expected, or not the same."""
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def visible(found: Mapping[str, str]) -> dict[str, str]:
    """Files under their final names, without records of their sha256 and work on the way."""
    return {
        name: digest for name, digest in found.items() if not any(part.startswith(".") for part in Path(name).parts)
    }


def wrong(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """Files under their final names that are not the same; others may be missing."""
    return [name for name, digest in visible(found).items() if expected.get(name) != digest]


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
    if any(".snakemake/scripts" in word for word in line[:3]):
        return "figure"
    if any("jupytext" in word for word in line[:3]):
        return "notebook"
    return None


def jobs_of(process: "subprocess.Popen[Any]") -> dict[psutil.Process, str]:
    """The jobs under way, and what they work at."""
    found = {child: stage_of(child) for child in descendants(process)}
    return {child: stage for child, stage in found.items() if stage is not None}


def kill_all(process: "subprocess.Popen[Any]") -> None:
    """Kill a process and all it has started, none of them having time to say or tidy up anything."""
    victims = kill(lambda: [psutil.Process(process.pid), *descendants(process)] if process.poll() is None else [])
    process.communicate()  # before others wait for it, which would take away how it ended
    psutil.wait_procs(victims, timeout=10)


def kill(find: Callable[[], Iterable[psutil.Process]]) -> set[psutil.Process]:
    """Kill the processes that a function finds, which are stopped first so that they start no others."""
    stopped: set[psutil.Process] = set()
    while new := set(find()) - stopped:
        for victim in new:
            _send(victim, signal.SIGSTOP)
        stopped |= new
    for victim in stopped:
        _send(victim, signal.SIGKILL)
    return stopped


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.Error):
        process.send_signal(number)


def on_two_cores(work: Callable[[Item, Run], None], items: Sequence[Item], runs: Sequence[Run]) -> None:
    """Do the work for each item, every second one in the second of two copies, at the same time."""

    def share(place: int) -> None:
        for item in items[place::2]:
            work(item, runs[place])

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(share, place) for place in range(2)]:
            done.result()


def flip_a_bit(path: Path) -> None:
    """Damage a file as a disk does."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@contextlib.contextmanager
def disk(folder: Path, megabytes: int) -> Iterator[None]:
    """A file system of its own at a folder, with what is in it and some space beside."""
    aside = folder.with_name(f"{folder.name}-aside")
    folder.rename(aside)
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tsae", str(folder)], capture_output=True
    )
    if mounted.returncode:
        folder.rmdir()
        aside.rename(folder)
        pytest.skip("mounting a file system takes root")
    try:
        shutil.copytree(aside, folder, dirs_exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()
        aside.rename(folder)


def seconds_since_start(process: psutil.Process) -> float:
    """How long a process has run."""
    return time.time() - process.create_time()


def show() -> str:
    """The table of the last `make test-faults`, for a terminal."""
    head = ("fault", "tried", "detected", "work lost", "outputs equal")
    rows = [
        tuple({"detected": "survived"}.get(name, "") if row[name] is None else str(row[name]) for name in Fault._fields)
        for row in _table()
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)
    )


if __name__ == "__main__":
    print(show())
