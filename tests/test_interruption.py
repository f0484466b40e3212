"""Runs that are killed at random moments give what an undisturbed one gives, with nothing but another `make reproduce`."""

import random
import signal
import subprocess
import time

import psutil
import pytest
from faults import Fault, Run, descendants, differences, kill_all, seconds_since_start, stage_of, words

pytestmark = pytest.mark.faults

MOMENTS = 21
VICTIMS = ("everything", "Snakemake", "a job")
SETTLE_S = 20


def jobs_of(process: "subprocess.Popen[str]") -> dict[psutil.Process, str]:
    """The jobs under way, and what they work at."""
    found = {child: stage_of(child) for child in descendants(process)}
    return {child: stage for child, stage in found.items() if stage is not None}


def kill(process: "subprocess.Popen[str]", victim: str, generator: random.Random) -> dict[str, float]:
    """Kill one thing or all; the stages that were hit, and for how long they had run."""
    jobs = jobs_of(process)
    if victim == "a job" and jobs:
        chosen = generator.choice(sorted(jobs, key=lambda job: job.pid))
        lost = {jobs[chosen]: seconds_since_start(chosen)}
        chosen.kill()
        process.communicate()
        return lost
    lost = {stage: seconds_since_start(job) for job, stage in jobs.items() if job.is_running()}
    if victim == "Snakemake":
        # Its jobs go on, as they do when a terminal or a scheduler takes it away.
        for child in descendants(process):
            if any(word.endswith("snakemake") for word in words(child)[:3]):
                child.kill()
        process.kill()
        process.communicate()
        return lost
    kill_all(process)
    return lost


def test_killed_at_random_moments(
    undisturbed: Run, tmp_path_factory: pytest.TempPathFactory, faults: list[Fault]
) -> None:
    generator = random.Random(0)
    run = Run(tmp_path_factory.mktemp("killed"))
    hit: dict[str, list[float]] = {}
    for moment in range(MOMENTS):
        process = run.start(output=subprocess.DEVNULL)
        time.sleep(generator.uniform(4, 22))
        assert process.poll() is None, f"the run ended before moment {moment}: {process.returncode}"
        for stage, seconds in kill(process, VICTIMS[moment % len(VICTIMS)], generator).items():
            hit.setdefault(stage, []).append(seconds)
    code, output = run.reproduce()
    assert code == 0, output
    assert differences(run.outputs(), undisturbed.outputs()) == []
    assert run.left_behind() == []
    longest = max(seconds for of_stage in hit.values() for seconds in of_stage)
    said = ", ".join(f"{stage} {len(of_stage)}" for stage, of_stage in sorted(hit.items()))
    faults.append(
        Fault(f"kill -9 of all, of Snakemake, of a job ({said})", MOMENTS, None, f"at most {longest:.0f} s", MOMENTS)
    )


def test_interrupted_from_the_keyboard(tmp_path_factory: pytest.TempPathFactory, faults: list[Fault]) -> None:
    run = Run(tmp_path_factory.mktemp("keyboard"))
    process = run.start()
    time.sleep(20)
    assert process.poll() is None
    started = time.monotonic()
    # As a terminal does, to all in the foreground.
    for each in [psutil.Process(process.pid), *descendants(process)]:
        each.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=SETTLE_S)
    assert process.returncode != 0
    assert time.monotonic() - started < SETTLE_S
    assert run.left_behind() == []
    last = [line for line in output.splitlines() if line.strip()][-3:]
    assert any("make" in line or "again" in line for line in last), last
    faults.append(Fault("Ctrl-C", 1, 1, "the jobs under way", None))
