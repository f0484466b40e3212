"""How much of a residual lies along its own token's unigram residual, by context length (C12)."""

from tsae.plots import (
    bars,
    figure,
    key,
    layers_of,
    legend_above,
    log2_ticks,
    name_layer_colours,
    over_seeds,
    pick,
    save,
    start_at_zero,
)
from tsae.table import read_table

table = read_table(snakemake.input.baselines)
CURVES = {"residual_unigram_cosine": "-", "residual_other_cosine": "--"}

fig, (ax,) = figure(1, height=2.8)
for metric, style in CURVES.items():
    rows = pick(table, "residuals", metric)
    for layer, colour in name_layer_colours(layers_of(rows)).items():
        curve = over_seeds(rows[rows["layer"] == layer], "at")
        label = f"layer {layer}" if style == "-" else None
        ax.errorbar(curve.index, curve["value"], yerr=bars(curve), fmt=f"o{style}", color=colour, label=label)
log2_ticks(ax, rows["at"])
ax.set_xlabel("context length (tokens, upper edge of a bin)")
ax.set_ylabel("cosine similarity of a residual\nto a unigram residual (mean)")
start_at_zero(ax)
ax.set_ylim(top=1)
legend_above(fig, ax, key("its own token"), key("another token", linestyle="--"), columns=5)
save(fig, snakemake.output)
