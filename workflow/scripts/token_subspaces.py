"""How much of a residual lies along its own token's unigram residual, by length of n-grams and of contexts (C12)."""

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
PANELS = {
    "ngram": ("common n-grams", "tokens of the n-gram"),
    "residual": ("held-out text", "context length (tokens, upper edge of a bin)"),
}
LINES = {"unigram": "-", "other": "--"}
# A table of an older run has no n-grams.
shown = [name for name in PANELS if name == "residual" or (table["metric"] == f"{name}_unigram_cosine").any()]

fig, axes = figure(len(shown), height=2.8, sharey=True)
for ax, name in zip(axes, shown, strict=True):
    title, label = PANELS[name]
    for other, style in LINES.items():
        rows = pick(table, "residuals", f"{name}_{other}_cosine")
        for layer, colour in name_layer_colours(layers_of(rows)).items():
            curve = over_seeds(rows[rows["layer"] == layer], "at")
            of_layer = f"layer {layer}" if style == "-" else None
            ax.errorbar(curve.index, curve["value"], yerr=bars(curve), fmt=f"o{style}", color=colour, label=of_layer)
    if name == "residual":
        log2_ticks(ax, rows["at"])
    else:
        ax.set_xticks(sorted(rows["at"].unique()))
    ax.set_xlabel(label)
    ax.set_title(title)
    start_at_zero(ax)
    ax.set_ylim(top=1)
axes[0].set_ylabel("cosine similarity of a residual\nto a unigram residual")
legend_above(fig, axes[0], key("its own token"), key("another token", linestyle="--"), columns=5)
save(fig, snakemake.output)
