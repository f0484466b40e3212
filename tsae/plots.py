"""One style for every figure."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Colour-blind safe (Okabe and Ito). One colour per thing, the same in every figure.
COLOURS = {
    "baseline": "#0072B2",
    "tokenized": "#D55E00",
    "token-biases": "#D55E00",
    "unigram residuals": "#009E73",
    "conditional means": "#CC79A7",
}
PUBLISHED = "0.55"  # the authors' numbers: faint grey
METADATA: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}


def figure(panels: int, height: float = 3.1, width: float = 3.3) -> tuple[Figure, list[Axes]]:
    """A row of panels in the project's style; sizes of one panel in inches."""
    sns.set_theme(style="ticks", context="paper", font_scale=1.05)
    mpl.rcParams |= {
        "svg.hashsalt": "tsae",  # same figure, same bytes
        "svg.fonttype": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": "medium",
        "legend.frameon": False,
        "errorbar.capsize": 2.5,
    }
    fig, axes = plt.subplots(1, panels, figsize=(panels * width + 0.3, height), squeeze=False, layout="constrained")
    return fig, list(axes[0])


def save(fig: Figure, outputs: Iterable[str]) -> None:
    """Write the figure to each path, in the format of its ending, without dates."""
    for output in outputs:
        ending = Path(output).suffix.removeprefix(".")
        fig.savefig(output, dpi=200, metadata=METADATA[ending])
    plt.close(fig)


def pick(table: pd.DataFrame, subject: str, metric: str, **where: Any) -> pd.DataFrame:
    """Rows of one subject and metric, sorted by layer, threshold and seed.

    Raises:
        ValueError: there are none.
    """
    chosen = table[(table["subject"] == subject) & (table["metric"] == metric)]
    for column, value in where.items():
        chosen = chosen[chosen[column] == value]
    if chosen.empty:
        raise ValueError(f"the table has no {metric!r} of {subject!r}{f' with {where}' if where else ''}")
    return chosen.sort_values(["layer", "at", "seed"])


def draw_seeds(ax: Axes, rows: pd.DataFrame, column: str, offset: float, scale: float = 1.0, **style: Any) -> None:
    """Draw, over the categories of a column, the mean of the seeds with their range, and every seed as a small dot."""
    categories = sorted(rows[column].unique())
    grouped = rows.groupby(column)["value"]
    x = [place + offset for place in range(len(categories))]
    mean, low, high = (grouped.agg(how).to_numpy() * scale for how in ("mean", "min", "max"))
    ax.errorbar(x, mean, yerr=[mean - low, high - mean], fmt="o", **style)
    dots = [categories.index(value) + offset for value in rows[column]]
    ax.plot(dots, rows["value"] * scale, ".", color=style.get("color"), alpha=0.5, markersize=3, zorder=0)


def label_layers(ax: Axes, layers: Iterable[int]) -> None:
    """Put layers on the x axis as categories."""
    names = [str(layer) for layer in sorted(set(layers))]
    ax.set_xticks(range(len(names)), names)
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_xlabel("layer (resid_pre)")
