"""Held-out NMSE, FVU and CE added by layer: baseline against tokenized."""

from tsae.plots import COLOURS, draw_by_layer, figure, label_layers, legend_above, pick, save, start_at_zero
from tsae.table import read_table

table = read_table(snakemake.input.headline)
PANELS = {
    "nmse": ("NMSE", 1),
    "fvu": ("FVU", 1),
    "ce_added": ("CE added (% of clean CE)", 100),
}
SUBJECTS = (("baseline", snakemake.params.baseline, -0.1), ("tokenized", snakemake.params.tokenized, 0.1))

fig, axes = figure(len(PANELS))
for ax, (metric, (label, scale)) in zip(axes, PANELS.items(), strict=True):
    for name, subject, offset in SUBJECTS:
        rows = pick(table, subject, metric)
        draw_by_layer(ax, rows, offset, scale, color=COLOURS[name], label=name)
    label_layers(ax, rows["layer"])
    ax.set_ylabel(label)
    start_at_zero(ax)
legend_above(fig, axes[0])
save(fig, snakemake.output)
