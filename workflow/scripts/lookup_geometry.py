"""Learned token-biases: cosine similarity to their own unigram residual (C8) and to the nearest other one (C7)."""

import pandas as pd

from tsae.ledger import load_ledger, published_range
from tsae.plots import PUBLISHED, figure, key, layers_of, legend_above, name_layer_colours, pick, save
from tsae.table import read_table

table = read_table(snakemake.input.headline)
ledger = load_ledger(snakemake.input.ledger, snakemake.input.published)
PANELS = {
    "token_bias_unigram_cosine": ("to its own unigram residual", "C8", "cosine of token-bias and unigram residual"),
    "token_bias_neighbour_cosine": ("to the nearest other token-bias", "C7", "cosine to the nearest other token-bias"),
}

fig, axes = figure(len(PANELS), sharey=True)
for ax, (metric, (title, claim, check)) in zip(axes, PANELS.items(), strict=True):
    own = pick(table, snakemake.params.tokenized, f"{metric}_share")
    floor = pick(table, snakemake.params.tokenized, "token_bias_other_cosine_share")
    often = own["min_count"].max()  # missing if every training failed
    ax.axvline(published_range(ledger, claim, check)[0], color=PUBLISHED, lw=0.8, zorder=1)
    ax.axhline(50, color="0.85", lw=0.6, zorder=0)
    for layer, colour in name_layer_colours(layers_of(table)).items():
        for rows, style, label in ((own, "-", f"layer {layer}"), (floor, ":", None)):
            chosen = rows[(rows["layer"] == layer) & (rows["min_count"] == often)]
            if chosen.empty:
                continue
            curve = chosen.groupby("at")["value"].mean() * 100
            ax.plot(curve.index, curve, style, color=colour, label=label)
    ax.set_xlabel(f"cosine similarity {title} ≥")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 101)
axes[0].set_ylabel("token-biases (%)" if pd.isna(often) else f"token-biases of tokens\nseen ≥ {often} times (%)")
marks = (
    key("another token's (floor)", ls=":"),
    key("published median (GPT-2)", PUBLISHED, lw=0.8),
)
legend_above(fig, axes[0], *marks, columns=5)
save(fig, snakemake.output, table)
