"""A small benchmark of fixed size with a history, so that a slow change is seen: training steps against the encoder's product.

    python benchmarks/speed.py [--rounds 20] [--threads N] [--history docs/speed.csv] [--keep]

Takes less than a minute. Each ratio is the median over rounds of step / product, which runs just before each step. It is shown beside the
last one in the history of the same processor, number of threads and PyTorch. `--keep` adds it there.
"""

import csv
from pathlib import Path
from typing import Any

import torch
from measure import arguments_of_steps, compare, describe_machine, table
from steps import Contender, Shape, make_batches, ours, product

from tsae.store.manifest import code_in_git

ROOT = Path(__file__).parents[1]
HISTORY = ROOT / "docs/speed.csv"
COLUMNS = ["commit", "cpu", "threads", "torch", "step", "ratio", "ratio_low", "ratio_high", "ms"]
SHAPES = [Shape(512, 576, 2304, 32), Shape(2048, 576, 9216, 32)]
WARM_UPS = 5


def measure(shape: Shape, rounds: int) -> dict[str, dict[str, float]]:
    """The steps of a shape, without a table and with a learned one."""
    batches = make_batches(shape)
    steps: dict[str, Contender] = {str(shape): ours(shape), f"{shape}, learned table": ours(shape, tokenized=True)}
    reference = product(shape).step
    for contender in steps.values():
        for turn in range(WARM_UPS):
            contender.step(batches[turn % len(batches)])
    timings = compare({name: of.step for name, of in steps.items()}, reference, batches, rounds, shape.repeats)
    return {name: timing.summary(shape.n_tokens) for name, timing in timings.items()}


def read_history(path: Path) -> list[dict[str, str]]:
    """The rows on record, oldest first."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def compared(row: dict[str, Any], history: list[dict[str, str]]) -> dict[str, str]:
    """A line about a step beside the last one on record of the same kind."""
    alike = [old for old in history if all(old[name] == str(row[name]) for name in ("cpu", "threads", "torch", "step"))]
    line = {"step": row["step"], "/ product": f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"}
    if not alike:
        return line | {"on record": "-", "verdict": ""}
    last = {name: float(alike[-1][name]) for name in ("ratio", "ratio_low", "ratio_high")}
    verdict = "" if row["ratio"] <= last["ratio_high"] else "SLOWER than all of its rounds on record"
    on_record = f"{last['ratio']:.2f} ({last['ratio_low']:.2f} to {last['ratio_high']:.2f}), {alike[-1]['commit']}"
    return line | {"on record": on_record, "verdict": verdict}


def commit() -> str:
    """The commit of the code, with a + behind it if files differ from it."""
    code = code_in_git()
    return (code["commit"] or "unknown")[:10] + "+" * bool(code["modified"])


def main() -> None:
    """Measure, compare, and keep if asked."""
    parser = arguments_of_steps(__doc__)
    parser.set_defaults(rounds=20)
    parser.add_argument("--history", type=Path, default=HISTORY)
    parser.add_argument("--keep", action="store_true", help="add the numbers to the history")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine, history = describe_machine(), read_history(arguments.history)
    about = {"commit": commit(), "cpu": machine["cpu"], "threads": machine["threads"], "torch": machine["torch"]}
    rows = [
        about | {"step": name} | {key: round(value, 4) for key, value in timing.items() if key in COLUMNS}
        for shape in SHAPES
        for name, timing in measure(shape, arguments.rounds).items()
    ]
    print(f"{about['cpu']}, {about['threads']} threads, load {machine['load']:.1f}, torch {about['torch']}")
    print(table(compared(row, history) for row in rows))
    if arguments.keep:
        with arguments.history.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if not history:
                writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
