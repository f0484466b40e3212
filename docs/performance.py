"""What `make bench` and `make test-faults` measured."""

import functools
import json
from collections.abc import Callable
from typing import Any

from run import ROOT, NotMeasuredError, size_on_disk

from tsae.store import layout
from tsae.store.markdown import markdown_table

BENCH = ROOT / layout.BENCH
# Stages whose processes load the language model; the others import less than training does or about as much.
LOADS_MODEL = {"cache_residuals", "unigrams", "ablate", "evaluate", "measure_curve"}


@functools.cache
def measured(name: str) -> dict[str, Any]:
    """A file of `make bench`.

    Raises:
        NotMeasuredError: there is none.
    """
    if not (BENCH / f"{name}.json").is_file():
        raise NotMeasuredError(layout.BENCH / f"{name}.json")
    content: dict[str, Any] = json.loads((BENCH / f"{name}.json").read_bytes())
    return content


def in_words(shape: dict[str, int]) -> str:
    """The sizes of a step."""
    return f"batch {shape['n_tokens']}, d {shape['d_model']}, {shape['n_features']} features, k {shape['k']}"


def training_step() -> str:
    """Every contender against the encoder's product, a table per shape."""
    parts = []
    for of_shape in measured("training_step")["shapes"]:
        shape = of_shape["shape"]
        rows: list[dict[str, object]] = [
            {
                "step": f"**{row['contender']}**" if row["contender"] == "ours" else row["contender"],
                "time [ms]": f"{row['ms']:.1f}",
                "/ product (range)": f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})",
                "tokens/s": f"{row['tokens_per_s']:.0f}",
                "peak memory [MB]": f"{row['peak_mb']:.0f}",
                "what runs": row["path"],
            }
            for row in of_shape["contenders"]
            if "error" not in row
        ]
        failed = [f"{row['contender']} failed: {row['error']}" for row in of_shape["contenders"] if "error" in row]
        parts.append("\n\n".join([f"**{in_words(shape)}**", markdown_table(rows), *failed]))
    return "\n\n".join(parts)


def training_step_summary() -> str:
    """Ours beside the fastest other tool, in a sentence per shape."""
    lines = []
    for of_shape in measured("training_step")["shapes"]:
        shape = of_shape["shape"]
        rows = {row["contender"]: row for row in of_shape["contenders"] if "error" not in row}
        ours = rows.pop("ours")
        peers = {name: row for name, row in rows.items() if name != "encoder product" and not name.startswith("ours")}
        name, fastest = min(peers.items(), key=lambda item: item[1]["ratio"])
        lines.append(
            f"- batch {shape['n_tokens']}, {shape['n_features']} features of width {shape['d_model']}, k {shape['k']}: "
            f"{ours['ratio']:.2f} times the product, {ours['tokens_per_s']:.0f} tokens/s. The fastest other, {name}, takes "
            f"{fastest['ratio']:.2f} times the product, {fastest['ratio'] / ours['ratio']:.2f} times as long as ours"
        )
    return "\n".join(lines)


def kernel_ways() -> str:
    """The ways to compute each part of a step."""
    parts = []
    for of_shape in measured("kernels")["shapes"]:
        shape = of_shape["shape"]
        rows: list[dict[str, object]] = [
            {
                "part of the step": row["part"],
                "way": row["way"],
                "time [ms]": "failed" if "error" in row else f"{row['ms']:.2f}",
                "/ product": row["error"] if "error" in row else f"{row['ratio']:.3f}",
            }
            for row in of_shape["ways"]
        ]
        parts.append(f"**{in_words(shape)}**\n\n{markdown_table(rows)}")
    return "\n\n".join(parts)


def growth() -> str:
    """Time of a step along each axis."""
    labels = {"n_tokens": "tokens in a batch", "n_features": "features", "k": "k"}
    rows = measured("growth")["rows"]
    tables = []
    for axis, label in labels.items():
        contenders = list(dict.fromkeys(row["contender"] for row in rows))
        sizes = dict.fromkeys((str(row[axis]) for row in rows if row["axis"] == axis), "failed")
        lines: list[dict[str, object]] = [
            {f"step [ms] by {label}": name}
            | sizes
            | {str(row[axis]): f"{row['ms']:.1f}" for row in rows if (row["axis"], row["contender"]) == (axis, name)}
            for name in contenders
        ]
        tables.append(markdown_table(lines))
    return "\n\n".join(tables)


def processes() -> str:
    """Threads and streams."""
    bench = measured("processes")
    rows: list[dict[str, object]] = [
        {
            "stage": f"`{row['stage']}`",
            f"{row['jobs']} jobs of one thread [s]": f"{row['one_thread_each_s']:.1f}",
            "one after the other on all threads [s]": f"{row['all_threads_in_turn_s']:.1f}",
            "in turn / beside": f"{row['ratio']:.2f}",
        }
        for row in bench["threads"]
    ]
    sharing = bench["sharing"]
    return (
        f"{markdown_table(rows)}\n\n{sharing['saes']:.0f} SAEs of one layer and seed, {sharing['steps']:.0f} steps each: "
        f"{sharing['apart_s']:.1f} s in a process each, {sharing['together_s']:.1f} s with two SAEs in a process on one stream "
        f"(ratio {sharing['ratio']:.2f})."
    )


def caching() -> str:
    """Residual caching against the bare model."""
    row = measured("residual_caching")
    return (
        f"{row['caching_tokens_per_s']:.0f} tokens/s on {row['threads']} threads, {row['bare_tokens_per_s']:.0f} in the bare model "
        f"up to the same layer: {row['ratio']:.2f} times its speed (median of {row['rounds']} pairs)."
    )


def stages() -> str:
    """Time and memory of every stage, and how much of the whole processes spend on starting."""
    bench = measured("stages")
    rows: list[dict[str, object]] = [
        {
            "stage": f"`{row['stage']}`",
            "jobs": row["jobs"],
            "a job [s]": f"{row['wall_s_per_job']:.1f}",
            "all [s]": f"{row['wall_s']:.0f}",
            "share": f"{row['share']:.1%}",
            "peak memory of a job [MB]": f"{row['peak_rss_mb']:.0f}",
            "tokens/s of a job": "" if row["tokens_per_s"] is None else f"{row['tokens_per_s']:.0f}",
        }
        for row in bench["stages"]
    ]
    starts, run, cores = measured("processes")["starts"], bench["run"], bench["machine"]["cores"]
    starting = sum(
        row["jobs"] * starts["evaluation" if row["stage"] in LOADS_MODEL else "training"] for row in bench["stages"]
    )
    return (
        f"{markdown_table(rows)}\n\n"
        f"The environment took {run['environment_s'] / 60:.1f} minutes to set up, the DAG {run['dag_s'] / 60:.1f} minutes from its "
        f"first job to its last file: **{(run['environment_s'] + run['dag_s']) / 60:.0f} minutes** in all. A process of training starts "
        f"in {starts['training']:.1f} s, one that loads the language model in {starts['evaluation']:.1f} s; all starts together are "
        f"{starting / cores / run['dag_s']:.1%} of the DAG's time on {cores} cores. The results take {size_on_disk() / 1e9:.1f} GB of disk."
    )


def saes() -> str:
    """Training and evaluation by size, from the run."""
    rows: list[dict[str, object]] = [
        {
            "SAE": f"`{row['point']}`",
            "features": f"{row['n_features']:.0f}",
            "L0": f"{row['l0']:.0f}",
            "training [s]": f"{row['train_s']:.0f}",
            "tokens/s": f"{row['train_tokens_per_s']:.0f}",
            "evaluation [s]": "" if row["evaluate_s"] is None else f"{row['evaluate_s']:.0f}",
        }
        for row in measured("stages")["saes"]
    ]
    return markdown_table(rows)


def rounding() -> str:
    """How much results differ where a machine rounds otherwise."""
    rows: list[dict[str, object]] = [
        {
            "way": row["way"],
            "same bytes": "yes" if row["same_bytes"] else "no",
            "residuals": "" if row["residuals"] is None else f"{row['residuals']:.1e}",
            "W_dec": f"{row['W_dec']:.1e}",
            "features that are the same": f"{row['same_features']:.1%}",
            "held-out NMSE": f"{row['nmse']:+.2%}",
        }
        for row in measured("rounding")["rows"]
    ]
    return markdown_table(rows)


def benchmark_machine() -> str:
    """Where `make bench` ran."""
    about = measured("machine")
    return f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads; python {about['python']}, torch {about['torch']}."


def faults() -> str:
    """What the fault suite did."""
    path = ROOT / "results/faults.json"
    if not path.is_file():
        raise NotMeasuredError(path.relative_to(ROOT))
    rows = [
        {
            "fault": row["fault"],
            "tried": row["tried"],
            "detected": "survived" if row["detected"] is None else row["detected"],
            "work lost": row["work_lost"],
            "outputs equal": "" if row["outputs_equal"] is None else row["outputs_equal"],
        }
        for row in json.loads(path.read_bytes())
    ]
    return markdown_table(rows)


BLOCKS: tuple[Callable[[], str], ...] = (
    benchmark_machine,
    training_step,
    training_step_summary,
    kernel_ways,
    growth,
    processes,
    rounding,
    caching,
    stages,
    saes,
    faults,
)
