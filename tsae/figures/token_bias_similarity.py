"""How many features resemble a token-bias or a unigram residual, and controls.

Claims C4 and C5: many features of a baseline only repeat a token. Curves give the share of alive features, of the
baseline (above) and of the tokenized SAE (below), whose most similar token-bias has at least the cosine similarity on the
axis. The token-biases are those of the tokenized SAE in the paper's form, for tokens seen in training. Other curves are
for the unigram residuals that they started from, so the distance between the two is the effect of training (C5), and for
three controls with as many rows: the mean training residual of each token, random vectors with the mean and covariance
of residuals, and random directions. Bands are the range of the seeds, and grey marks the authors' band of "similar", 0.4
to 0.9. The last column shows the share of the baseline's features in that band against the expansion, of all features
(above) and of alive ones (below); markers are means over seeds, small dots seeds, and bars the 95% interval of one seed
over features. The grey circle and dashed line are from the authors' comments on GPT-2: their 64x baseline, and their
highest value at smaller expansions.
"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from tsae.claims.ledger import load_ledger, published_range
from tsae.figures.inputs import Drawing, Inputs
from tsae.figures.labels import legend_above
from tsae.figures.style import (
    COLOURS,
    PUBLISHED,
    SHORT,
    draw_against,
    draw_curve,
    grid,
    headline_families,
    layers_of,
    log2_ticks,
)

NEEDS = {
    "category": "Token-biases",
    "claims": ["C4", "C5"],
    "blocks": {
        "headline": {},
        "expansion": {
            "has": ["table", "baseline"],
            "varies": "expansion",
            "by_family": True,
            "against": ["expansion"],
        },
    },
    "compares": True,
    "files": ["claims", "published"],
}
SEEN = 1  # least training count of the compared rows
BAND = (0.4, 0.9)  # the authors' "similar"
SIMILAR = Patch(color="0.93", lw=0, label="similar, as the authors say: 0.4 to 0.9")
TO: dict[str, tuple[str, Any]] = {
    "token_bias": ("token-biases", "-"),
    "unigram": ("unigram residuals", "--"),
    "conditional_mean": ("conditional means", "-."),
    "gaussian": ("random residuals", (0, (1, 1))),
    "random": ("random directions", ":"),
}
PUBLISHED_EXPANSION = 64


def draw(inputs: Inputs) -> Drawing:
    """A row for the baseline and one for the tokenized SAE; the last columns are of baselines by expansion."""
    headline, expansion = inputs.table("headline"), inputs.table("expansion")
    # Tables of older runs have no controls; without a trained tokenized SAE there are no token-biases.
    measured = set(headline["metric"])
    targets = [name for name in TO if name in ("token_bias", "unigram") or f"feature_{name}_similar" in measured]
    ledger = load_ledger(inputs.file("claims"), inputs.file("published"))
    published_share, _ = published_range(ledger, "C4", "similar features, 64x baseline")
    _, published_most = published_range(ledger, "C4", "similar features, 4x baseline")  # "up to" at smaller expansions
    layers, baselines = layers_of(headline), expansion[expansion["table"] == "none"]
    by_expansion = layers_of(baselines)

    subjects = headline_families(headline, inputs.roles)
    subjects = {name: subjects[name] for name in list(subjects)[:2]}
    fig, panels = grid(2, len(layers) + len(by_expansion), height=2.1, sharey=True)
    for row, (family, subject) in zip(panels, subjects.items(), strict=True):
        for ax, layer in zip(row, layers, strict=False):
            ax.axvspan(*BAND, color=SIMILAR.get_facecolor(), lw=0, zorder=-1)
            rows = headline[(headline["subject"] == subject) & (headline["layer"] == layer)]
            for target in targets:
                name, line = TO[target]
                curve = rows[(rows["metric"] == f"feature_{target}_similarity_alive") & (rows["min_count"] == SEEN)]
                draw_curve(ax, curve, "at", 100, color=COLOURS[name], linestyle=line, label=name)
            _say_what_is_not_measured(ax, rows[rows["metric"] != "failed"])
            ax.set_title(f"layer {layer}")
            ax.set_xlim(0, 1)
            if row is panels[-1]:
                ax.set_xlabel("cosine similarity ≥")
        row[0].set_ylabel(f"{SHORT[family]}:\nalive features (%)")
    for row, (suffix, of) in zip(panels, (("", "all"), ("_alive", "alive")), strict=True):
        for ax, layer in zip(row[len(layers) :], by_expansion, strict=True):
            saes = baselines[baselines["layer"] == layer]
            rows = saes[saes["min_count"] == SEEN]
            _say_what_is_not_measured(ax, rows)
            for target in targets:
                name, line = TO[target]
                similar = rows[rows["metric"] == f"feature_{target}_similar{suffix}"]
                draw_against(ax, similar, "expansion", 100, color=COLOURS[name], marker="o", ls=line)
            if of == "all":
                most, share = 100 * published_most, 100 * published_share
                label = f"published, GPT-2: up to {most:.0f}% below {PUBLISHED_EXPANSION}x"
                ax.axhline(most, color=PUBLISHED, lw=0.8, ls="--", zorder=1, label=label)
                label = f"published, GPT-2: {share:.0f}% at {PUBLISHED_EXPANSION}x"
                ax.plot(PUBLISHED_EXPANSION, share, "o", mfc="none", color=PUBLISHED, label=label)
            log2_ticks(ax, [*saes["expansion"], PUBLISHED_EXPANSION])
            ax.tick_params("x", labelsize="x-small")
            ax.set_title(f"layer {layer}, baseline")
            ax.set_ylabel(f"similar, of {of} features (%)")
            if row is panels[-1]:
                ax.set_xlabel("features / d_model")
    for ax in panels[0]:
        ax.set_ylim(0, 100)
    legend_above(fig, panels[0][0], SIMILAR)
    return Drawing(fig, (headline, expansion))


def _say_what_is_not_measured(ax: Axes, rows: pd.DataFrame) -> None:
    """Say so if there is no table to compare with, because the tokenized SAE's training failed."""
    if len(rows) and not rows["metric"].str.startswith("feature_token_bias").any():
        ax.text(0.5, 0.97, "to token-biases:\nnot measured", transform=ax.transAxes, ha="center", va="top", color="red")
