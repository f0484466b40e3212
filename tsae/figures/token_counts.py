"""The gain by training count of the token, with permuted rows and a map of the embedding as controls.

Where a table helps: held-out NMSE of each SAE divided by that of its baseline at the same layer and seed, by how often
the token was seen in training. Below the line at 1 the table helps. The lower panels are the share of held-out tokens in
each bin. A learned table can only learn the rows of tokens that it sees, so the bin of unseen tokens shows what its
initial rows are worth. Controls, where a profile has them, show what a table must know: fixed rows with a trained number
per token, a trained linear map of the model's embedding instead of a table, and rows that were dealt to other tokens at
random, which stay fixed or are trained. Markers are ratios of means over seeds; small dots are seeds, where there are
several. Bars are 95% intervals of the ratio, paired: one bootstrap over held-out documents for both SAEs and, where there
are several, over seeds.
"""

from tsae.figures.inputs import Drawing, Inputs
from tsae.figures.labels import legend_above
from tsae.figures.ratios import draw_ratios_by_bin, label_bins
from tsae.figures.style import grid, layers_of

NEEDS = {
    "category": "Reconstruction",
    "blocks": {"headline": {}},
    "optional": ["controls", "expansion"],
    "tables": ["baselines"],
    "compares": True,
    "sums": ["headline", "controls", "expansion"],
}
METRIC = "nmse_by_count"


def draw(inputs: Inputs) -> Drawing:
    """A column of panels for each layer, ratios above shares."""
    headline, baselines = inputs.table("headline"), inputs.table("baselines")
    shares = baselines[baselines["metric"] == "heldout_share_by_count"]
    edges = sorted(shares["at"].unique())  # those of all bins: a share may be zero
    layers = layers_of(headline)
    fig, (above, below) = grid(2, len(layers), height=2.1, sharex=True, sharey="row", height_ratios=[5, 1])
    draw_ratios_by_bin(above, inputs, METRIC, edges)
    names = [_name_of(a, b) for a, b in zip(edges, [*edges[1:], None], strict=True)]
    for strip, layer in zip(below, layers, strict=True):
        share = shares[shares["layer"] == layer].set_index("at")["value"].reindex(edges) * 100
        strip.bar(range(len(edges)), share, color="0.75", width=0.7)
        label_bins(strip, names)
    above[0].set_ylabel("NMSE / baseline's")
    below[0].set_ylabel("held-out\ntokens (%)")
    fig.supxlabel("times that the token was seen in training", fontsize="medium")
    legend_above(fig, max(above, key=lambda ax: len(ax.containers)))
    return Drawing(fig, (headline,))


def _name_of(lower: float, upper: float | None) -> str:
    """The name of a bin of counts; `upper` is the next bin's edge."""
    if upper is None:
        return f"{lower:g}+"
    return f"{lower:g}" if upper == lower + 1 else f"{lower:g}\u2013{upper - 1:g}"
