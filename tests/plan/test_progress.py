"""The time left: at the speed of the plan at first, then at that of the jobs that have ended."""

import io
import logging
from enum import Enum

import pytest
from fixtures import ROOT

from tsae.plan import plan
from tsae.plan.plan import Machine, Rates
from tsae.plan.progress import Progress, in_time, job_seconds, time_left
from tsae.profile import config

RATES = Rates(cores=2, start=2, start_model=6, model=1e11, dense=5e10, sparse=1e10, stream=1e8, text=5e4)


def test_at_first_the_plan_is_all_there_is() -> None:
    assert time_left(0, 3600, 0) == 3600
    assert time_left(0, 3600, 0, speed=4) == 900


@pytest.mark.parametrize("factor", [0.25, 1, 3])
def test_it_converges_to_the_speed_of_this_machine(factor: float) -> None:
    """On a machine that takes `factor` times what the plan says."""
    estimates = [time_left(done, 7200 - done, factor * done) for done in range(0, 7201, 60)]
    true = [factor * (7200 - done) for done in range(0, 7201, 60)]
    assert estimates[-1] == 0
    for estimate, right in zip(estimates[30:-1], true[30:-1], strict=True):
        assert estimate == pytest.approx(right, rel=0.1)
    # The first job to end does not decide alone.
    assert min(1, factor) * 7140 <= estimates[1] <= max(1, factor) * 7140


def test_all_jobs_together_take_what_the_plan_says() -> None:
    profile = config.load(ROOT / "config/config.yaml")
    took = job_seconds(profile, RATES, on_gpu=False)
    planned = {stage.cost.stage: stage for stage in plan.plan(profile, RATES, Machine()).stages}
    assert sum(took[job.id] for job in profile.jobs()) == pytest.approx(3600 * planned["train"].hours)
    assert took["evaluate"] * len(profile.jobs()) == pytest.approx(3600 * planned["evaluate"].hours)
    wide, narrow = (max(profile.jobs(), key=lambda job: sign * job.point.expansion) for sign in (1, -1))
    assert took[wide.id] > 2 * took[narrow.id]


def test_a_single_sae_has_no_curves() -> None:
    profile = config.load(ROOT / "config/minimal.yaml")
    took = job_seconds(profile, RATES, on_gpu=False)
    assert "measure_curve" not in took and took["train"] > 0


class Event(Enum):
    """As in snakemake_interface_logger_plugins."""

    JOB_FINISHED = "job_finished"
    PROGRESS = "progress"


def finish(progress: Progress, job: int) -> None:
    for event in Event:
        record = logging.makeLogRecord({"event": event, "job_id": job})
        progress.emit(record)


def test_a_line_for_each_tenth_where_nobody_watches() -> None:
    stream = io.StringIO()
    progress = Progress(dict.fromkeys(range(100), 7200.0), speed=1.0, stream=stream)
    for job in range(100):
        finish(progress, job)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10  # at the start, and 10% to 90%; the end says itself
    assert lines[0] == "about 200 h left"
    assert [line.partition("%")[0] for line in lines[1:]] == [str(share) for share in range(10, 100, 10)]
    assert all(line.endswith(" left") and " of the work done, " in line for line in lines[1:])


def test_events_are_those_of_snakemake() -> None:
    from snakemake_interface_logger_plugins.common import LogEvent

    assert (LogEvent.JOB_FINISHED.value, LogEvent.PROGRESS.value) == ("job_finished", "progress")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (20, "less than a minute"),
        (720, "about 12 min"),
        (5000, "about 83 min"),
        (9000, "about 2.5 h"),
        (90_000, "about 25 h"),
    ],
)
def test_times_as_one_would_say_them(seconds: float, said: str) -> None:
    assert in_time(seconds) == said
