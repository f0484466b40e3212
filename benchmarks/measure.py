"""Shared by benchmarks: a clock, memory, the machine, tables."""

import argparse
import ctypes
import gc
import os
import platform
import re
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from tsae.store import layout

T = TypeVar("T")

# workflow/rules/common.smk sets these for jobs, and the Makefile for benchmarks.
ENVIRONMENT = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "OMP_WAIT_POLICY")


class Timing(NamedTuple):
    """A contender against the reference, round by round."""

    seconds: list[float]  # of one step
    ratios: list[float]  # to the reference, which ran just before

    def summary(self, n_tokens: int) -> dict[str, float]:
        """Medians, and the range of the ratios."""
        median = statistics.median(self.seconds)
        return {
            "ms": 1000 * median,
            "ratio": statistics.median(self.ratios),
            "ratio_low": min(self.ratios),
            "ratio_high": max(self.ratios),
            "tokens_per_s": n_tokens / median,
        }


def seconds(run: Callable[[T], object], x: T, repeats: int) -> float:
    """Mean wall time of `repeats` calls."""
    start = time.perf_counter()
    for _ in range(repeats):
        run(x)
    return (time.perf_counter() - start) / repeats


def compare(
    contenders: Mapping[str, Callable[[T], object]],
    reference: Callable[[T], object],
    inputs: Sequence[T],
    rounds: int,
    repeats: int,
) -> dict[str, Timing]:
    """Time contenders in turns, each right after the reference, because the machine's speed drifts but ratios of neighbours do not.

    Args:
        contenders: functions by name.
        reference: the function they are compared with.
        inputs: used in rotation; all contenders of a round have the same one.
        rounds: turns of each contender.
        repeats: calls in a turn.
    """
    timings = {name: Timing([], []) for name in contenders}
    for turn in range(rounds):
        x = inputs[turn % len(inputs)]
        for name, contender in contenders.items():
            unit = seconds(reference, x, repeats)
            timings[name].seconds.append(seconds(contender, x, repeats))
            timings[name].ratios.append(timings[name].seconds[-1] / unit)
    return timings


def settle_memory() -> None:
    """Return free memory (glibc), and reset the peak of resident memory (Linux)."""
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_memory() -> float:
    """Peak of resident memory since `settle_memory` [MB]."""
    return _memory("VmHWM")


def resident_memory() -> float:
    """Resident memory now, or its peak if the system does not say [MB]."""
    return _memory("VmRSS")


def _memory(key: str) -> float:
    try:
        found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    except OSError:
        found = None
    if found is None:
        unit = 1 if platform.system() == "Darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    return int(found[1]) * 1024 / 1e6


def arguments_of_steps(description: str | None) -> argparse.ArgumentParser:
    """The options of every benchmark of steps."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=layout.BENCH)
    return parser


def describe_machine() -> dict[str, Any]:
    """The machine, its load, and its settings of threads and memory."""
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "threads": torch.get_num_threads(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "environment": {name: os.environ.get(name) for name in ENVIRONMENT},
    }


def _processor() -> str:
    """Its name, with family and model where Linux tells them: one name may stand for several generations."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = dict(re.findall(r"^(model name|cpu family|model)\s*: (.+)$", text, re.MULTILINE))
    if "model name" not in found:
        return platform.processor()
    kind = [f"{word} {found[key]}" for word, key in (("family", "cpu family"), ("model", "model")) if key in found]
    return found["model name"] + (f" ({', '.join(kind)})" if kind else "")


def in_words(machine: Mapping[str, Any]) -> str:
    """The machine in one line."""
    settings = ", ".join(f"{name}: {value or 'not set'}" for name, value in machine["environment"].items())
    about = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, load {machine['load']:.1f}"
    return f"{about}, torch {machine['torch']}; {settings}"


def table(rows: Iterable[Mapping[str, str]]) -> str:
    """A Markdown table with padded columns, the first one left-aligned."""
    rows = list(rows)
    columns = list(rows[0])
    widths = {column: max(len(column), *(len(row[column]) for row in rows)) for column in columns}

    def line(cells: Mapping[str, str]) -> str:
        first, *others = columns
        padded = [cells[first].ljust(widths[first]), *(cells[column].rjust(widths[column]) for column in others)]
        return f"| {' | '.join(padded)} |"

    rule = {
        column: "-" * (widths[column] - (column != columns[0])) + (":" if column != columns[0] else "")
        for column in columns
    }
    return "\n".join([line(dict(zip(columns, columns, strict=True))), line(rule), *map(line, rows)])
