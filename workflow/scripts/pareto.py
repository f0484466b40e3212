"""Reconstruction against sparsity: NMSE and CE added by measured L0, with and without a table (C1)."""

from tsae.ledger import load_published
from tsae.plots import (
    COLOURS,
    PUBLISHED,
    RELEASED,
    TABLES,
    bars,
    grid,
    key,
    layers_of,
    legend_above,
    log_axis,
    of_the_same_size,
    over_seeds,
    save,
)
from tsae.table import read_table, read_tables

table, released = read_table(snakemake.input.pareto), read_tables(snakemake.input.released)
published = load_published(snakemake.input.published)["pareto"]
PANELS = {
    "nmse": ("NMSE", 1),
    "ce_added": ("CE added (% of clean CE)", 100),
}
ARCHITECTURES = {"topk": ("TopK", "o", "-"), "relu": ("ReLU", "s", "--"), "gated": ("gated", "^", ":")}
layers = layers_of(table)
released = of_the_same_size(released, table)
released = released[released["layer"].isin(layers)]

fig, panels = grid(len(layers), len(PANELS), height=2.9)
for row, layer in zip(panels, layers, strict=True):
    for ax, (metric, (label, scale)) in zip(row, PANELS.items(), strict=True):
        shown = {"x": [], "y": []}
        families = table[table["layer"] == layer].groupby(["architecture", "table"])
        for architecture, (name, marker, line) in ARCHITECTURES.items():
            for kind in TABLES:
                if (architecture, kind) not in families.groups:
                    continue
                family = families.get_group((architecture, kind))
                l0 = over_seeds(family[family["metric"] == "l0"], "subject").sort_values("value")
                error = over_seeds(family[family["metric"] == metric], "subject").loc[l0.index] * scale
                style = {"marker": marker, "ls": line, "color": COLOURS[TABLES[kind]]}
                style["label"] = name if kind == "none" else f"{name} + {kind} table"
                ax.errorbar(l0["value"], error["value"], xerr=bars(l0), yerr=bars(error), **style)
                shown["x"] += list(l0["value"])
                shown["y"] += list(error["value"])
        for kind, family in released[released["layer"] == layer].groupby("table"):
            l0 = over_seeds(family[family["metric"] == "l0"], "subject")
            error = over_seeds(family[family["metric"] == metric], "subject").loc[l0.index] * scale
            style = {"color": COLOURS[TABLES[kind]], "zorder": 5} | RELEASED
            ax.errorbar(l0["value"], error["value"], xerr=bars(l0), yerr=bars(error), **style)
            shown["x"] += list(l0["value"])
            shown["y"] += list(error["value"])
        theirs = published[published["metric"] == metric]
        for (architecture, kind), curve in theirs.groupby(["architecture", "table"]):
            colour = COLOURS["baseline" if kind == "none" else "tokenized"]
            marker = ARCHITECTURES[architecture][1]
            ax.plot(curve["l0"], curve["value"] * scale, marker, mfc="none", color=colour, alpha=0.4, zorder=1)
        shown["x"] += list(theirs["l0"])
        shown["y"] += list(theirs["value"] * scale)
        log_axis(ax, "x", shown["x"])
        log_axis(ax, "y", shown["y"])
        ax.set_xlabel("L0 (active features per token)")
        ax.set_ylabel(label)
        ax.set_title(f"layer {layer}")
marks = [key("published (GPT-2, layer 8)", PUBLISHED, ls="", marker="o", mfc="none")]
if len(released):
    marks.append(key("released by the authors", **RELEASED))
legend_above(fig, panels[0][0], *marks)
save(fig, snakemake.output, table)
