"""How close a residual stays to its token's unigram residual, by length of n-gram and of context.

Claim C12: a residual keeps a large component along its token's unigram residual, and less of it with depth and in
longer n-grams. Solid lines are the cosine similarity between a residual and the unigram residual of its own token, one
line per layer. In (a), where the run has them, the residuals are those of common n-grams alone, against their length in
tokens, and lines are medians. For held-out text, lines are means against the number of tokens up to and including the
residual's own, without BOS: a point at 8 stands for lengths 5 to 8, and the point at 1 for first tokens alone. Dashed
lines are the floor: the same with the unigram residual of another token, because residuals share a large mean. In some
models the first token after BOS is an attention sink and unlike all others. Bars are 95% intervals, over n-grams taken as
independent, and over held-out documents. The distance between the solid and the dashed line of a colour is what the token
alone says about the residual. The y axis need not begin at zero.
"""

from tsae.figures.inputs import Drawing, Inputs
from tsae.figures.labels import label_ends, legend_above
from tsae.figures.style import bars, figure, layers_of, log2_ticks, name_layer_colours, over_seeds, pick

NEEDS = {"category": "Token subspaces", "claims": ["C12"], "tables": ["baselines"]}
PANELS = {
    "ngram": ("common n-grams", "tokens of the n-gram"),
    "residual": ("held-out text", "context length (tokens, upper edge of a bin)"),
}
LINES = {"unigram": ("-", "own token"), "other": ("--", "another token")}
MARKERS = "osD^vP"


def draw(inputs: Inputs) -> Drawing:
    """A panel for n-grams, if the run has them, and one for held-out text."""
    table = inputs.table("baselines")
    # Tables of older runs have no n-grams.
    shown = [name for name in PANELS if name == "residual" or (table["metric"] == f"{name}_unigram_cosine").any()]

    fig, axes = figure(len(shown), height=2.8, sharey=True)
    labels: dict[str, str] = {}
    for ax, name in zip(axes, shown, strict=True):
        title, label = PANELS[name]
        for other, (style, whose) in LINES.items():
            rows = pick(table, "residuals", f"{name}_{other}_cosine")
            for place, (layer, colour) in enumerate(name_layer_colours(layers_of(rows)).items()):
                curve = over_seeds(rows[rows["layer"] == layer], "at")
                text = f"layer {layer}, {whose}"
                fmt = f"{MARKERS[place % len(MARKERS)]}{style}"
                ax.errorbar(curve.index, curve["value"], yerr=bars(curve), fmt=fmt, color=colour, label=text)
                labels[text] = text
        if name == "residual":
            log2_ticks(ax, rows["at"])
        else:
            ax.set_xticks(sorted(rows["at"].unique()))
        ax.set_xlabel(label)
        ax.set_title(title)
    axes[0].set_ylabel("cosine similarity of a residual\nto a unigram residual")
    legend_above(fig, axes[0], without=label_ends(axes, labels))
    return Drawing(fig)
