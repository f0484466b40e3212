"""Held-out NMSE, FVU and CE added by layer: baseline against both tokenized forms."""

from tsae.families import BASELINE
from tsae.plots import (
    RELEASED,
    draw_by_layer,
    figure,
    headline_families,
    key,
    label_layers,
    layers_of,
    legend_above,
    of_the_same_size,
    pick,
    save,
    start_at_zero,
    style_of,
)
from tsae.table import read_table, read_tables

table, released = read_table(snakemake.input.headline), read_tables(snakemake.input.released)
PANELS = {
    "nmse": ("NMSE", 1),
    "fvu": ("FVU", 1),
    "ce_added": ("CE added (% of clean CE)", 100),
}
subjects = headline_families(table, snakemake.params)
released = of_the_same_size(released, table)
released = released[released["k"].isin(table["k"])]
layers = layers_of(table)

fig, axes = figure(len(PANELS))
for ax, (metric, (label, scale)) in zip(axes, PANELS.items(), strict=True):
    for place, (name, subject) in enumerate(subjects.items()):
        offset = 0.16 * (place - (len(subjects) - 1) / 2)
        draw_by_layer(ax, pick(table, subject, metric), layers, offset, scale, **style_of(name))
        if subject == getattr(snakemake.params, "remainder", None):
            continue  # the authors have none
        theirs = released[released["table"].ne("none") == (name != BASELINE)]
        for _, of_k in theirs[theirs["metric"] == metric].groupby("subject"):
            draw_by_layer(ax, of_k, layers, offset, scale, **style_of(name) | RELEASED | {"label": None})
    label_layers(ax, layers)
    ax.set_ylabel(label)
    start_at_zero(ax)
legend_above(fig, axes[0], *([key("released by the authors", **RELEASED)] if len(released) else []))
save(fig, snakemake.output, table)
