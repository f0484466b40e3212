"""The gain by position of the token in its sequence, with permuted rows and a map of the embedding as controls.

Whether a table helps where the context is short, and the residual is mostly about its own token: held-out NMSE of each
SAE divided by that of its baseline at the same layer and seed, by the number of tokens up to and including the
residual's own, without BOS. Below the line at 1 the table helps. In some models the first token after BOS is an
attention sink and unlike all others. Controls, where a profile has them, are those of the figure of training counts:
fixed rows with a trained number per token, a trained linear map of the model's embedding instead of a table, and rows
that were dealt to other tokens at random, which stay fixed or are trained. Markers are ratios of means over seeds; small
dots are seeds, where there are several. Bars are 95% intervals of the ratio, paired: one bootstrap over held-out
documents for both SAEs and, where there are several, over seeds.
"""

from tsae.figures.inputs import Drawing, Inputs
from tsae.figures.labels import legend_above
from tsae.figures.ratios import draw_ratios_by_bin, label_bins
from tsae.figures.style import figure, layers_of

NEEDS = {
    "category": "Reconstruction",
    "claims": ["B2"],
    "blocks": {"headline": {}},
    "optional": ["controls", "expansion"],
    "compares": True,
    "sums": ["headline", "controls", "expansion"],
}
METRIC = "nmse_by_position"


def draw(inputs: Inputs) -> Drawing:
    """A panel for each layer."""
    headline = inputs.table("headline")
    edges = sorted(headline.loc[headline["metric"] == METRIC, "at"].unique())
    fig, axes = figure(len(layers_of(headline)), height=2.6, sharey=True)
    draw_ratios_by_bin(axes, inputs, METRIC, edges)
    for ax in axes:
        label_bins(ax, [_name_of(edge) for edge in edges])
    axes[0].set_ylabel("NMSE / baseline's")
    fig.supxlabel("context length (tokens, the token itself included)", fontsize="medium")
    legend_above(fig, max(axes, key=lambda ax: len(ax.containers)))
    return Drawing(fig, (headline,))


def _name_of(upper: float) -> str:
    """The name of a bin of context lengths by its upper edge, a power of two."""
    return f"{upper:g}" if upper <= 2 else f"{upper / 2 + 1:g}\u2013{upper:g}"
