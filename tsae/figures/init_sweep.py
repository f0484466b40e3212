"""NMSE, CE added and dead features by where the table starts, and whether it is trained.

How the table's start affects the SAE: held-out NMSE, CE added and dead features of tokenized SAEs against the multiple of
the unigram residuals at which the table starts (``lookup_scale``). If SAEs differ in the start of the encoder, the lower
numbers on the axis are the multiple of the decoder's transpose: one minus ``lookup_scale`` with the authors' start,
otherwise one. A fixed table stays at its start, as in the authors' init sweep, and is no table at zero; a learned one is
trained with the rest. Markers are means over seeds; small dots are seeds, where there are several. Bars are the 95%
interval of one seed (the mean of the seeds' own), over held-out documents or, for dead features, over features. The line
with a band is the headline baseline with its interval, at layers where the profile has one with as many features. The y
axes need not begin at zero.
"""

import pandas as pd
from matplotlib.axes import Axes

from tsae.figures.inputs import Drawing, Inputs
from tsae.figures.labels import legend_above
from tsae.figures.style import COLOURS, draw_against, families_in, grid, layers_of, style_of
from tsae.profile.families import BASELINE

NEEDS = {
    "category": "Reconstruction",
    "blocks": {"init": {"has": ["table"], "varies": "lookup_scale", "by_family": True, "against": ["lookup_scale"]}},
    "optional": ["headline"],
}
PANELS = {
    "nmse": ("NMSE", 1),
    "ce_added": ("CE added (% of clean CE)", 100),
    "dead_heldout": ("dead, held-out (% of features)", 100),
}


def draw(inputs: Inputs) -> Drawing:
    """A row of panels for each layer."""
    table = inputs.table("init")
    table = table[table["table"] != "none"]
    # With the authors' start W_enc begins at 1 - lookup_scale times W_dec's transpose.
    encoder_scale = table["encoder_scale"].fillna((1 - table["lookup_scale"]).where(table["start"] == "authors", 1))
    starts = sorted(set(zip(table["lookup_scale"], encoder_scale, strict=True)))
    both = len(set(encoder_scale)) > 1
    layers = layers_of(table)
    headline = inputs.together("headline")
    same = headline["subject"].isin([inputs.roles.get("baseline")]) & headline["expansion"].isin(table["expansion"])
    baselines = headline[same & headline["k"].isin(table["k"]) & headline["seed"].isin(table["seed"])]

    fig, panels = grid(len(layers), len(PANELS), sharex=True)
    for row, layer in zip(panels, layers, strict=True):
        for ax, (metric, (label, scale)) in zip(row, PANELS.items(), strict=True):
            rows = table[(table["layer"] == layer) & (table["metric"] == metric)]
            for name, family in families_in(rows).items():
                draw_against(ax, family, "lookup_scale", scale, **style_of(name))
            _draw_baseline(ax, baselines[(baselines["layer"] == layer) & (baselines["metric"] == metric)], scale)
            ticks = [f"{lookup:g}\n{encoder:g}" if both else f"{lookup:g}" for lookup, encoder in starts]
            ax.set_xticks([lookup for lookup, _ in starts], ticks)
            ax.set_ylabel(label)
            ax.set_title(f"layer {layer}")
    about = " (above) and of the encoder (below)" if both else ", in unigram residuals"
    fig.supxlabel(f"initial scale of the table{about}", fontsize="medium")
    legend_above(fig, panels[0][0])
    return Drawing(fig, (table,))


def _draw_baseline(ax: Axes, rows: pd.DataFrame, scale: float) -> None:
    """Draw the mean over seeds as a line, and the 95% interval of one as a band."""
    if len(rows):
        value, low, high = rows[["value", "low", "high"]].mean() * scale
        ax.axhline(value, color=COLOURS[BASELINE], lw=1, zorder=1, label=BASELINE)
        ax.axhspan(low, high, color=COLOURS[BASELINE], alpha=0.12, lw=0, zorder=0, label="baseline's 95% interval")
