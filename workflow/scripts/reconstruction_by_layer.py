"""Held-out NMSE, FVU and CE added by layer: baseline against tokenized."""

from tsae.plots import (
    COLOURS,
    RELEASED,
    draw_by_layer,
    figure,
    key,
    label_layers,
    layers_of,
    legend_above,
    of_the_same_size,
    pick,
    save,
    start_at_zero,
)
from tsae.table import read_table, read_tables

table, released = read_table(snakemake.input.headline), read_tables(snakemake.input.released)
PANELS = {
    "nmse": ("NMSE", 1),
    "fvu": ("FVU", 1),
    "ce_added": ("CE added (% of clean CE)", 100),
}
SUBJECTS = (("baseline", snakemake.params.baseline, -0.1), ("tokenized", snakemake.params.tokenized, 0.1))
released = of_the_same_size(released, table)
released = released[released["k"].isin(table["k"])]
layers = layers_of(table)

fig, axes = figure(len(PANELS))
for ax, (metric, (label, scale)) in zip(axes, PANELS.items(), strict=True):
    for name, subject, offset in SUBJECTS:
        rows = pick(table, subject, metric)
        draw_by_layer(ax, rows, layers, offset, scale, color=COLOURS[name], label=name)
        theirs = released[released["table"].ne("none") == (name == "tokenized")]
        for _, of_k in theirs[theirs["metric"] == metric].groupby("subject"):
            draw_by_layer(ax, of_k, layers, 2.5 * offset, scale, color=COLOURS[name], **RELEASED)
    label_layers(ax, layers)
    ax.set_ylabel(label)
    start_at_zero(ax)
legend_above(fig, axes[0], *([key("released by the authors", **RELEASED)] if len(released) else []))
save(fig, snakemake.output, table)
