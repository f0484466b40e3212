"""NMSE and dead features by number of features, and NMSE by trained parameters.

Claims C3 and C6: a tokenized SAE beats a baseline with several times its features, and smaller expansions have fewer dead
features. Panels show held-out NMSE against the number of features (a) and of trained parameters (b), the share of
features that fire on no held-out token (c), and the share that fired on none of the last training tokens (d; the window
is ``evaluation.dead_window``). SAEs with equal features differ in parameters: a learned table has a row for every token
of the vocabulary, of which a token reads one. A fixed table has as many numbers, but they are not trained and do not
count in (b). The table is fixed at its initial rows, as in the authors' sweep, or learned; with the remainder, the
encoder sees what the table leaves. Markers are means over seeds; small dots are seeds, where there are several. Bars are
the 95% interval of one seed (the mean of the seeds' own), over held-out documents for NMSE and over features for dead
ones, and leave out the spread of seeds. The thin line is the NMSE of the largest baseline, and the arrow leads to the
smallest tokenized SAE that is no worse. The axes of NMSE do not begin at zero.
"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from tsae.figures.inputs import Drawing, Inputs
from tsae.figures.labels import key, legend_above
from tsae.figures.style import (
    COLOURS,
    draw_against,
    families_in,
    grid,
    layers_of,
    log2_ticks,
    log_axis,
    start_at_zero,
    style_of,
)
from tsae.profile.families import BASELINE, FIXED, LEARNED, REMAINDER

NEEDS = {
    "category": "Reconstruction",
    "claims": ["C3", "C6"],
    "blocks": {
        "expansion": {
            "has": ["table", "baseline"],
            "varies": "expansion",
            "by_family": True,
            "against": ["expansion"],
        },
    },
}
SAE = ["layer", "subject", "seed"]
LINE: dict[str, Any] = {"color": COLOURS[BASELINE], "lw": 0.6}
PANELS = {
    "nmse": ("NMSE", 1),
    "dead_heldout": ("dead on held-out tokens\n(% of features)", 100),
    "dead_training": ("dead at the end of training\n(% of features)", 100),
}


def draw(inputs: Inputs) -> Drawing:
    """A row of panels for each layer."""
    table = inputs.table("expansion")
    layers = layers_of(table)
    # Tables of older runs have no numbers of parameters.
    sizes = table[table["metric"] == "n_parameters"].set_index(SAE)["value"]
    table = table.join(sizes.rename("n_parameters") / 1e6, on=SAE)
    columns = [("nmse", "expansion"), *([("nmse", "n_parameters")] * bool(len(sizes)))]
    columns += [("dead_heldout", "expansion"), ("dead_training", "expansion")]

    fig, panels = grid(len(layers), len(columns), height=2.3)
    for row, layer in zip(panels, layers, strict=True):
        saes = table[table["layer"] == layer]
        for ax, (metric, against) in zip(row, columns, strict=True):
            label, scale = PANELS[metric]
            rows = saes[saes["metric"] == metric]
            if against == "n_parameters":
                ax.sharey(row[0])
                ax.tick_params(labelleft=False)
            else:
                ax.set_ylabel(label)
            for name, family in families_in(rows).items():
                draw_against(ax, family, against, scale, **style_of(name))
            if against == "expansion":
                log2_ticks(ax, saes["expansion"], "x")
                ax.set_xlabel("features / d_model")
            else:
                log_axis(ax, "x", rows[against].dropna())
                ax.tick_params("x", labelsize="x-small")
                ax.set_xlabel("trained parameters\n(millions)")
            ax.set_title(f"layer {layer}")
            if metric == "nmse":
                _mark_largest_baseline(ax, rows, saes.loc[saes["table"] == "none", "expansion"].max(), against)
            else:
                start_at_zero(ax)
    legend_above(fig, panels[0][0], key("largest baseline", **LINE))
    return Drawing(fig, (table,))


def _mark_largest_baseline(ax: Axes, rows: pd.DataFrame, largest: float, against: str) -> None:
    """Draw the NMSE of the baseline with the most features, and an arrow to the smallest tokenized SAE no worse.

    `largest` is that of all baselines: no smaller one takes the place of a failed one.
    """
    means = {name: of.groupby("expansion")[["value", against]].mean() for name, of in families_in(rows).items()}
    if largest not in means.get(BASELINE, pd.DataFrame()).index:
        return
    mark = float(means[BASELINE]["value"].loc[largest])
    ax.axhline(mark, zorder=1, **LINE)
    tokenized = next((means[name] for name in (LEARNED, FIXED, REMAINDER) if name in means), pd.DataFrame())
    as_good = tokenized[tokenized["value"] <= mark] if len(tokenized) else tokenized
    if against != "expansion" or as_good.empty:
        return
    smallest = as_good.index.min()
    bottom, top = ax.get_ylim()
    ax.set_ylim(bottom - 0.3 * (top - bottom), top)
    style = {"arrowstyle": "-|>", "color": "0.35", "lw": 0.8, "shrinkA": 4, "shrinkB": 4}
    ax.annotate("", (smallest, as_good.loc[smallest, "value"]), (largest, mark), arrowprops=style)
    text = f"{smallest:g}x with a table\n≤ {largest:g}x without"
    ax.text(0.04, 0.03, text, transform=ax.transAxes, fontsize="small", color="0.25")
