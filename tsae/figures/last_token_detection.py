"""Token-biases, unigram residuals and conditional means as detectors of the last token.

Claim C9: token-biases name the token of a residual better than the unigram residuals they started from. The y axis is how
often the row of a table with the highest cosine similarity to a held-out residual is that of its own token: for the last
row of each sequence (a), and for a sample of all positions (b). Token-biases are those of the tokenized SAE in the
paper's form and of the one whose encoder sees the remainder. Conditional means, the mean training residual of each
token, need no SAE and serve as comparison. Large markers are means over seeds with the 95% interval of one over held-out
documents (the mean of the seeds' own); small dots are seeds, where there are several. Shaded ranges, in each table's
colour, are the authors' for GPT-2, layers 5 to 10. The y axis need not begin at zero. Stars, if the profile has any, are the token-biases of SAEs of the
same k and size that the authors released.
"""

from typing import Any

from tsae.claims.ledger import load_ledger, published_range
from tsae.figures.inputs import Drawing, Inputs
from tsae.figures.labels import key, label_ends, legend_above, readable
from tsae.figures.style import (
    COLOURS,
    MARKERS,
    RELEASED,
    draw_by_layer,
    figure,
    label_layers,
    layers_of,
    of_the_same_size,
    pick,
)
from tsae.profile.families import REMAINDER

NEEDS = {
    "category": "Token-biases",
    "claims": ["C9"],
    "blocks": {"headline": {"has": ["tokenized"]}},
    "optional": ["released"],
    "tables": ["baselines"],
    "files": ["claims", "published"],
}
PANELS = {
    "last_token_detection": "last row of a sequence",
    "last_token_detection_any_position": "any position",
}
TABLES: dict[str, dict[str, Any]] = {
    "token-biases": {"marker": "D", "color": COLOURS["token-biases"]},
    "token-biases, remainder": {"marker": MARKERS[REMAINDER], "color": COLOURS[REMAINDER]},
    "unigram residuals": {"marker": "o", "color": COLOURS["unigram residuals"]},
    "conditional means": {"marker": "s", "color": COLOURS["conditional means"]},
}


def draw(inputs: Inputs) -> Drawing:
    """A panel for each choice of positions."""
    headline, baselines = inputs.table("headline"), inputs.table("baselines")
    tables = {"token-biases": (headline, inputs.roles["tokenized"])}
    if "remainder" in inputs.roles:
        tables["token-biases, remainder"] = (headline, inputs.roles["remainder"])
    tables |= {
        "unigram residuals": (baselines, "unigram-residuals"),
        "conditional means": (baselines, "conditional-means"),
    }
    layers = layers_of(baselines)
    released = of_the_same_size(inputs.together("released"), headline)
    released = released[released["k"].isin(headline["k"]) & (released["table"] != "none")]
    ledger = load_ledger(inputs.file("claims"), inputs.file("published"))
    published = {
        name: published_range(ledger, "C9", f"detection with {name}") for name in ("token-biases", "unigram residuals")
    }

    fig, axes = figure(len(PANELS), sharey=True)
    for ax, (metric, title) in zip(axes, PANELS.items(), strict=True):
        for place, (name, (table, subject)) in enumerate(tables.items()):
            offset = 0.13 * (place - (len(tables) - 1) / 2)
            draw_by_layer(ax, pick(table, subject, metric), layers, offset, 100, **TABLES[name], label=name)
        for _, theirs in released[released["metric"] == metric].groupby("subject"):
            draw_by_layer(ax, theirs, layers, -0.34, 100, color=COLOURS["token-biases"], **RELEASED)
        label_layers(ax, layers)
        ax.set_title(title)
    for name, (low, high) in published.items():
        axes[0].axhspan(low * 100, high * 100, color=COLOURS[name], alpha=0.15, lw=0, zorder=0)
        # At the end of the range that is further from what was measured.
        of, subject = tables[name]
        above = pick(of, subject, "last_token_detection")["value"].mean() > (low + high) / 2
        style = {"color": readable(COLOURS[name]), "fontsize": "x-small", "va": "bottom" if above else "top"}
        axes[0].text(-0.47, 100 * (low if above else high), f"published (GPT-2): {name}", **style)
    axes[0].set_ylim(top=100)
    axes[0].set_ylabel("last token named (%)")
    named = label_ends(axes, {name: name for name in TABLES})
    marks = [key("token-biases released by the authors", **RELEASED)] if len(released) else []
    legend_above(fig, axes[0], *marks, without=named)
    return Drawing(fig, (headline,))
