"""NMSE and CE added against L0, by architecture: baseline, tables, remainder.

Claim C1: at equal sparsity a tokenized SAE reconstructs better, for TopK and for ReLU. Each point is one setting, at its
measured L0 and its held-out NMSE (above) or CE added (below); the arrow points to what is better. Architectures have a
column each. Colour, marker and line show the table and the encoder's input: the residual, or, with the remainder, what
the table leaves. Points are means over seeds; small dots are seeds, where there are several. Horizontal and vertical bars
are the 95% interval of one seed over held-out documents (the mean of the seeds' own). Faint hollow markers are the
authors' GPT-2 small SAEs at layer 8, read off their published figure, circles without and diamonds with a table; their
comments call it fixed and their code trains it. They come from another model, text and budget, so compare the order of
the families rather than the heights. Stars, if the profile has any, are SAEs of the same size that the authors released,
measured here like the others. An axis is linear instead of logarithmic if it has values that are not positive.
"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from tsae.claims.ledger import load_published
from tsae.figures.inputs import Drawing, Inputs
from tsae.figures.labels import key, label_ends, legend_above, point_to_better
from tsae.figures.style import (
    COLOURS,
    MARKERS,
    RELEASED,
    SHORT,
    TABLES,
    bars,
    draw_seeds,
    families_in,
    grid,
    layers_of,
    log_axis,
    of_the_same_size,
    over_seeds,
    style_of,
)
from tsae.profile.architectures import label_of

NEEDS = {
    "category": "Reconstruction",
    "claims": ["C1"],
    "blocks": {
        "pareto": {
            "has": ["table", "baseline"],
            "by_family": True,
            "against": ["architecture", "k", "l1", "l0_penalty"],
        },
    },
    "optional": ["released"],
    "files": ["published"],
}
PANELS = {
    "nmse": ("NMSE", 1),
    "ce_added": ("CE added (% of clean CE)", 100),
}
SAE = ["subject", "seed"]
L0 = "L0 (active features per token)"
CROWDED = 3  # architectures beside each other whose titles and labels fit on one line


def draw(inputs: Inputs) -> Drawing:
    """Two rows of panels for each layer, a column for each architecture, in the order of the sweep."""
    table = inputs.table("pareto")
    published = load_published(inputs.file("published"))["pareto"]
    layers = layers_of(table)
    architectures = {name: label_of(name) for name in table["architecture"].unique()}
    released = of_the_same_size(inputs.together("released"), table)
    released = released[released["layer"].isin(layers)]

    fig, panels = grid(len(layers) * len(PANELS), len(architectures), height=2.2, sharey="row")
    rows = [(layer, metric) for layer in layers for metric in PANELS]
    is_crowded = len(architectures) > CROWDED
    separator = "\n" if is_crowded else " "
    for row, (layer, metric) in zip(panels, rows, strict=True):
        label, scale = PANELS[metric]
        heights = []
        for ax, architecture in zip(row, architectures, strict=True):
            ours, theirs = (t[(t["layer"] == layer) & (t["architecture"] == architecture)] for t in (table, released))
            drawn = [
                _draw_family(ax, family, metric, scale, **style_of(name)) for name, family in families_in(ours).items()
            ]
            for name, family in families_in(theirs).items():
                style = style_of(name) | RELEASED | {"label": None, "zorder": 5}
                drawn.append(_draw_family(ax, family, metric, scale, **style))
            curves = published[(published["metric"] == metric) & (published["architecture"] == architecture)]
            for kind, curve in curves.groupby("table", sort=False):
                x, y = list(curve["l0"]), list(curve["value"] * scale)
                ax.plot(x, y, **_published(str(kind)))
                drawn.append((x, y))
            every = [x for xs, _ in drawn for x in xs]
            if every and max(every) < 1.5 * min(every):  # one sparsity
                every = [min(every) / 2, max(every) * 2]
                ax.set_xlim(*every)
            log_axis(ax, "x", every)
            heights += [y for _, ys in drawn for y in ys]
            ax.set_title(f"layer {layer},{separator}{architectures[architecture]}")
        log_axis(row[0], "y", heights)
        row[0].set_ylabel(label)
    for ax in panels[-1] if not is_crowded else ():
        ax.set_xlabel(L0)
    if is_crowded:
        fig.supxlabel(L0, fontsize="medium")
    for row in panels:
        point_to_better(row[0])
    fullest = max(panels[0], key=lambda ax: len(ax.containers))
    named = label_ends([*(ax for ax in panels[0] if ax is not fullest), fullest], SHORT)
    marks = [key("released by the authors", **RELEASED)] if len(released) else []
    legend_above(fig, panels[0][0], *marks, without=named)
    return Drawing(fig, (table,))


def _published(kind: str) -> dict[str, Any]:
    """Style of the authors' SAEs, whose tables are not known to be fixed or learned."""
    name = TABLES["none" if kind == "none" else "learned"]
    label = f"published, {'baseline' if kind == 'none' else 'tokenized'} (GPT-2, layer 8)"
    style: dict[str, Any] = {"marker": MARKERS[name], "ls": "", "mfc": "none", "mew": 0.6, "alpha": 0.5, "zorder": 1}
    return style | {"color": COLOURS[name], "label": label}


def _draw_family(
    ax: Axes, family: pd.DataFrame, metric: str, scale: float, **style: Any
) -> tuple[list[float], list[float]]:
    """Draw means over seeds of a family's SAEs, and every seed if several; returns x and y."""
    x, y = family[family["metric"] == "l0"], family[family["metric"] == metric]
    l0 = over_seeds(x, "subject").sort_values("value")
    error = over_seeds(y, "subject").loc[l0.index] * scale
    ax.errorbar(l0["value"], error["value"], xerr=bars(l0), yerr=bars(error), **style)
    if family["seed"].nunique() > 1:
        several = y[y.duplicated("subject", keep=False)].set_index(SAE)["value"]
        draw_seeds(ax, x.set_index(SAE)["value"].loc[several.index], several * scale)
    return list(l0["value"]), list(error["value"])
