"""How many features are simple: the mass of their activations lies on one token, or on one bigram (C11)."""

from tsae.plots import COLOURS, draw_curve, grid, key, layers_of, legend_above, save
from tsae.table import read_table

table = read_table(snakemake.input.headline)
PANELS = {"simple_unigram": "token", "simple_bigram": "bigram"}
SUBJECTS = (("baseline", snakemake.params.baseline), ("tokenized", snakemake.params.tokenized))
layers = layers_of(table)

fig, panels = grid(len(PANELS), len(layers), height=1.9, sharex=True, sharey=True)
for row, (metric, of) in zip(panels, PANELS.items(), strict=True):
    for ax, layer in zip(row, layers, strict=True):
        ax.axvline(snakemake.params.simple_threshold, color="0.25", lw=0.8, ls="--", zorder=1)
        for name, subject in SUBJECTS:
            rows = table[(table["layer"] == layer) & (table["subject"] == subject) & (table["metric"] == metric)]
            draw_curve(ax, rows, "at", 100, color=COLOURS[name], label=name)
    row[0].set_ylabel(f"features (%), by mass\non their top {of}")
for ax, layer in zip(panels[0], layers, strict=True):
    ax.set_title(f"layer {layer}")
for ax in panels[-1]:
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 101)
fig.supxlabel("share of activation mass ≥", fontsize="medium")
legend_above(fig, panels[0][0], key("threshold of simple", lw=0.8, ls="--"))
save(fig, snakemake.output, table)
