"""Features of one token or one bigram, by the direction of their decoder row and by what they fire on.

Claim C11: a tokenized SAE has fewer simple features than its baseline, here in both forms. Each column counts them in one
way. The two on the left count features by the direction of their decoder row: those whose cosine similarity to some
common unigram residual, or to the residual of some common bigram, is at least 0.4, the lower end of what the authors call
similar. The two on the right count them by what they fire on: among alive features that fire often enough on held-out
tokens to be judged (``simple.min_firings``), those with at least the profile's ``simple.threshold`` of their activation
mass on their top token, or on their top pair of previous and current token. Above are the counts by layer: means over
seeds with the 95% interval of one over features; small dots are seeds, where there are several. Below, for the middle
layer, is how the count depends on the threshold; the dashed line is the one used above, and bands are the range of the
seeds. The authors' published shares are of an older release of GPT-2 SAEs and of another measure, so they are not drawn.
"""

import numpy as np

from tsae.figures.inputs import Drawing, Inputs
from tsae.figures.labels import key, legend_above
from tsae.figures.style import (
    draw_by_layer,
    draw_curve,
    grid,
    headline_families,
    label_layers,
    layers_of,
    line_of,
    start_at_zero,
    style_of,
)

NEEDS = {"category": "Features", "claims": ["C11"], "blocks": {"headline": {}}}
MATCHES = {
    "features_match_unigram": "match a\ncommon unigram",
    "features_match_bigram": "match a\ncommon bigram",
}
MASS = {
    "simple_unigram": "fire on\none token",
    "simple_bigram": "fire on\none bigram",
}
SIMILAR = 0.4  # the lower end of what the authors call similar


def draw(inputs: Inputs) -> Drawing:
    """A column for each way to count: by layer above, by threshold at the middle layer below."""
    table = inputs.table("headline")
    layers = layers_of(table)
    middle = layers[len(layers) // 2]
    # Tables of older runs have no matches.
    shown = {
        metric: of for metric, of in (MATCHES | MASS).items() if metric in MASS or (table["metric"] == metric).any()
    }
    subjects = headline_families(table, inputs.roles)

    fig, (above, below) = grid(2, len(shown), height=2.1)
    for counts, curves, (metric, of) in zip(above, below, shown.items(), strict=True):
        threshold = SIMILAR if metric in MATCHES else inputs.simple_threshold
        for place, (name, subject) in enumerate(subjects.items()):
            rows = table[(table["subject"] == subject) & (table["metric"] == metric)]
            at = rows[np.isclose(rows["at"].astype(float), threshold)]
            offset = 0.18 * (place - (len(subjects) - 1) / 2)
            draw_by_layer(counts, at, layers, offset, 100, **style_of(name))
            draw_curve(curves, rows[rows["layer"] == middle], "at", 100, **line_of(name) | {"label": None})
        curves.axvline(threshold, color="0.25", lw=0.8, ls="--", zorder=1)
        counts.set_title(of, fontsize="small")
        label_layers(counts, layers)
        start_at_zero(counts)
        curves.set_title(f"layer {middle}", fontsize="small")
        curves.set_xlim(0, 1)
        curves.set_ylim(0, 101)
        curves.set_xlabel(
            "cosine similarity ≥" if metric in MATCHES else "share of activation mass ≥", fontsize="small"
        )
    above[0].set_ylabel("features (%)")
    below[0].set_ylabel("features (%)")
    legend_above(fig, above[0], key("threshold of the counts above", lw=0.8, ls="--"))
    return Drawing(fig, (table,))
