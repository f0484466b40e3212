"""NMSE, CE added and dead features by what the table's rows are, how long they start, and what the encoder sees.

Claim B1. A row of each panel is a kind of table: unigram residuals, as in the paper, conditional means, the mean training
residual of each token, or means of bigrams, where frequent pairs of tokens have a row of their own; at half or at whole length at the start; with an encoder that sees the residual, or the remainder, which
is the residual less the token's row. Hollow markers are tables that stay as they start, full ones tables that are trained.
Markers are means over seeds; small dots are seeds, where there are several. Bars are the 95% interval of one seed (the mean of
the seeds' own) over held-out documents. The line is the baseline. The axes do not begin at zero.
"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from tsae.figures.inputs import Drawing, Inputs
from tsae.figures.labels import key, legend_above
from tsae.figures.style import COLOURS, bars, draw_seeds, figure, over_seeds
from tsae.profile.families import BASELINE

NEEDS = {
    "category": "Reconstruction",
    "claims": ["B1"],
    "blocks": {"tables": {"has": ["table", "baseline"], "varies": "rows"}},
}
PANELS = {"nmse": ("NMSE", 1), "ce_added": ("CE added (%)", 100), "dead_heldout": ("dead, held-out (%)", 100)}
ROWS = {
    "unigram": "unigram residuals",
    "conditional": "conditional means",
    "bigram": "means of bigrams",
    "permuted": "permuted unigram residuals",
}
COLOUR = {
    "unigram": COLOURS["unigram residuals"],
    "conditional": COLOURS["conditional means"],
    "bigram": COLOURS["bigrams"],
    "permuted": COLOURS["random directions"],
}
KIND = ["encoder_input", "rows", "lookup_scale"]
APART = 0.14  # a frozen and a trained table of one kind, in rows


def draw(inputs: Inputs) -> Drawing:
    """A panel for each metric at the first layer of the block."""
    table = inputs.table("tables")
    table = table[table["layer"] == table["layer"].min()]
    tokenized = table[table["table"].isin(("fixed", "learned"))]
    kinds = sorted(tokenized[KIND].drop_duplicates().itertuples(index=False, name=None), key=_order)
    fig, axes = figure(len(PANELS), height=0.6 + 0.3 * len(kinds), sharey=True)
    for ax, (metric, (name, scale)) in zip(axes, PANELS.items(), strict=True):
        rows = table[table["metric"] == metric]
        _draw_kinds(ax, rows, kinds, scale)
        baseline = rows.loc[rows["table"] == "none", "value"]
        if len(baseline):
            ax.axvline(baseline.mean() * scale, color=COLOURS[BASELINE], lw=0.8, zorder=1, label="baseline")
        ax.set_xlabel(name)
    axes[0].set_yticks(range(len(kinds)), [_name_of(*kind) for kind in kinds], fontsize="x-small")
    axes[0].set_ylim(len(kinds) - 0.5, -0.5)
    styles = {"table as it starts": "none", "table trained": "0.25"}
    legend_above(fig, axes[0], *(key(label, "0.25", marker="o", ls="", mfc=fill) for label, fill in styles.items()))
    return Drawing(fig, (table,))


def _draw_kinds(ax: Axes, rows: pd.DataFrame, kinds: list[tuple[str, str, float]], scale: float) -> None:
    """Draw each kind of table in a row of its own."""
    for place, (encoder_input, of, lookup_scale) in enumerate(kinds):
        alike = rows[(rows["encoder_input"] == encoder_input) & (rows["rows"] == of)]
        alike = alike[alike["lookup_scale"] == lookup_scale]
        for table, offset, fill in (("fixed", -APART, "none"), ("learned", APART, COLOUR[of])):
            seeds = alike[alike["table"] == table]
            if seeds.empty:
                continue
            found = over_seeds(seeds, "table")
            style: dict[str, Any] = {"fmt": "o", "color": COLOUR[of], "mfc": fill}
            ax.errorbar(found["value"] * scale, [place + offset], xerr=bars(found, scale), **style)
            if len(seeds) > 1:
                draw_seeds(ax, seeds["value"] * scale, [place + offset] * len(seeds))


def _order(kind: tuple[str, str, float]) -> tuple[bool, bool, float]:
    encoder_input, rows, lookup_scale = kind
    return encoder_input != "residual", rows != "unigram", lookup_scale


def _name_of(encoder_input: str, rows: str, lookup_scale: float) -> str:
    return f"{ROWS[rows]} x {lookup_scale:g},\nencoder sees the {encoder_input.replace('_', ' ')}"
