"""NMSE, FVU and CE added by layer: the baseline against both tokenized forms.

Claim C1 at one sparsity: held-out NMSE, FVU and CE added of the baseline and of both tokenized forms, layer by layer;
less is better. Each bar of grey joins a tokenized SAE to the baseline of its layer, and the number beside it is the
difference in per cent of the baseline. With a learned (or fixed) table the encoder sees the residual, as in the paper;
with the remainder it sees what the table leaves. NMSE divides the squared error of each token by its squared norm. FVU
divides the sum of squared errors by that of deviations from the mean residual. CE added is the rise of the model's loss,
relative to its clean loss, when reconstructions replace residuals. Markers are means over seeds; small dots are seeds,
where there are several. Thin bars are the 95% interval of one seed over held-out documents (the mean of the seeds' own).
All SAEs of a layer share the documents, so two can differ significantly although their bars overlap; claims compare them
paired. Stars, if the profile has any, are SAEs of the same k and size that the authors released, measured here like the
others.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from tsae.figures.inputs import Drawing, Inputs
from tsae.figures.labels import key, legend_above, readable
from tsae.figures.style import (
    COLOURS,
    RELEASED,
    bars,
    draw_seeds,
    figure,
    headline_families,
    layers_of,
    of_the_same_size,
    over_seeds,
    pick,
    style_of,
)
from tsae.profile.families import BASELINE

NEEDS = {
    "category": "Reconstruction",
    "claims": ["C1"],
    "blocks": {"headline": {}},
    "optional": ["released"],
    "compares": True,
}
PANELS = {
    "nmse": ("NMSE", 1),
    "fvu": ("FVU", 1),
    "ce_added": ("CE added (% of clean CE)", 100),
}
APART = 0.26  # families of a layer, in layers
ROOM = 0.25  # that a number takes beside a mark, of the width of a panel
JOIN: dict[str, Any] = {"color": "0.86", "lw": 3.5, "solid_capstyle": "round", "zorder": 0}


def draw(inputs: Inputs) -> Drawing:
    """A panel for each metric, with layers from top to bottom."""
    table = inputs.table("headline")
    subjects = headline_families(table, inputs.roles)
    released = of_the_same_size(inputs.together("released"), table)
    released = released[released["k"].isin(table["k"])]
    layers = layers_of(table)

    fig, axes = figure(len(PANELS), height=0.75 + 0.5 * len(layers), sharey=True)
    for ax, (metric, (label, scale)) in zip(axes, PANELS.items(), strict=True):
        baseline = over_seeds(pick(table, subjects[BASELINE], metric), "layer")
        largest = pd.concat(pick(table, subject, metric)["value"] for subject in subjects.values()).max() * scale
        for place, (name, subject) in enumerate(subjects.items()):
            offset = APART * (place - (len(subjects) - 1) / 2)
            rows = pick(table, subject, metric)
            _draw_rows(ax, rows, layers, offset, scale, **style_of(name))
            if name != BASELINE:
                _join(ax, rows, baseline, layers, offset, scale, largest, name)
            if subject == inputs.roles.get("remainder"):
                continue  # the authors have none
            theirs = released[released["table"].ne("none") == (name != BASELINE)]
            for _, of_k in theirs[theirs["metric"] == metric].groupby("subject"):
                _draw_rows(ax, of_k, layers, offset, scale, **style_of(name) | RELEASED | {"label": None})
        ax.set_xlabel(f"{label}\nless is better")
        ax.set_xlim(left=min(0, ax.get_xlim()[0]))
    axes[0].set_yticks(range(len(layers)), [f"layer {layer}" for layer in layers])
    axes[0].set_ylim(len(layers) - 0.45, -0.55)
    legend_above(fig, axes[0], *([key("released by the authors", **RELEASED)] if len(released) else []))
    return Drawing(fig, (table,))


def _draw_rows(ax: Axes, rows: pd.DataFrame, layers: list[int], offset: float, scale: float, **style: Any) -> None:
    """Draw the mean over seeds with the 95% interval of one, and every seed if several, at the place of each layer."""
    summary = over_seeds(rows, "layer")
    y = [layers.index(layer) + offset for layer in summary.index]
    ax.errorbar(summary["value"] * scale, y, xerr=bars(summary, scale), **style | {"ls": ""})
    if rows["seed"].nunique() > 1:
        draw_seeds(ax, rows["value"] * scale, [layers.index(layer) + offset for layer in rows["layer"]])


def _join(
    ax: Axes,
    rows: pd.DataFrame,
    baseline: pd.DataFrame,
    layers: list[int],
    offset: float,
    scale: float,
    largest: float,
    name: str,
) -> None:
    """Join an SAE to the baseline of its layer, and write the difference in per cent, unless the baseline's may be zero.

    The number is on the left, or on the right where it would cross the axis at 0 of a panel whose `largest` number is this.
    """
    pairs = over_seeds(rows, "layer").join(baseline.add_suffix("_baseline"), how="inner")
    both = pairs[["value", "low", "high", "value_baseline", "low_baseline"]]
    for layer, value, low, high, other, lowest in both.itertuples():
        y = layers.index(layer) + offset
        ax.plot([value * scale, other * scale], [y, y], **JOIN)
        ax.plot(other * scale, y, marker="|", markersize=7, color=COLOURS[BASELINE])
        if other > 0 and not lowest <= 0:
            text = f"{100 * (value / other - 1):+.0f}%".replace("-", "\u2212")
            left, right = np.nanmin([value, other, low]) * scale, np.nanmax([value, other, high]) * scale
            is_left = left > ROOM * largest
            place, beside, side = (left, -5, "right") if is_left else (right, 5, "left")
            style = {"ha": side, "va": "center", "fontsize": "small", "color": readable(COLOURS[name])}
            ax.annotate(text, (place, y), (beside, 0), textcoords="offset points", **style)
