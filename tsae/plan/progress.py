"""How long a run still takes: what the plan expects of the jobs left, at the speed of those that have ended."""

import logging
import sys
import time
from collections.abc import Mapping
from typing import TextIO

from tsae.plan.costs import train
from tsae.plan.plan import Machine, Rates, plan, seconds
from tsae.profile.config import Config

# The plan's speed counts as if it had been measured on jobs of this length, so that the first jobs to end do not decide alone [s].
PLAN_COUNTS = 60.0
APART = 10.0  # time between lines on a terminal [s]


def job_seconds(config: Config, rates: Rates, on_gpu: bool) -> dict[str, float]:
    """What a job of a stage adds to the time of a run, by the rule's name; a training also by its SAE's id [s].

    Of the machine of the plan, whose cores share the jobs. A rule that is not in the plan takes the start of a process.
    """
    planned = plan(config, rates, Machine()).stages
    took = {
        stage.cost.stage: 3600 * (stage.gpu_hours if on_gpu else stage.hours) / stage.cost.jobs for stage in planned
    }
    alone = {job.id: seconds(train(config, [job]), rates) for job in config.jobs()}
    mean = sum(alone.values()) / len(alone)
    return took | {job: took["train"] * share / mean for job, share in alone.items()}


def speed_of(cores: int | None, rates: Rates, on_gpu: bool) -> float:
    """Planned seconds that a second of this machine is worth, before anything is measured."""
    return 1.0 if on_gpu or cores is None else cores / rates.cores


def time_left(done: float, left: float, elapsed: float, speed: float = 1.0) -> float:
    """Time until the end of a run [s].

    Args:
        done: planned time of the jobs that have ended [s].
        left: planned time of those that have not [s].
        elapsed: time since the start [s].
        speed: planned seconds that a second is worth, as expected before.
    """
    return left * (elapsed + PLAN_COUNTS / speed) / (done + PLAN_COUNTS)


class Progress(logging.Handler):
    """Reads from Snakemake's messages which jobs have ended, and says the time left.

    On a terminal every few seconds, elsewhere with each tenth of the work.
    """

    def __init__(self, planned: Mapping[int, float], speed: float, stream: TextIO = sys.stderr):
        """Say what the plan expects.

        Args:
            planned: time of every job that is to run, by its number [s].
            speed: planned seconds that a second is expected to be worth.
            stream: where lines go.
        """
        super().__init__()
        self._left, self._total = dict(planned), sum(planned.values())
        self._speed, self._stream = speed, stream
        self._start = self._said = time.monotonic()
        self._tenth = 0
        self._say(0.0)

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of a job that has ended; speak after Snakemake's own line on progress."""
        event = getattr(getattr(record, "event", None), "value", None)
        if event == "job_finished":
            self._left.pop(getattr(record, "job_id", -1), None)
        elif event == "progress" and self._left and self._total:
            now, done = time.monotonic(), self._total - sum(self._left.values())
            tenth = int(10 * done / self._total)
            if tenth > self._tenth or (self._stream.isatty() and now - self._said >= APART):
                self._said, self._tenth = now, tenth
                self._say(done)

    def _say(self, done: float) -> None:
        elapsed = time.monotonic() - self._start
        left = time_left(done, self._total - done, elapsed, self._speed)
        share = f"{done / self._total:.0%} of the work done, " if done else ""
        print(f"{share}{in_time(left)} left", file=self._stream, flush=True)


def in_time(value: float) -> str:
    """A duration [s] as one would say it."""
    if value < 60:
        return "less than a minute"
    if value < 90 * 60:
        return f"about {round(value / 60)} min"
    return f"about {value / 3600:.1f} h" if value < 10 * 3600 else f"about {round(value / 3600)} h"
