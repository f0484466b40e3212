"""How to share cores between processes: the cost of a start, one thread or several, one SAE per process or several.

    python benchmarks/processes.py [--results results/embedded] [--config config/config.yaml] [--rounds 3] [--output results/bench]

Works on the files of a finished run. Each job runs in its own process, as in the workflow; training is cut short. Alternatives take
turns, and numbers are medians over rounds of the wall time of all jobs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from measure import describe_machine, in_words, table

from tsae.profile import config
from tsae.profile.config import Config, to_json
from tsae.profile.sweep import Job
from tsae.profile.training import Training
from tsae.residuals.read import open_residuals
from tsae.residuals.unigrams import load_unigrams
from tsae.sae.sae import SAE
from tsae.store import layout
from tsae.store.files import write_json
from tsae.training.batches import training_batches
from tsae.training.start import start_from
from tsae.training.trainer import Trainer

TRAINING_STEPS = 400
CACHED_SEQUENCES = 128
STARTS = {
    "training": "import tsae.__main__, tsae.training.train",
    "evaluation": "import tsae.__main__, tsae.measure.evaluate; from tsae.model.language_model import load_model; load_model(Path(sys.argv[1]))",
}

Command = list[str]


class Run(NamedTuple):
    """A finished run."""

    results: Path
    settings: Config
    jobs: list[Job]  # SAEs to train again, which differ in their seeds

    @property
    def training(self) -> Training:
        """The run's training, cut short."""
        return self.settings.training.model_copy(
            update={"tokens": TRAINING_STEPS * self.settings.training.batch_size, "history_points": 2}
        )


def python(code: str, *arguments: object) -> Command:
    """A Python process that runs code."""
    return [sys.executable, "-c", f"import sys; from pathlib import Path; {code}", *map(str, arguments)]


def start(command: Command, threads: int) -> subprocess.Popen[bytes]:
    """Start a process with this many threads."""
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return subprocess.Popen(command, env=os.environ | limits, stderr=subprocess.PIPE)


def seconds(commands: Sequence[Command], beside: int, threads: int) -> float:
    """Wall time of commands, `beside` at a time.

    Raises:
        RuntimeError: one of them failed.
    """
    begin = time.perf_counter()
    for first in range(0, len(commands), beside):
        running = [start(command, threads) for command in commands[first : first + beside]]
        for process in running:
            _, said = process.communicate()
            if process.returncode:
                raise RuntimeError(f"a job ended with {process.returncode}: {said.decode().strip()}")
    return time.perf_counter() - begin


def train_command(run: Run, job: Job, folder: Path) -> Command:
    """The workflow's training of one SAE."""
    return [
        *(sys.executable, "-m", "tsae", "--log", str(folder / f"{job.seed}.log"), "train-sae"),
        *("--job", to_json(job), "--settings", to_json(run.training)),
        *("--residuals", str(run.results / layout.RESIDUALS)),
        *("--unigrams", str(run.results / layout.UNIGRAMS.format(layer=job.layer))),
        *("--folder", str(folder / f"sae{job.seed}")),
    ]


def evaluate_command(run: Run, job: Job, folder: Path) -> Command:
    """The workflow's evaluation of one SAE."""
    results, settings = run.results, run.settings
    sae = results / layout.SAE.format(job=job.id)
    return [
        *(sys.executable, "-m", "tsae", "--log", str(folder / f"{job.seed}.log"), "evaluate-sae"),
        *("--job", to_json(job), "--settings", to_json(settings.evaluation)),
        *("--features", to_json(settings.features), "--min-firings", str(settings.simple.min_firings)),
        *("--sae", str(sae), "--token-biases", str(sae), "--model", str(results / layout.MODEL)),
        *("--residuals", str(results / layout.RESIDUALS)),
        *("--heldout", str(results / layout.HELDOUT_TOKENS)),
        *("--unigrams", str(results / layout.UNIGRAMS.format(layer=job.layer))),
        *("--conditional-means", str(results / layout.CONDITIONAL_MEANS.format(layer=job.layer))),
        *("--letter-tokens", str(results / layout.LETTER_TOKENS.format(layer=job.layer))),
        *("--ngrams", str(results / layout.NGRAMS.format(layer=job.layer))),
        *("--spelling", str(results / layout.SPELLING)),
        *("--embedding", str(results / layout.EMBEDDING)),
        *("--ablations", str(results / layout.ABLATIONS.format(layer=job.layer))),
        *("--metrics", str(folder / f"{job.seed}.json"), "--feature-table", str(folder / f"{job.seed}.parquet")),
        *("--sums", str(folder / f"{job.seed}.safetensors")),
    ]


def cache_command(run: Run, job: Job, folder: Path) -> Command:
    """Forward passes of some sequences up to the last cached layer."""
    n_ctx, batch, layers = (
        run.settings.tokens.n_ctx,
        run.settings.residuals.batch_sequences,
        list(run.settings.residuals.layers),
    )
    code = (
        "import torch; from tsae.model.language_model import load_model; model = load_model(Path(sys.argv[1])); "
        f"ids = torch.randint(model.vocab_size, ({CACHED_SEQUENCES}, {n_ctx})); "
        f"[model.residuals(part, {layers}) for part in ids.split({batch})]"
    )
    return python(code, run.results / layout.MODEL)


def train_together(results: Path, settings: Training, jobs: Sequence[Job]) -> None:
    """Train several SAEs on one stream of batches."""
    layer, seed = jobs[0].layer, jobs[0].seed
    cache = open_residuals(results / layout.RESIDUALS, "train", layer)
    unigrams = load_unigrams(results / layout.UNIGRAMS.format(layer=layer))
    saes = [SAE.initialise(job.point, start_from(job.point, cache, unigrams, job.seed), job.seed) for job in jobs]
    trainers = [Trainer(sae, settings) for sae in saes]
    for batch in training_batches(cache, settings, seed + 1):
        for trainer in trainers:
            trainer.step(batch)


def together_command(run: Run, jobs: Sequence[Job]) -> Command:
    """`train_together` in a process of its own."""
    return [
        *(sys.executable, __file__, "--results", str(run.results), "--training", to_json(run.training)),
        *(argument for job in jobs for argument in ("--job", to_json(job))),
    ]


def measure_threads(run: Run, rounds: int, cores: int, folder: Path) -> list[dict[str, Any]]:
    """Wall time of each stage: as many jobs as cores beside each other, and one after the other on all cores."""
    stages: dict[str, Callable[[Run, Job, Path], Command]] = {
        "train": train_command,
        "evaluate": evaluate_command,
        "cache_residuals": cache_command,
    }
    rows = []
    for stage, command in stages.items():
        commands = [command(run, job, folder) for job in run.jobs[:cores]]
        beside, after = [], []
        for _ in range(rounds):
            beside.append(seconds(commands, beside=cores, threads=1))
            after.append(seconds(commands, beside=1, threads=cores))
        rows.append(
            {
                "stage": stage,
                "jobs": len(commands),
                "one_thread_each_s": statistics.median(beside),
                "all_threads_in_turn_s": statistics.median(after),
                "ratio": statistics.median(b / a for a, b in zip(beside, after, strict=True)),
            }
        )
    return rows


def measure_sharing(run: Run, rounds: int, cores: int, folder: Path) -> dict[str, float]:
    """Training twice as many SAEs as cores: one per process, and two per process on one stream."""
    jobs = [job for job in run.jobs[:1] for _ in range(2 * cores)]
    apart = [train_command(run, job, folder / str(place)) for place, job in enumerate(jobs)]
    together = [together_command(run, jobs[first : first + 2]) for first in range(0, len(jobs), 2)]
    times: dict[str, list[float]] = {"apart_s": [], "together_s": []}
    for _ in range(rounds):
        times["apart_s"].append(seconds(apart, beside=cores, threads=1))
        times["together_s"].append(seconds(together, beside=cores, threads=1))
    ratios = [b / a for a, b in zip(times["apart_s"], times["together_s"], strict=True)]
    medians = {name: statistics.median(values) for name, values in times.items()}
    return medians | {"saes": float(len(jobs)), "steps": float(TRAINING_STEPS), "ratio": statistics.median(ratios)}


def measure_starts(run: Run, rounds: int) -> dict[str, float]:
    """Seconds from the start of a process until its work begins, by kind of job."""
    return {
        name: statistics.median(
            seconds([python(code, run.results / layout.MODEL)], beside=1, threads=1) for _ in range(rounds)
        )
        for name, code in STARTS.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=layout.EMBEDDED)
    parser.add_argument("--config", type=Path, default=Path("config/config.yaml"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=layout.BENCH)
    parser.add_argument("--training", help=argparse.SUPPRESS)
    parser.add_argument("--job", action="append", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        jobs = [Job.model_validate(json.loads(text)) for text in arguments.job]
        train_together(arguments.results, Training.model_validate(json.loads(arguments.training)), jobs)
        return
    if not (arguments.results / layout.MANIFEST).exists():
        print(f"{arguments.results}: there is no finished run, so processes are not measured; run: make reproduce")
        return
    settings = config.load(arguments.config)
    tokenized = settings.headline()[1]
    layer = sorted({job.layer for job in settings.jobs("headline")})[-1]
    jobs = [job for job in settings.jobs("headline") if job.layer == layer and job.point.id == tokenized]
    run, cores = Run(arguments.results, settings, jobs), min(os.cpu_count() or 1, len(jobs))
    machine = describe_machine()
    print(f"{in_words(machine)}; {arguments.rounds} rounds\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        threads = measure_threads(run, arguments.rounds, cores, Path(folder))
        sharing = measure_sharing(run, arguments.rounds, cores, Path(folder))
    starts = measure_starts(run, arguments.rounds)
    print(
        table(
            {
                "stage": row["stage"],
                f"{row['jobs']} jobs of 1 thread [s]": f"{row['one_thread_each_s']:.1f}",
                f"in turn on {cores} threads [s]": f"{row['all_threads_in_turn_s']:.1f}",
                "in turn / beside": f"{row['ratio']:.2f}",
            }
            for row in threads
        )
    )
    print(
        f"\n{sharing['saes']:.0f} SAEs of {TRAINING_STEPS} steps: {sharing['apart_s']:.1f} s in a process each, "
        f"{sharing['together_s']:.1f} s with two on one stream ({sharing['ratio']:.2f})"
    )
    print("start of a process: " + ", ".join(f"{value:.1f} s for {name}" for name, value in starts.items()))
    write_json(
        arguments.output / "processes.json",
        {"machine": machine, "rounds": arguments.rounds, "threads": threads, "sharing": sharing, "starts": starts},
    )


if __name__ == "__main__":
    main()
