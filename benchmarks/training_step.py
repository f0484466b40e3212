"""The training step of this project, of its peers and of plain PyTorch against the encoder's product, A B A B in one process.

    python benchmarks/training_step.py [--rounds 10] [--threads N] [--shape N,d,F,k ...]
        [--contender NAME ...] [--output results/bench]

A ratio is the median over rounds of step / encoder product, which runs just before each step. All start from the same weights,
see the same batches, and must agree in their reconstructions. Memory is measured in a process per tool: the peak of resident
memory over three steps less what was resident before the SAE was built, so it counts parameters, optimizer state, gradients and
temporaries, but not imports and batches. The machine must be idle: another process slows steps of small parallel parts
(dictionary_learning, SAELens) several times more than the product.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import peers
import torch
from measure import (
    arguments_of_steps,
    compare,
    describe_machine,
    in_words,
    peak_memory,
    resident_memory,
    settle_memory,
    table,
)
from steps import REFERENCE, Contender, Shape, dense, make_batches, our_product, ours, product
from torch import Tensor

from tsae.store.files import write_json
from tsae.training.batches import Batch

SHAPES = [Shape(4096, 576, 9216, 32), Shape(4096, 768, 12288, 30), Shape(512, 576, 2304, 32)]
CONTENDERS: dict[str, Callable[[Shape], Contender]] = {
    REFERENCE: product,
    "ours, the product alone": our_product,
    "ours": ours,
    "ours, with a learned table": partial(ours, tokenized=True),
    "sparsify": partial(peers.sparsify, optimizer="signum"),
    "sparsify, Adam": partial(peers.sparsify, optimizer="adam"),
    "sparsify, fused Adam": partial(peers.sparsify, optimizer="fused adam"),
    "dictionary_learning": peers.dictionary_learning,
    "SAELens": partial(peers.sae_lens, sparse=False),
    "SAELens, sparse": partial(peers.sae_lens, sparse=True),
    "dense PyTorch": dense,
}
WARM_UPS = 2
MEMORY_STEPS = 3
SMALL = Shape(8, 8, 16, 2)
# Rounding may choose another feature for a token with two nearly equal pre-activations.
SAME = 1e-4
MOST = 0.995


def check_same(name: str, x_hat: Tensor, expected: Tensor) -> None:
    """Check that a contender computes what the others do.

    Raises:
        ValueError: reconstructions of more than a few tokens differ.
    """
    errors = (x_hat - expected).norm(dim=1) / expected.norm(dim=1)
    share = (errors < SAME).double().mean().item()
    if share < MOST:
        raise ValueError(f"{name} reconstructs only {share:.1%} of tokens as plain PyTorch does: not the same SAE")


def build(name: str, shape: Shape, batches: list[Batch], expected: Tensor) -> Contender:
    """A contender that is checked and warmed up."""
    contender = CONTENDERS[name](shape)
    if contender.reconstruct is not None:
        with torch.no_grad():
            check_same(name, contender.reconstruct(batches[0].residuals), expected)
    for turn in range(WARM_UPS):
        contender.step(batches[turn % len(batches)])
    return contender


def measure_memory(name: str, shape: Shape) -> dict[str, float]:
    """Memory of a contender; this process must have done nothing else."""
    batches = make_batches(shape)
    CONTENDERS[name](SMALL).step(make_batches(SMALL)[0])  # imports, and what is made once
    settle_memory()
    before = resident_memory()
    contender = CONTENDERS[name](shape)
    for batch in batches[:MEMORY_STEPS]:
        contender.step(batch)
    return {"peak_mb": peak_memory() - before, "peak_of_process_mb": peak_memory()}


def memory_of(name: str, shape: Shape, threads: int) -> dict[str, float]:
    """Memory of a contender, measured in its own process.

    Raises:
        RuntimeError: the process failed.
    """
    command = [sys.executable, __file__, "--memory-of", name, "--shape", ",".join(map(str, shape))]
    done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise RuntimeError(f"the process that measures memory ended with {done.returncode}: {said[-1]}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure_shape(names: list[str], shape: Shape, rounds: int, threads: int) -> list[dict[str, Any]]:
    """One row for the reference and each named contender; a failed one has its error in place of numbers."""
    batches = make_batches(shape)
    reconstruct = dense(shape).reconstruct
    assert reconstruct is not None
    with torch.no_grad():
        expected = reconstruct(batches[0].residuals)
    built: dict[str, Contender] = {}
    failed: list[dict[str, Any]] = []
    for name in dict.fromkeys([REFERENCE, *names]):
        try:
            built[name] = build(name, shape, batches, expected)
        except Exception as error:  # any failure of a tool is its result
            failed.append({"contender": name, "error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"})
    steps = {name: contender.step for name, contender in built.items()}
    timings = compare(steps, steps[REFERENCE], batches, rounds, shape.repeats)
    paths = {name: contender.path for name, contender in built.items()}
    built.clear()
    steps.clear()
    settle_memory()
    rows: list[dict[str, Any]] = []
    for name, timing in timings.items():
        row: dict[str, Any] = {"contender": name, "path": paths[name]} | timing.summary(shape.n_tokens)
        try:
            row |= memory_of(name, shape, threads)
        except RuntimeError as error:
            row["memory_error"] = str(error)
        rows.append(row)
    return rows + failed


def show(rows: list[dict[str, Any]]) -> str:
    """The rows of a shape as a table, and what failed."""
    lines = [
        {
            "step": row["contender"],
            "time [ms]": f"{row['ms']:.1f}",
            "/ product": f"{row['ratio']:.2f}",
            "range": f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}",
            "tokens/s": f"{row['tokens_per_s']:.0f}",
            "peak memory [MB]": f"{row['peak_mb']:.0f}" if "peak_mb" in row else "?",
            "what runs": row["path"],
        }
        for row in rows
        if "error" not in row
    ]
    errors = [f"{row['contender']} failed: {row['error']}" for row in rows if "error" in row]
    unknown = [f"memory of {row['contender']}: {row['memory_error']}" for row in rows if "memory_error" in row]
    return "\n".join([table(lines), *errors, *unknown])


def main() -> None:
    """Run the comparison."""
    parser = arguments_of_steps(__doc__)
    parser.add_argument("--shape", type=lambda text: Shape(*map(int, text.split(","))), action="append")
    parser.add_argument("--contender", choices=CONTENDERS, action="append", help="default: all")
    parser.add_argument("--memory-of", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shapes = arguments.shape or SHAPES
    if arguments.memory_of:
        print(json.dumps(measure_memory(arguments.memory_of, shapes[0])))
        return

    machine = describe_machine()
    print(f"{in_words(machine)}; {arguments.rounds} rounds")
    measured = []
    for shape in shapes:
        rows = measure_shape(arguments.contender or list(CONTENDERS), shape, arguments.rounds, arguments.threads)
        print(f"\n{shape}\n\n{show(rows)}", flush=True)
        measured.append({"shape": shape._asdict(), "contenders": rows})
    write_json(arguments.output / "machine.json", machine)
    write_json(
        arguments.output / "training_step.json",
        {"machine": machine, "rounds": arguments.rounds, "shapes": measured},
    )


if __name__ == "__main__":
    main()
