"""How well SAEs of this project and of other tools reconstruct, trained on the same residuals at equal settings.

    python benchmarks/quality.py [--results results/embedded] [--config config/config.yaml] [--seeds 1]
                                 [--architecture NAME ...] [--tool NAME ...] [--threads N] [--output results/bench]

Runs in the environment of other tools, on the residuals of a run at the middle layer of the headline SAEs, with the size of the
headline baseline. Every tool trains an SAE of each architecture that it has from its own start and with its own update, on the
same batches in the same order, with the profile's learning rate, and its cosine if the tool lets one choose the schedule. Sparsity
is set by the same k; where a penalty sets it, the others aim at the held-out L0 of ours. Held-out numbers are in units of the
residuals, and each SAE reconstructs as the tool does after training: BatchTopK by its threshold.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure import describe_machine, in_words, table
from trainers import OURS, TOOLS
from trainers.settings import Builder, Settings, Trained

from tsae.profile import config
from tsae.profile.sweep import Job
from tsae.residuals.read import ResidualCache, open_residuals
from tsae.residuals.unigrams import load_unigrams
from tsae.sae.architectures import auxk
from tsae.sae.reconstruction import reconstruction_errors
from tsae.store import layout
from tsae.store.files import write_json
from tsae.training.batches import training_batches

CHUNK = 4096  # held-out tokens per reconstruction


class Quality(NamedTuple):
    """An SAE on the kept held-out tokens."""

    nmse: float  # mean over tokens of |x - x_hat|^2 / |x|^2
    l0: float  # features that fire on a token, mean over tokens
    dead: float  # share of features that fire on none of them


def measure(trained: Trained, heldout: ResidualCache, scale: float, n_features: int) -> Quality:
    """Reconstruct every kept held-out token; the SAE takes residuals divided by `scale`."""
    rows = heldout.kept_rows()
    total, fired = 0.0, torch.zeros(n_features, dtype=torch.int64)
    with torch.no_grad():
        for x, tokens in zip(rows.residuals.split(CHUNK), rows.tokens.long().split(CHUNK), strict=True):
            x_hat, firings = trained.reconstruct(x / scale, tokens)
            total += reconstruction_errors(x, scale * x_hat).nmse.sum().item()
            fired += firings
    n = len(rows.tokens)
    return Quality(total / n, fired.sum().item() / n, (fired == 0).double().mean().item())


def train(build: Builder, settings: Settings, batches: Iterator[Any]) -> tuple[Trained, float]:
    """Build a tool's SAE and train it on every batch; returns the time too [s]."""
    torch.manual_seed(settings.seed)
    start = time.perf_counter()
    trained = build(settings)
    for batch in batches:
        trained.step(batch)
    return trained, time.perf_counter() - start


def measure_tool(
    name: str, seeds: int, job: Job, results: Path, settings: config.Config, l0_of_ours: dict[int, float]
) -> dict[str, Any]:
    """The row of a tool for the architecture of a job, with the result of each seed.

    Args:
        name: the tool.
        seeds: how many.
        job: layer and point of our SAE.
        results: folder of the run.
        settings: the profile.
        l0_of_ours: held-out L0 of our SAE by seed, at which penalised SAEs of others aim; that of ours is added.
    """
    architecture = job.point.architecture
    cache = open_residuals(results / layout.RESIDUALS, "train", job.layer)
    heldout = open_residuals(results / layout.RESIDUALS, "heldout", job.layer)
    unigrams = load_unigrams(results / layout.UNIGRAMS.format(layer=job.layer))
    window = dead_window(architecture, settings)
    row: dict[str, Any] = {"architecture": architecture, "tool": name, "dead_window": window, "seeds": []}
    for seed in range(seeds):
        of_seed = Settings(job.point, settings.training, cache, unigrams, window, seed, l0_of_ours.get(seed))
        batches = training_batches(cache, settings.training, seed + 1)
        trained, seconds = train(TOOLS[architecture][name], of_seed, batches)
        found = measure(trained, heldout, cache.scale, of_seed.n_features)
        row["path"] = trained.path
        row["seeds"].append({"seed": seed} | found._asdict() | {"seconds": seconds})
        if name == OURS:
            l0_of_ours[seed] = found.l0
    return row | {key: statistics.mean(one[key] for one in row["seeds"]) for key in (*Quality._fields, "seconds")}


def dead_window(architecture: str, settings: config.Config) -> int:
    """Tokens without firing after which a feature is dead, for every tool."""
    return auxk.DEAD_AFTER if architecture == "auxk" else settings.evaluation.dead_window


def measure_architecture(
    job: Job, tools: list[str] | None, seeds: int, results: Path, settings: config.Config
) -> Iterator[dict[str, Any]]:
    """A row for each of the tools that have the architecture of a job, all by default; a failed one has its error."""
    of_architecture = TOOLS[job.point.architecture]
    chosen = [name for name in of_architecture if tools is None or name in tools]
    l0_of_ours = dict[int, float]()
    for name in chosen:
        try:
            row = measure_tool(name, seeds, job, results, settings, l0_of_ours)
        except Exception as error:  # any failure of a tool is its result
            failed = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            row = {"architecture": job.point.architecture, "tool": name, "error": failed}
        print(f"\n{show([row])}", flush=True)
        yield row


def show(rows: list[dict[str, Any]]) -> str:
    """The rows as a table, and the failures."""
    lines = [
        {
            "architecture": row["architecture"],
            "trained by": row["tool"],
            "NMSE": f"{row['nmse']:.4f}",
            "by seed": ", ".join(f"{one['nmse']:.4f}" for one in row["seeds"]),
            "L0": f"{row['l0']:.1f}",
            "dead": f"{row['dead']:.1%}",
            "time [s]": f"{row['seconds']:.0f}",
            "what runs": row["path"],
        }
        for row in rows
        if "error" not in row
    ]
    errors = [f"{row['architecture']}, {row['tool']} failed: {row['error']}" for row in rows if "error" in row]
    return "\n".join([*([table(lines)] if lines else []), *errors])


def baselines(settings: config.Config) -> dict[str, Job]:
    """The headline baseline at the middle layer, and those that differ from it by the architecture alone; seeds are not used.

    Of several penalties the middle one is taken. Architectures that no other tool has are left out.

    Raises:
        ValueError: there is none.
    """
    layers = sorted({job.layer for job in settings.jobs("headline")})
    wanted = layers[len(layers) // 2], settings.headline().baseline
    headline = [job for job in settings.jobs("headline") if (job.layer, job.point.id) == wanted][:1]
    found: dict[str, list[Job]] = {}
    for job in (*headline, *settings.jobs()):
        if job.point.architecture in TOOLS and any(is_alike(job, other) for other in headline):
            found.setdefault(job.point.architecture, []).append(job)
    if not found:
        raise ValueError(f"sweep: no baseline beside the headline's has an architecture of {', '.join(TOOLS)}")
    by_sparsity = {name: sorted(jobs, key=lambda job: job.point.penalty) for name, jobs in found.items()}
    return {name: by_sparsity[name][len(by_sparsity[name]) // 2] for name in TOOLS if name in by_sparsity}


def is_alike(job: Job, headline: Job) -> bool:
    """Whether an SAE differs from another only by its seed, its architecture and its penalty."""
    alike = {"architecture": headline.point.architecture, "k": headline.point.k, "l1": None, "l0_penalty": None}
    return (
        job.layer == headline.layer
        and job.point.k in (None, headline.point.k)
        and job.point.model_copy(update=alike) == headline.point
    )


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=layout.EMBEDDED)
    parser.add_argument("--config", type=Path, default=Path("config/config.yaml"))
    parser.add_argument("--seeds", type=int, default=1, help="how many; each trains every tool once more")
    parser.add_argument("--architecture", choices=TOOLS, action="append", help="default: all of the sweep")
    tools = dict.fromkeys(name for of_architecture in TOOLS.values() for name in of_architecture)
    parser.add_argument("--tool", choices=tools, action="append", help="default: all")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--output", type=Path, default=layout.BENCH)
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    settings = config.load(arguments.config)
    jobs = baselines(settings)
    missing = [name for name in arguments.architecture or () if name not in jobs]
    if missing:
        raise ValueError(f"sweep: it has no baseline like the headline's of {', '.join(missing)}")
    machine, training = describe_machine(), settings.training
    (layer,) = {job.layer for job in jobs.values()}
    print(
        f"{in_words(machine)}\nlayer {layer}, {training.tokens} tokens in batches of {training.batch_size}, "
        f"learning rate {training.lr:g} to {training.lr_end:g}",
        flush=True,
    )
    cache = open_residuals(arguments.results / layout.RESIDUALS, "train", layer)
    headline = settings.headline().baseline
    point = next(job.point for job in settings.jobs("headline") if job.point.id == headline)
    described = {
        "layer": layer,
        "k": point.k,
        "n_features": point.n_features(cache.d_model),
        "training": training.model_dump(mode="json", include={"tokens", "batch_size", "lr", "lr_end", "buffer_tokens"}),
        "residuals": cache.fingerprints[cache.layer],
    }
    rows: list[dict[str, Any]] = []
    for name in arguments.architecture or jobs:
        for row in measure_architecture(jobs[name], arguments.tool, arguments.seeds, arguments.results, settings):
            rows.append(row)
            # After each, so that what was trained is not lost.
            write_json(arguments.output / "quality.json", {"machine": machine, "settings": described, "tools": rows})
    print(f"\n{show(rows)}")


if __name__ == "__main__":
    main()
