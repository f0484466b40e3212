"""How much results depend on rounding: other instructions, another number of threads.

    python benchmarks/rounding.py [--results results/embedded] [--config config/config.yaml] [--output results/bench]

Works on the files of a finished run. For each way, new processes compute held-out residuals of the middle layer and train its
tokenized headline SAE, which are compared with the run's. `ATEN_CPU_CAPABILITY` disables PyTorch's wider instructions, as on an
older processor, and with them oneDNN in products.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import describe_machine, table
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tsae.profile import config
from tsae.profile.config import Config, to_json
from tsae.profile.sweep import Job
from tsae.residuals.read import open_residuals
from tsae.sae.checkpoint import load
from tsae.store import layout
from tsae.store.files import sha256, write_json
from tsae.store.tensors import load_tensors

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
WAYS: dict[str, dict[str, str]] = {
    "the same again": dict.fromkeys(THREADS, "1"),
    "two threads": dict.fromkeys(THREADS, "2"),
    "instructions of 256 bits": dict.fromkeys(THREADS, "1") | {"ATEN_CPU_CAPABILITY": "avx2"},
}
SAME = 0.99  # cosine similarity from which two decoder rows are the same feature
RESIDUALS = """
import sys
from pathlib import Path
from tsae.store.tensors import save_tensors
from tsae.model.language_model import load_model
from tsae.residuals.read import open_residuals
from tsae.residuals.shards import residuals_of
model, index, layer, compatibility_mode, output = sys.argv[1:]
cache = open_residuals(Path(index), "heldout", int(layer))
ids = cache.shard(0).tokens.view(-1, cache.n_ctx)
found = residuals_of(load_model(Path(model), compatibility_mode == "True"), ids, int(layer), cache.batch_sequences)
save_tensors(Path(output), {"residuals": found})
"""


def run(environment: dict[str, str], *command: object) -> None:
    """Run Python.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    subprocess.run([sys.executable, *map(str, command)], env=os.environ | environment, check=True)


def relative(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference / norm of the expected tensor."""
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def measure(name: str, results: Path, settings: Config, job: Job, folder: Path) -> dict[str, Any]:
    """Compare one way with the run."""
    index, residuals = results / layout.RESIDUALS, folder / "residuals.safetensors"
    environment = WAYS[name]
    mode = settings.model.compatibility_mode
    run(environment, "-c", RESIDUALS, results / layout.MODEL, index, job.layer, mode, residuals)
    run(
        environment,
        *("-m", "tsae", "--log", folder / "log", "train-sae", "--job", to_json(job)),
        *("--settings", to_json(settings.training, exclude=["save_minutes"]), "--residuals", index),
        *("--unigrams", results / layout.UNIGRAMS.format(layer=job.layer), "--folder", folder / "sae"),
    )
    shard = open_residuals(index, "heldout", job.layer).shard(0)
    found, expected = load(folder / "sae"), load(results / layout.SAE.format(job=job.id))
    nmse, nmse_expected = (sae.metadata["final"]["heldout_nmse"] for sae in (found, expected))
    parameters = [path / "sae.safetensors" for path in (folder / "sae", results / layout.SAE.format(job=job.id))]
    return {
        "way": name,
        "same_bytes": sha256(parameters[0]) == sha256(parameters[1]),
        "residuals": relative(load_tensors(residuals)["residuals"][shard.kept], shard.residuals[shard.kept]),
        "W_dec": relative(found.W_dec, expected.W_dec),
        "same_features": (cosine_similarity(found.W_dec, expected.W_dec) >= SAME).double().mean().item(),
        "nmse": nmse / nmse_expected - 1,
    }


def seeds(results: Path, jobs: list[Job]) -> dict[str, Any]:
    """The largest difference to SAEs of other seeds, on the same held-out tokens."""
    first, *others = (load(results / layout.SAE.format(job=job.id)) for job in jobs)
    nmse, *nmses = (sae.metadata["final"]["heldout_nmse"] for sae in (first, *others))
    return {
        "way": "another seed",
        "same_bytes": False,
        "residuals": None,
        "W_dec": max(relative(other.W_dec, first.W_dec) for other in others),
        "same_features": max(
            (cosine_similarity(other.W_dec, first.W_dec) >= SAME).double().mean().item() for other in others
        ),
        "nmse": max((other / nmse - 1 for other in nmses), key=abs),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=layout.EMBEDDED)
    parser.add_argument("--config", type=Path, default=Path("config/config.yaml"))
    parser.add_argument("--output", type=Path, default=layout.BENCH)
    arguments = parser.parse_args()
    if not (arguments.results / layout.MANIFEST).exists():
        print(f"{arguments.results}: there is no finished run, so rounding is not measured; run: make reproduce")
        return
    settings = config.load(arguments.config)
    tokenized = settings.headline()[1]
    layers = sorted({job.layer for job in settings.jobs("headline")})
    jobs = [
        job for job in settings.jobs("headline") if job.layer == layers[len(layers) // 2] and job.point.id == tokenized
    ]
    rows = []
    for name in WAYS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(name, arguments.results, settings, jobs[0], Path(folder)))
    if len(jobs) > 1:
        rows.append(seeds(arguments.results, jobs))
    print(table({key: str(value) for key, value in row.items()} for row in rows))
    write_json(
        arguments.output / "rounding.json", {"machine": describe_machine(), "layer": jobs[0].layer, "rows": rows}
    )


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
