"""Draw what the benchmarks of a step measured: how its time grows, and how it compares with other tools'.

    python benchmarks/pictures.py [--output results/bench]

It reads growth.json and training_step.json, as far as they are there. The benchmarks themselves run in the environment of other
tools, which cannot draw.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from steps import LABELS, REFERENCE

from tsae.figures import style
from tsae.figures.labels import key, label_ends, legend_above
from tsae.profile.families import BASELINE, LEARNED
from tsae.store import layout

OURS = "ours"
# In the order of the growth's table; what a file lacks is left out.
GROWTH: dict[str, dict[str, Any]] = {
    REFERENCE: {"color": "black", "ls": ":"},
    "dense PyTorch": {"color": "0.6", "marker": "v", "ls": "--"},
    "SAELens, sparse": {"color": "0.45", "marker": "s", "ls": "-."},
    "sparsify, fused Adam": {"color": "#0F8F6B", "marker": "^", "ls": "--"},
    OURS: {"color": style.COLOURS[BASELINE], "marker": "o", "ls": "-"},
    "ours, learned table": {"color": style.COLOURS[LEARNED], "marker": "D", "ls": "-"},
}
ENDINGS = ("svg", "png")


def draw_growth(rows: Sequence[dict[str, Any]], outputs: Sequence[Path]) -> None:
    """A panel per axis, both axes logarithmic.

    Args:
        rows: those of growth.json.
        outputs: files to write, in the format of their ending.
    """
    fig, panels = style.figure(len(LABELS), height=2.6, sharey=True)
    for ax, (axis, label) in zip(panels, LABELS.items(), strict=True):
        of_axis = [row for row in rows if row["axis"] == axis]
        sizes = sorted({row[axis] for row in of_axis})
        for name, look in GROWTH.items():
            points = [(row[axis], row["ms"]) for row in of_axis if row["contender"] == name]
            if points:
                ax.plot(*zip(*sorted(points), strict=True), label=name, **look)
        style.log2_ticks(ax, sizes[::2] if len(sizes) > 5 else sizes)
        ax.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)
        ax.set_xlabel(label)
    style.log_axis(panels[0], "y", [row["ms"] for row in rows])
    panels[0].set_ylabel("time of a step [ms]")
    legend_above(fig, panels[0], without=label_ends(panels, {name: name for name in GROWTH}))
    style.save(fig, outputs)


def draw_peers(shapes: Sequence[dict[str, Any]], outputs: Sequence[Path]) -> None:
    """Bars of the time of a step over that of the encoder's product, a panel per shape, the fastest on top.

    Args:
        shapes: those of training_step.json.
        outputs: files to write, in the format of their ending.
    """
    names = _by_speed(shapes)
    fig, panels = style.figure(len(shapes), height=0.8 + 0.19 * len(names), sharey=True)
    for ax, of_shape in zip(panels, shapes, strict=True):
        rows = {row["contender"]: row for row in of_shape["contenders"]}
        for place, name in enumerate(names):
            _draw_bar(ax, place, name, rows.get(name))
        ax.axvline(1, color="black", lw=0.8, ls=":", label=f"{REFERENCE} of PyTorch")
        shape = of_shape["shape"]
        title = f"batch {shape['n_tokens']}, {shape['n_features']} features,\nwidth {shape['d_model']}, k {shape['k']}"
        ax.set_title(title, fontsize="small")
        ax.set_xlim(0, 1.16 * ax.get_xlim()[1])
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    fig.supxlabel("time of a step / time of the encoder's product", fontsize="medium")
    product, *_ = panels[0].get_legend_handles_labels()[0]
    spread = key("range over rounds", marker="|", markersize=9, ls="")
    fig.legend(handles=[product, spread], loc="outside upper center", ncols=2)
    style.save(fig, outputs)


def _by_speed(shapes: Sequence[dict[str, Any]]) -> list[str]:
    """All contenders but the reference, the fastest at the first shape first, those that failed there last."""
    rows = [row for of_shape in shapes for row in of_shape["contenders"] if row["contender"] != REFERENCE]
    first = {row["contender"]: row.get("ratio") for row in reversed(rows)}
    return sorted(first, key=lambda name: (first[name] is None, first[name] or 0))


def _draw_bar(ax: Axes, place: int, name: str, row: dict[str, Any] | None) -> None:
    """Draw the ratio of a contender with its range over rounds, or say that there is none."""
    if row is None or "error" in row:
        ax.text(0, place, " failed" if row else " not measured", va="center", fontsize="x-small", color="0.4")
        return
    colour = style.COLOURS[BASELINE] if name.startswith(OURS) else "0.72"
    ax.barh(place, row["ratio"], height=0.7, color=colour)
    ends = [[row["ratio"] - row["ratio_low"]], [row["ratio_high"] - row["ratio"]]]
    ax.errorbar(row["ratio"], place, xerr=ends, fmt="none", ecolor="black", elinewidth=0.8, capsize=1.5)
    look: dict[str, Any] = {"va": "center", "fontsize": "x-small", "bbox": {"fc": "white", "lw": 0, "pad": 0.5}}
    ax.annotate(f"{row['ratio']:.2f}", (row["ratio_high"], place), (4, 0), textcoords="offset points", **look)


def main() -> None:
    """Draw what there are files of."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=layout.BENCH)
    folder = parser.parse_args().output
    for source, picture, rows, draw in (
        ("growth", "growth", "rows", draw_growth),
        ("training_step", "peers", "shapes", draw_peers),
    ):
        if (folder / f"{source}.json").is_file():
            content = json.loads((folder / f"{source}.json").read_bytes())[rows]
            draw(content, [folder / f"{picture}.{ending}" for ending in ENDINGS])


if __name__ == "__main__":
    main()
