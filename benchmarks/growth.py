"""How the training step grows with the batch, the features and k, against plain PyTorch, other tools and the encoder's product.

    python benchmarks/growth.py [--rounds 10] [--threads N] [--output results/bench]

One size changes at a time; the others stay as in `BASE`. Contenders take turns, and times are medians over rounds. An exponent
p means that the time grows as size^p between the two largest sizes. A tool that is missing or fails is left out.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import peers
import torch
from measure import arguments_of_steps, compare, describe_machine, in_words, table
from steps import LABELS, REFERENCE, Contender, Shape, dense, make_batches, ours, product

from tsae.store.files import write_json

BASE = Shape(2048, 576, 4608, 32)
SIZES = {
    "n_tokens": [256, 512, 1024, 2048, 4096, 8192],
    "n_features": [1152, 2304, 4608, 9216, 18432],
    "k": [8, 16, 32, 64, 128, 256],
}
CONTENDERS: dict[str, Callable[[Shape], Contender]] = {
    REFERENCE: product,
    "dense PyTorch": dense,
    "SAELens, sparse": partial(peers.sae_lens, sparse=True),
    "sparsify, fused Adam": partial(peers.sparsify, optimizer="fused adam"),
    "ours": ours,
    "ours, learned table": partial(ours, tokenized=True),
}
WARM_UPS = 2


def measure_shape(shape: Shape, rounds: int) -> dict[str, dict[str, float]]:
    """Time of a step of every contender that runs."""
    batches = make_batches(shape)
    steps = {}
    for name, build in CONTENDERS.items():
        try:
            step = build(shape).step
            for turn in range(WARM_UPS):
                step(batches[turn])
        except Exception as error:  # any failure of a tool is its result
            print(f"{name} failed at {shape}: {type(error).__name__}: {error}", flush=True)
        else:
            steps[name] = step
    timings = compare(steps, steps[REFERENCE], batches, rounds, shape.repeats)
    return {name: timing.summary(shape.n_tokens) for name, timing in timings.items()}


def measure(rounds: int) -> list[dict[str, Any]]:
    """One row for each size and contender; `BASE` is measured once."""
    measured: dict[Shape, dict[str, dict[str, float]]] = {}
    rows = []
    for axis, sizes in SIZES.items():
        for size in sizes:
            shape = BASE._replace(**{axis: size})
            if shape not in measured:
                measured[shape] = measure_shape(shape, rounds)
            for name, summary in measured[shape].items():
                rows.append({"axis": axis, **shape._asdict(), "contender": name, **summary})
    return rows


def chosen(rows: list[dict[str, Any]], axis: str, name: str) -> list[tuple[int, float]]:
    """Size and time [ms] of a contender along an axis."""
    return [(row[axis], row["ms"]) for row in rows if row["axis"] == axis and row["contender"] == name]


def exponent(points: list[tuple[int, float]]) -> float:
    """Slope of the logarithms between the two largest sizes."""
    (size, time), (larger, longer) = sorted(points)[-2:]
    return math.log(longer / time) / math.log(larger / size)


def show(rows: list[dict[str, Any]]) -> str:
    """A table per axis: times, and exponents in the last column."""
    tables = []
    for axis in SIZES:
        lines = []
        for name in CONTENDERS:
            points = chosen(rows, axis, name)
            times = dict.fromkeys(map(str, SIZES[axis]), "failed") | {f"{size}": f"{ms:.1f}" for size, ms in points}
            grows = f"{exponent(points):.2f}" if len(points) > 1 else ""
            lines.append({f"step [ms] by {LABELS[axis]}": name} | times | {"exponent": grows})
        tables.append(table(lines))
    return "\n\n".join(tables)


def main() -> None:
    """Measure and print."""
    arguments = arguments_of_steps(__doc__).parse_args()
    torch.set_num_threads(arguments.threads)
    machine = describe_machine()
    print(f"{in_words(machine)}; {arguments.rounds} rounds; otherwise {BASE}\n", flush=True)
    rows = measure(arguments.rounds)
    print(show(rows))
    write_json(arguments.output / "growth.json", {"machine": machine, "rounds": arguments.rounds, "rows": rows})


if __name__ == "__main__":
    main()
