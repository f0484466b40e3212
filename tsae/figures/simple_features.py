"""Features of one token or one bigram, by the direction of their decoder row and by what they fire on.

Claim C11: a tokenized SAE has fewer simple features than its baseline, here in both forms, one column per layer. The two
rows above count features by the direction of their decoder row: the share whose cosine similarity to some common unigram
residual, or to the residual of some common bigram, is at least the value on the axis. The dashed line is the lower end of
what the authors call similar. The two rows below count them by what they fire on. For every alive feature that fires
often enough on held-out tokens to be judged (``simple.min_firings``), the measure is the share of its activation mass
on its top token, or on its top pair of previous and current token. Curves give the share of features at or above the value on
the axis, and the dashed line is the threshold from which a feature is called simple here. Lines are means over seeds and
bands their range. The authors' published shares are of an older release of GPT-2 SAEs and of another measure, so they are
not drawn.
"""

from tsae.figures.inputs import Drawing, Inputs
from tsae.figures.style import draw_curve, grid, headline_families, key, layers_of, legend_above, line_of

NEEDS = {"category": "Features", "claims": ["C11"], "blocks": {"headline": {}}}
MATCHES = {
    "features_match_unigram": "match a common\nunigram (% of features)",
    "features_match_bigram": "match a common\nbigram (% of features)",
}
MASS = {
    "simple_unigram": "fire on one token\n(% of features)",
    "simple_bigram": "fire on one bigram\n(% of features)",
}
SIMILAR = 0.4  # the lower end of what the authors call similar


def draw(inputs: Inputs) -> Drawing:
    """A row of panels for each count, a column for each layer."""
    table = inputs.table("headline")
    layers = layers_of(table)
    # Tables of older runs have no matches.
    panels_of = {
        metric: of for metric, of in (MATCHES | MASS).items() if metric in MASS or (table["metric"] == metric).any()
    }

    fig, panels = grid(len(panels_of), len(layers), height=1.7, sharey=True)
    for row, (metric, of) in zip(panels, panels_of.items(), strict=True):
        for ax, layer in zip(row, layers, strict=True):
            threshold = SIMILAR if metric in MATCHES else inputs.simple_threshold
            ax.axvline(threshold, color="0.25", lw=0.8, ls="--", zorder=1)
            for name, subject in headline_families(table, inputs.roles).items():
                rows = table[(table["layer"] == layer) & (table["subject"] == subject) & (table["metric"] == metric)]
                draw_curve(ax, rows, "at", 100, **line_of(name))
            ax.set_xlim(0, 1)
            ax.set_ylim(0, 101)
            ax.set_xlabel("cosine similarity ≥" if metric in MATCHES else "share of activation mass ≥")
        row[0].set_ylabel(of, fontsize="small")
    for ax, layer in zip(panels[0], layers, strict=True):
        ax.set_title(f"layer {layer}")
    legend_above(fig, panels[0][0], key("threshold of simple", lw=0.8, ls="--"))
    return Drawing(fig, (table,))
