"""Held-out NMSE, FVU and CE added by layer: baseline against tokenized."""

from tsae.plots import COLOURS, draw_seeds, figure, label_layers, pick, save
from tsae.table import read_table

table = read_table(snakemake.input.metrics)
PANELS = {
    "nmse": ("NMSE", 1),
    "fvu": ("FVU", 1),
    "ce_added": ("CE added (% of clean CE)", 100),
}

fig, axes = figure(len(PANELS))
for ax, (metric, (label, scale)) in zip(axes, PANELS.items(), strict=True):
    for name, subject, offset in (
        ("baseline", snakemake.params.baseline, -0.1),
        ("tokenized", snakemake.params.tokenized, 0.1),
    ):
        rows = pick(table, subject, metric)
        draw_seeds(ax, rows, "layer", offset, scale, color=COLOURS[name], label=name)
    label_layers(ax, rows["layer"])
    ax.set_ylabel(label)
    ax.set_ylim(bottom=0)
axes[0].legend(loc="lower left")
save(fig, snakemake.output)
