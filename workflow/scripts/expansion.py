"""NMSE and dead features against expansion: baseline, tokenized with a fixed and with a learned table (C3, C6)."""

from tsae.plots import (
    COLOURS,
    STYLES,
    TABLES,
    draw_against,
    grid,
    key,
    layers_of,
    legend_above,
    log2_ticks,
    save,
    start_at_zero,
)
from tsae.table import read_table

table = read_table(snakemake.input.expansion)
PANELS = {
    "nmse": ("NMSE", 1),
    "dead_heldout": ("dead on held-out tokens\n(% of features)", 100),
    "dead_training": ("dead at the end of training\n(% of features)", 100),
}
layers = layers_of(table)

fig, panels = grid(len(layers), len(PANELS))
for row, layer in zip(panels, layers, strict=True):
    saes = table[table["layer"] == layer]
    for ax, (metric, (label, scale)) in zip(row, PANELS.items(), strict=True):
        rows = saes[saes["metric"] == metric]
        for kind, name in TABLES.items():
            family = rows[rows["table"] == kind]
            if family.empty:
                continue
            style = {"color": COLOURS[name], "fmt": STYLES[kind], "label": name}
            draw_against(ax, family, "expansion", scale, **style)
        log2_ticks(ax, saes["expansion"], "x")
        ax.set_xlabel("expansion (features / d_model)")
        ax.set_ylabel(label)
        ax.set_title(f"layer {layer}")
        start_at_zero(ax)
        if metric == "nmse":
            # Of all: where the largest failed, no smaller one takes its place.
            largest = saes.loc[saes["table"] == "none", "expansion"].max()
            values = rows.loc[(rows["table"] == "none") & (rows["expansion"] == largest), "value"]
            if len(values):
                ax.axhline(values.mean(), color=COLOURS["baseline"], lw=0.6, zorder=1)
legend_above(fig, panels[0][0], key("largest baseline", COLOURS["baseline"], lw=0.6))
save(fig, snakemake.output, table)
