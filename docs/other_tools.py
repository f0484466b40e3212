"""SAEs of this project beside those that other tools train, as benchmarks/quality.py measured them."""

from collections.abc import Callable, Mapping
from typing import Any

from performance import measured

from tsae.profile.architectures import label_of
from tsae.store.markdown import markdown_table

MOST_L0 = 1.02  # an SAE whose L0 is this many times as large as another's is no longer compared at equal L0


def quality() -> str:
    """The SAEs of every tool, of the architectures of the embedded profile."""
    return compared(measured("quality"))


def compared(bench: Mapping[str, Any]) -> str:
    """How well the SAEs of every tool reconstruct, and ours beside the best of the others, architecture by architecture.

    Args:
        bench: what benchmarks/quality.py wrote.
    """
    settings, training = bench["settings"], bench["settings"]["training"]
    by_architecture: dict[str, list[dict[str, Any]]] = {}
    for row in bench["tools"]:
        by_architecture.setdefault(row.get("architecture", "topk"), []).append(row)
    parts = []
    for architecture, rows in by_architecture.items():
        done = [row for row in rows if "error" not in row]
        failed = [f"{row['tool']} failed: {row['error']}" for row in rows if "error" in row]
        tables = [quality_table(done)] if done else []
        parts += [f"**{label_of(architecture)}**", *tables, *failed, beside_the_best(done)]
    setting = (
        f"Layer {settings['layer']}, {settings['n_features']} features, k {settings['k']} where k sets the sparsity, "
        f"{training['tokens']} tokens in batches of {training['batch_size']}, learning rate {training['lr']:g} to "
        f"{training['lr_end']:g}:"
    )
    return "\n\n".join([setting, *parts])


def quality_table(rows: list[dict[str, Any]]) -> str:
    """SAEs of one architecture, the best first."""
    return markdown_table(
        [
            {
                "trained by": f"**{row['tool']}**" if row["tool"] == "ours" else row["tool"],
                "held-out NMSE": f"{row['nmse']:.4f}",
                "by seed": ", ".join(f"{one['nmse']:.4f}" for one in row["seeds"]),
                "held-out L0": f"{row['l0']:.1f}" if "l0" in row else "",
                "dead, held-out": f"{row['dead']:.1%}",
                "training [s]": f"{row['seconds']:.0f}",
                "what runs": row["path"],
            }
            for row in sorted(rows, key=lambda row: row["nmse"])
        ]
    )


def beside_the_best(rows: list[dict[str, Any]]) -> str:
    """Our NMSE relative to that of the best other tool with no more active features, seed by seed, in a sentence."""
    ours = next((row for row in rows if row["tool"] == "ours"), None)
    others = [row for row in rows if not row["tool"].startswith("ours")]
    if ours is None or not others:
        return "Ours and others were not measured together."
    as_sparse = [row for row in others if row.get("l0", 0) <= MOST_L0 * ours.get("l0", 0)]
    best = min(as_sparse or others, key=lambda row: row["nmse"])
    nmse = {one["seed"]: one["nmse"] for one in ours["seeds"]}
    relative = [nmse[one["seed"]] / one["nmse"] - 1 for one in best["seeds"] if one["seed"] in nmse]
    mean = sum(relative) / len(relative)
    over_seeds = f"{min(relative):+.1%} to {max(relative):+.1%} over {len(relative)} seeds"
    by_seed = "one seed" if len(relative) == 1 else over_seeds
    sentence = (
        f"The NMSE of ours is {abs(mean):.1%} {'above' if mean > 0 else 'below'} that of the best other, {best['tool']} "
        f"({by_seed})."
    )
    if "l0" not in ours:
        return sentence
    return f"{sentence} L0: {ours['l0']:.1f} of ours, {best['l0']:.1f} of {best['tool']}."


BLOCKS: tuple[Callable[[], str], ...] = (quality,)
