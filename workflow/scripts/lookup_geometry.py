"""Learned token-biases: cosine similarity to their own unigram residual (C8) and to the nearest other one (C7)."""

import seaborn as sns

from tsae.plots import PUBLISHED, figure, legend_above, pick, save
from tsae.table import read_table

table = read_table(snakemake.input.metrics)
PANELS = {
    "token_bias_unigram_cosine": ("to its own unigram residual", 0.91),
    "token_bias_neighbour_cosine": ("to the nearest other token-bias", 0.89),
}

fig, axes = figure(len(PANELS), width=3.8)
for ax, (metric, (title, published)) in zip(axes, PANELS.items(), strict=True):
    rows = pick(table, snakemake.params.tokenized, f"{metric}_share")
    layers, counts = sorted(rows["layer"].unique()), sorted(rows["min_count"].unique())
    ax.axvline(published, color=PUBLISHED, lw=0.8)
    ax.text(
        published - 0.01, 30, "published median", color=PUBLISHED, rotation=90, ha="right", va="center", fontsize=6.5
    )
    ax.axhline(50, color="0.85", lw=0.6, zorder=-1)
    floor = pick(table, snakemake.params.tokenized, "token_bias_other_cosine_share")
    curves = [
        (rows, counts[-1], "-", ""),
        (floor, counts[-1], ":", ", another token"),
    ]
    for layer, colour in zip(layers, sns.color_palette("viridis", len(layers)), strict=True):
        for shown, count, style, label in curves:
            chosen = shown[(shown["layer"] == layer) & (shown["min_count"] == count)]
            curve = chosen.groupby("at")["value"].mean() * 100
            ax.plot(curve.index, curve, style, color=colour, label=f"layer {layer}{label}")
    ax.set_xlabel(f"cosine similarity {title} ≥")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 101)
axes[0].set_ylabel(f"token-biases of tokens seen ≥ {counts[-1]} times (%)", fontsize="small")
legend_above(fig, axes[0])
save(fig, snakemake.output)
