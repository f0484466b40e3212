"""Held-out NMSE and CE added against training tokens: baseline and both tokenized forms, layer by layer (C2)."""

from tsae.families import BASELINE
from tsae.plots import (
    COLOURS,
    draw_curve,
    grid,
    headline_families,
    key,
    layers_of,
    legend_above,
    line_of,
    log_axis,
    pick,
    save,
)
from tsae.table import read_table

table = read_table(snakemake.input.curves)
PANELS = {
    "nmse": ("NMSE", 1),
    "ce_added": ("CE added (% of clean CE)", 100),
}
table = table.assign(thousands=table["tokens"] / 1000)
layers = layers_of(table)

fig, panels = grid(len(PANELS), len(layers), height=1.9, sharex=True, sharey="row")
for row, (metric, (label, scale)) in zip(panels, PANELS.items(), strict=True):
    for ax, layer in zip(row, layers, strict=True):
        for name, subject in headline_families(table, snakemake.params).items():
            rows = pick(table, subject, metric, layer=layer)
            rows = rows[rows["tokens"] > 0]  # the axis is logarithmic
            draw_curve(ax, rows, "thousands", scale, **line_of(name))
            if name == BASELINE and len(rows):
                final = rows.loc[rows["step"] == rows["step"].max(), "value"].mean()
                ax.axhline(final * scale, color=COLOURS[name], lw=0.6, zorder=1)
    row[0].set_ylabel(label)
    log_axis(row[0], "y", table.loc[(table["metric"] == metric) & (table["tokens"] > 0), "value"] * scale)
for ax, layer in zip(panels[0], layers, strict=True):
    ax.set_title(f"layer {layer}")
    log_axis(ax, "x", table.loc[(table["metric"] != "failed") & (table["tokens"] > 0), "thousands"])
fig.supxlabel("training tokens (thousands)", fontsize="medium")
legend_above(fig, panels[0][0], key("baseline's final value", COLOURS[BASELINE], lw=0.6))
save(fig, snakemake.output, table)
