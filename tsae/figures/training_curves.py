"""NMSE and CE added at checkpoints of the training, for the baseline and both tokenized forms.

Claim C2, the curves behind the speed-up on one schedule: NMSE (above) and CE added (below) on held-out tokens against
training tokens, one column per layer; less is better. Markers are checkpoints, lines means over seeds and bands their
range; a single seed has no band. The dotted line is the baseline's final value. Arrows go from where the baseline reaches
it to where a tokenized SAE first does, and the ratio of the two numbers of tokens stands below: how much sooner the
tokenized SAE is as good. All SAEs see the same tokens in the same order, and the learning rate falls throughout training,
which bends the curves at the end. An axis is linear instead of logarithmic if it has values that are not positive.
"""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from tsae.claims.speedups import mean_of_seeds, speedups
from tsae.figures.inputs import Drawing, Inputs
from tsae.figures.labels import key, label_ends, legend_above, readable
from tsae.figures.style import (
    COLOURS,
    SHORT,
    draw_curve,
    grid,
    headline_families,
    layers_of,
    log_axis,
    pick,
    style_of,
)
from tsae.profile.families import BASELINE

NEEDS = {"category": "Training", "claims": ["C2"], "tables": ["curves"], "compares": True}
PANELS = {
    "nmse": ("NMSE", 1),
    "ce_added": ("CE added (% of clean CE)", 100),
}
FINAL: dict[str, Any] = {"color": COLOURS[BASELINE], "lw": 0.8, "ls": ":"}


def draw(inputs: Inputs) -> Drawing:
    """A row of panels for each metric, a column for each layer."""
    table = inputs.table("curves")
    table = table.assign(thousands=table["tokens"] / 1000)
    layers = layers_of(table)
    subjects = headline_families(table, inputs.roles)

    fig, panels = grid(len(PANELS), len(layers), height=2.0, sharex=True, sharey="row")
    for row, (metric, (label, scale)) in zip(panels, PANELS.items(), strict=True):
        for ax, layer in zip(row, layers, strict=True):
            for name, subject in subjects.items():
                rows = pick(table, subject, metric, layer=layer)
                rows = rows[rows["tokens"] > 0]  # the axis is logarithmic
                draw_curve(ax, rows, "thousands", scale, **style_of(name) | {"markersize": 2.5})
                if name == BASELINE and len(rows):
                    _draw_speedups(ax, table, subjects, metric, layer, scale)
        row[0].set_ylabel(label)
        log_axis(row[0], "y", table.loc[(table["metric"] == metric) & (table["tokens"] > 0), "value"] * scale)
    for ax, layer in zip(panels[0], layers, strict=True):
        ax.set_title(f"layer {layer}")
        log_axis(ax, "x", table.loc[(table["metric"] != "failed") & (table["tokens"] > 0), "thousands"])
    fig.supxlabel("training tokens (thousands)", fontsize="medium")
    named = label_ends(panels[0], SHORT)
    legend_above(fig, panels[0][0], key("baseline's final value", **FINAL), without=named)
    return Drawing(fig, (table,))


def _draw_speedups(
    ax: Axes, curves: pd.DataFrame, subjects: Mapping[str, str], metric: str, layer: int, scale: float
) -> None:
    """Draw the baseline's final value, an arrow along it to where each tokenized SAE reaches it, and the ratio."""
    means = mean_of_seeds(curves[curves["layer"] == layer])
    baseline = means[(means["subject"] == subjects[BASELINE]) & (means["metric"] == metric)].sort_values("step")
    thousands = curves["thousands"].max() / curves["step"].max()
    final = baseline["value"].iloc[-1] * scale
    ax.axhline(final, zorder=1, **FINAL)
    found: dict[str, pd.Series[Any]] = {}
    for name, subject in subjects.items():
        pair = speedups(means, subjects[BASELINE], subject, metric)
        if name != BASELINE and len(pair):
            found[name] = pair.iloc[0]
    # The longest arrow first, so that the shorter ones stay visible.
    for place, (name, of) in enumerate(sorted(found.items(), key=lambda item: item[1]["steps_tokenized"])):
        at_once = math.isclose(of["steps_tokenized"], baseline["step"].iloc[0])
        text = f"{'≥ ' if at_once else ''}{of['speedup']:.2g}x sooner"
        if math.isnan(of["speedup"]):
            text = "never as good"
        else:
            start, tip = (of[f"steps_{which}"] * thousands for which in ("baseline", "tokenized"))
            style = {"arrowstyle": "-|>", "color": COLOURS[name], "lw": 1.1, "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", (tip, final), (start, final), arrowprops=style)
        ax.text(0.03, 0.03 + 0.1 * place, text, transform=ax.transAxes, fontsize="small", color=readable(COLOURS[name]))
