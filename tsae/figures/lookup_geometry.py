"""Learned token-biases against their unigram residuals and each other, centred and by training count.

Claims C7 and C8: similar tokens have similar token-biases, and training moves a token-bias little from its start. Above,
solid lines are the share of learned token-biases whose cosine similarity to their own unigram residual (a), or to the
nearest other token-bias (b), is at least the value on the axis: means over seeds, one colour per layer. Only tokens seen
often in training count, because a row never seen stays at its start. Dotted lines are the floor: the similarity to the
unigram residual of a random other token. A curve crosses the horizontal line at 50% at its median; the vertical lines
are the authors' medians over all tokens of GPT-2, from their comments. All rows share a large mean, which alone makes
cosines high. So the panels below show the same two medians with the mean of the rows subtracted (filled markers) and not
(hollow), by how often the token was seen in training. The dotted lines there are another token's unigram residual (c),
and the similarity of unigram residuals to their own nearest (d), from which token-biases start. Bars are 95% intervals
of the median for one seed, with tokens taken as independent.
"""

from typing import Any

import pandas as pd

from tsae.claims.ledger import load_ledger, published_range
from tsae.figures.inputs import Drawing, Inputs
from tsae.figures.style import (
    PUBLISHED,
    bars,
    grid,
    key,
    layers_of,
    legend_above,
    name_layer_colours,
    over_seeds,
    pick,
)

NEEDS = {
    "category": "Token-biases",
    "claims": ["C7", "C8"],
    "blocks": {"headline": {"has": ["tokenized"]}},
    "tables": ["baselines"],
    "files": ["claims", "published"],
}
PANELS = {
    "token_bias_unigram_cosine": ("its own unigram residual", "C8", "cosine of token-bias and unigram residual"),
    "token_bias_neighbour_cosine": ("the nearest other token-bias", "C7", "cosine to the nearest other token-bias"),
}
FORMS: dict[str, dict[str, Any]] = {
    "_by_count": {"lw": 0.7, "markersize": 2.5, "mfc": "white"},
    "_centred_by_count": {},
}


def draw(inputs: Inputs) -> Drawing:
    """A row of panels of all token-biases and, if the run has them, one of medians by count."""
    table, baselines = inputs.table("headline"), inputs.table("baselines")
    tokenized = inputs.roles["tokenized"]
    ledger = load_ledger(inputs.file("claims"), inputs.file("published"))
    # References of the medians by count: another token's unigram residual, and a unigram residual's nearest.
    references = {
        "token_bias_unigram_cosine": (table, tokenized, "token_bias_other_cosine"),
        "token_bias_neighbour_cosine": (baselines, "unigram-residuals", "unigram_neighbour_cosine"),
    }
    colours = name_layer_colours(layers_of(table))
    # Tables of older runs have no medians by count.
    by_count = table["metric"].str.endswith("_by_count") & table["metric"].str.startswith("token_bias")
    edges = sorted(table.loc[by_count, "at"].dropna().unique())

    fig, panels = grid(1 + bool(edges), len(PANELS), height=2.5, sharey="row")
    for ax, (metric, (what, claim, check)) in zip(panels[0], PANELS.items(), strict=True):
        own = pick(table, tokenized, f"{metric}_share")
        floor = pick(table, tokenized, "token_bias_other_cosine_share")
        often = own["min_count"].max()  # missing if every training failed
        ax.axvline(published_range(ledger, claim, check)[0], color=PUBLISHED, lw=0.8, zorder=1)
        ax.axhline(50, color="0.85", lw=0.6, zorder=0)
        for layer, colour in colours.items():
            for rows, style, label in ((own, "-", f"layer {layer}"), (floor, ":", None)):
                chosen = rows[(rows["layer"] == layer) & (rows["min_count"] == often)]
                if chosen.empty:
                    continue
                curve = chosen.groupby("at")["value"].mean() * 100
                ax.plot(curve.index, curve, style, color=colour, label=label)
        ax.set_xlabel(f"cosine similarity to {what} ≥")
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 101)
    panels[0][0].set_ylabel(
        "token-biases (%)" if pd.isna(often) else f"token-biases of tokens\nseen ≥ {often} times (%)"
    )
    for ax, metric in zip(panels[-1] if edges else (), PANELS, strict=bool(edges)):
        for of, style in ((references[metric], ":"), ((table, tokenized, metric), "-")):
            rows = of[0][of[0]["subject"] == of[1]]
            for form, marks in FORMS.items():
                for layer, colour in colours.items():
                    chosen = rows[(rows["metric"] == of[2] + form) & (rows["layer"] == layer)]
                    median = over_seeds(chosen, "at")
                    x = [edges.index(at) for at in median.index]
                    ax.errorbar(x, median["value"], yerr=bars(median), fmt=f"o{style}", color=colour, **marks)
        ax.set_xticks(range(len(edges)), [f"{edge:g}" for edge in edges])
        ax.set_xlabel("times that the token was seen in training,\nat least (lower edge of a bin)")
        ax.set_ylim(top=1.03)
    if edges:
        panels[1][0].set_ylabel("cosine similarity\n(median)")
    entries = [
        key("floor (d: of unigram residuals)" if edges else "another token's (floor)", ls=":"),
        key("published median (GPT-2)", PUBLISHED, lw=0.8),
    ]
    if edges:
        entries += [key("centred", marker="o"), key("not centred", marker="o", **FORMS["_by_count"])]
    legend_above(fig, panels[0][0], *entries, columns=4)
    return Drawing(fig, (table,))
