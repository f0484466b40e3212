"""Reconstruction against sparsity: NMSE and CE added by measured L0, with and without a table (C1)."""

from tsae.ledger import load_published
from tsae.plots import (
    COLOURS,
    MARKERS,
    PUBLISHED,
    RELEASED,
    TABLES,
    bars,
    draw_seeds,
    families_in,
    grid,
    key,
    layers_of,
    legend_above,
    log_axis,
    of_the_same_size,
    over_seeds,
    save,
    style_of,
)
from tsae.table import read_table, read_tables

table, released = read_table(snakemake.input.pareto), read_tables(snakemake.input.released)
published = load_published(snakemake.input.published)["pareto"]
PANELS = {
    "nmse": ("NMSE", 1),
    "ce_added": ("CE added (% of clean CE)", 100),
}
ARCHITECTURES = {"topk": "TopK", "relu": "ReLU", "gated": "gated"}
SAE = ["subject", "seed"]
layers = layers_of(table)
architectures = [name for name in ARCHITECTURES if name in set(table["architecture"])]
released = of_the_same_size(released, table)
released = released[released["layer"].isin(layers)]


def draw(ax, family, metric, scale, **style):
    """Draw the SAEs of a family by the means of their seeds, and, where several, every seed: what is drawn, as x and y."""
    x, y = family[family["metric"] == "l0"], family[family["metric"] == metric]
    l0 = over_seeds(x, "subject").sort_values("value")
    error = over_seeds(y, "subject").loc[l0.index] * scale
    ax.errorbar(l0["value"], error["value"], xerr=bars(l0), yerr=bars(error), **style)
    if family["seed"].nunique() > 1:
        several = y[y.duplicated("subject", keep=False)].set_index(SAE)["value"]
        draw_seeds(ax, x.set_index(SAE)["value"].loc[several.index], several * scale)
    return list(l0["value"]), list(error["value"])


fig, panels = grid(len(layers) * len(PANELS), len(architectures), height=2.2, sharey="row")
rows = [(layer, metric) for layer in layers for metric in PANELS]
for row, (layer, metric) in zip(panels, rows, strict=True):
    label, scale = PANELS[metric]
    heights = []
    for ax, architecture in zip(row, architectures, strict=True):
        of_layer, theirs = (t[(t["layer"] == layer) & (t["architecture"] == architecture)] for t in (table, released))
        drawn = [draw(ax, family, metric, scale, **style_of(name)) for name, family in families_in(of_layer).items()]
        for name, family in families_in(theirs).items():
            style = style_of(name) | RELEASED | {"label": None, "zorder": 5}
            drawn.append(draw(ax, family, metric, scale, **style))
        curves = published[(published["metric"] == metric) & (published["architecture"] == architecture)]
        for kind, curve in curves.groupby("table"):
            # Whether their tables were fixed or learned cannot be told.
            name = TABLES["none" if kind == "none" else "learned"]
            x, y = list(curve["l0"]), list(curve["value"] * scale)
            ax.plot(x, y, MARKERS[name], mfc="none", color=COLOURS[name], alpha=0.4, zorder=1)
            drawn.append((x, y))
        log_axis(ax, "x", [x for xs, _ in drawn for x in xs])
        heights += [y for _, ys in drawn for y in ys]
        ax.set_title(f"layer {layer}, {ARCHITECTURES[architecture]}")
    log_axis(row[0], "y", heights)
    row[0].set_ylabel(label)
for ax in panels[-1]:
    ax.set_xlabel("L0 (active features per token)")
marks = [key("published (GPT-2, layer 8)", PUBLISHED, ls="", marker="o", mfc="none")]
if len(released):
    marks.append(key("released by the authors", **RELEASED))
legend_above(fig, panels[0][0], *marks)
save(fig, snakemake.output, table)
