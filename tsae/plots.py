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


def draw_by_layer(ax: Axes, rows: pd.DataFrame, offset: float, scale: float = 1.0, **style: Any) -> None:
    """Draw, over layers as categories, the mean of the seeds with the hull of their 95% intervals, and every seed as a dot."""
    layers = sorted(rows["layer"].unique())
    by_layer = rows.groupby("layer")
    x = [place + offset for place in range(len(layers))]
    mean, low, high = (
        by_layer[column].agg(how).to_numpy() * scale
        for column, how in (("value", "mean"), ("low", "min"), ("high", "max"))
    )
    ax.errorbar(x, mean, yerr=[mean - low, high - mean], fmt="o", **style)
    dots = [layers.index(layer) + offset for layer in rows["layer"]]
    ax.plot(dots, rows["value"] * scale, ".", color="black", alpha=0.6, markersize=2.5)


def legend_above(fig: Figure, ax: Axes) -> None:
    """Put one legend for all panels above them."""
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=2 if len(labels) == 4 else min(3, len(labels)))


def label_layers(ax: Axes, layers: Iterable[int]) -> None:
    """Put layers on the x axis as categories."""
    names = [str(layer) for layer in sorted(set(layers))]
    ax.set_xticks(range(len(names)), names)
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_xlabel("layer (resid_pre)")
