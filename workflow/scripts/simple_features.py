"""How many features are simple: by the direction of their decoder row, and by what they fire on (C11)."""

from tsae.plots import draw_curve, grid, headline_families, key, layers_of, legend_above, line_of, save
from tsae.table import read_table

table = read_table(snakemake.input.headline)
MATCHES = {
    "features_match_unigram": "match a common\nunigram (% of features)",
    "features_match_bigram": "match a common\nbigram (% of features)",
}
MASS = {
    "simple_unigram": "fire on one token\n(% of features)",
    "simple_bigram": "fire on one bigram\n(% of features)",
}
SIMILAR = 0.4  # the lower end of what the authors call similar
layers = layers_of(table)
# A table of an older run has no matches.
panels_of = {
    metric: of for metric, of in (MATCHES | MASS).items() if metric in MASS or (table["metric"] == metric).any()
}

fig, panels = grid(len(panels_of), len(layers), height=1.7, sharey=True)
for row, (metric, of) in zip(panels, panels_of.items(), strict=True):
    for ax, layer in zip(row, layers, strict=True):
        threshold = SIMILAR if metric in MATCHES else snakemake.params.simple_threshold
        ax.axvline(threshold, color="0.25", lw=0.8, ls="--", zorder=1)
        for name, subject in headline_families(table, snakemake.params).items():
            rows = table[(table["layer"] == layer) & (table["subject"] == subject) & (table["metric"] == metric)]
            draw_curve(ax, rows, "at", 100, **line_of(name))
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 101)
        ax.set_xlabel("cosine similarity ≥" if metric in MATCHES else "share of activation mass ≥")
    row[0].set_ylabel(of, fontsize="small")
for ax, layer in zip(panels[0], layers, strict=True):
    ax.set_title(f"layer {layer}")
legend_above(fig, panels[0][0], key("threshold of simple", lw=0.8, ls="--"))
save(fig, snakemake.output, table)
