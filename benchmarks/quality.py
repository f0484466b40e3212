"""How well SAEs of this project and of other tools reconstruct, trained on the same residuals at equal settings.

    python benchmarks/quality.py [--results results/embedded] [--config config/config.yaml] [--seeds 1] [--tool NAME]
                                 [--threads N] [--output results/bench]

Runs in the environment of other tools, on the residuals of a run at the middle layer of the headline SAEs, with the size of the
headline baseline. Every tool trains a TopK SAE from its own start and with its own update, on the same batches in the same order,
with the profile's learning rate, and its cosine if the tool lets one choose the schedule. Held-out numbers are in units of the
residuals, and each SAE reconstructs as in training.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure import describe_machine, in_words, table
from trainers import TOOLS, Settings, Trained

from tsae.profile import config
from tsae.profile.sweep import Job
from tsae.residuals.read import ResidualCache, open_residuals
from tsae.residuals.unigrams import load_unigrams
from tsae.sae.reconstruction import reconstruction_errors
from tsae.store import layout
from tsae.store.files import write_json
from tsae.training.batches import training_batches

CHUNK = 4096  # held-out tokens per reconstruction


class Quality(NamedTuple):
    """An SAE on the kept held-out tokens."""

    nmse: float  # mean over tokens of |x - x_hat|^2 / |x|^2
    dead: float  # share of features that fire on none of them


def measure(trained: Trained, heldout: ResidualCache, scale: float, n_features: int) -> Quality:
    """Reconstruct every kept held-out token; the SAE takes residuals divided by `scale`."""
    rows = heldout.kept_rows()
    total, fired = 0.0, torch.zeros(n_features, dtype=torch.bool)
    with torch.no_grad():
        for x, tokens in zip(rows.residuals.split(CHUNK), rows.tokens.long().split(CHUNK), strict=True):
            x_hat, active = trained.reconstruct(x / scale, tokens)
            total += reconstruction_errors(x, scale * x_hat).nmse.sum().item()
            fired |= active
    return Quality(total / len(rows.tokens), 1 - fired.double().mean().item())


def train(build: Callable[[Settings], Trained], settings: Settings, batches: Iterator[Any]) -> tuple[Trained, float]:
    """Build a tool's SAE and train it on every batch; returns the time too [s]."""
    torch.manual_seed(settings.seed)
    start = time.perf_counter()
    trained = build(settings)
    for batch in batches:
        trained.step(batch)
    return trained, time.perf_counter() - start


def measure_tool(name: str, seeds: int, job: Job, results: Path, settings: config.Config) -> dict[str, Any]:
    """The row of a tool, with the result of each seed."""
    cache = open_residuals(results / layout.RESIDUALS, "train", job.layer)
    heldout = open_residuals(results / layout.RESIDUALS, "heldout", job.layer)
    unigrams = load_unigrams(results / layout.UNIGRAMS.format(layer=job.layer))
    row: dict[str, Any] = {"tool": name, "seeds": []}
    for seed in range(seeds):
        of_seed = Settings(job.point, settings.training, cache, unigrams, settings.evaluation.dead_window, seed)
        batches = training_batches(cache, settings.training, seed + 1)
        trained, seconds = train(TOOLS[name], of_seed, batches)
        found = measure(trained, heldout, cache.scale, of_seed.n_features)
        row["path"] = trained.path
        row["seeds"].append({"seed": seed, "nmse": found.nmse, "dead": found.dead, "seconds": seconds})
    return row | {key: statistics.mean(one[key] for one in row["seeds"]) for key in ("nmse", "dead", "seconds")}


def show(rows: list[dict[str, Any]]) -> str:
    """The rows as a table, and the failures."""
    lines = [
        {
            "trained by": row["tool"],
            "NMSE": f"{row['nmse']:.4f}",
            "by seed": ", ".join(f"{one['nmse']:.4f}" for one in row["seeds"]),
            "dead": f"{row['dead']:.1%}",
            "time [s]": f"{row['seconds']:.0f}",
            "what runs": row["path"],
        }
        for row in rows
        if "error" not in row
    ]
    errors = [f"{row['tool']} failed: {row['error']}" for row in rows if "error" in row]
    return "\n".join([*([table(lines)] if lines else []), *errors])


def baseline(settings: config.Config) -> Job:
    """The headline baseline at the middle layer; its seed is not used.

    Raises:
        ValueError: it is no TopK SAE, the one architecture that all tools have.
    """
    layers = sorted({job.layer for job in settings.jobs("headline")})
    wanted = layers[len(layers) // 2], settings.headline()[0]
    job = next(job for job in settings.jobs("headline") if (job.layer, job.point.id) == wanted)
    if job.point.architecture != "topk":
        raise ValueError(f"sweep.headline: the baseline is {job.point.id}, and tools are compared by their TopK SAEs")
    return job


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=layout.EMBEDDED)
    parser.add_argument("--config", type=Path, default=Path("config/config.yaml"))
    parser.add_argument("--seeds", type=int, default=1, help="how many; each trains every tool once more")
    parser.add_argument("--tool", choices=TOOLS, action="append", help="default: all")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--output", type=Path, default=layout.BENCH)
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    settings = config.load(arguments.config)
    job = baseline(settings)
    machine = describe_machine()
    training = settings.training
    print(
        f"{in_words(machine)}\nlayer {job.layer}, {job.point.id}, {training.tokens} tokens in batches of "
        f"{training.batch_size}, learning rate {training.lr:g} to {training.lr_end:g}",
        flush=True,
    )
    rows = []
    for name in arguments.tool or TOOLS:
        try:
            rows.append(measure_tool(name, arguments.seeds, job, arguments.results, settings))
        except Exception as error:  # any failure of a tool is its result
            rows.append({"tool": name, "error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"})
        print(f"\n{show(rows[-1:])}", flush=True)
    print(f"\n{show(rows)}")
    cache = open_residuals(arguments.results / layout.RESIDUALS, "train", job.layer)
    described = {
        "layer": job.layer,
        "point": job.point.id,
        "k": job.point.k,
        "n_features": job.point.n_features(cache.d_model),
        "dead_window": settings.evaluation.dead_window,
        "training": training.model_dump(mode="json", include={"tokens", "batch_size", "lr", "lr_end", "buffer_tokens"}),
        "residuals": cache.fingerprints[cache.layer],
    }
    write_json(arguments.output / "quality.json", {"machine": machine, "settings": described, "tools": rows})


if __name__ == "__main__":
    main()
