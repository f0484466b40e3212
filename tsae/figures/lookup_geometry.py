"""Learned token-biases against their unigram residuals and each other, centred and by training count.

Claims C7 and C8: similar tokens have similar token-biases, and training moves a token-bias little from its start. Above
are histograms of the cosine similarity of learned token-biases to their own unigram residual (a), or to the nearest other
token-bias (b): means over seeds, one colour per layer. Only tokens seen often in training count, because a row never seen
stays at its start. Dotted histograms are the floor: the similarity to the unigram residual of a random other token. Marks
at the top are medians with their 95% intervals, and vertical lines are the authors' medians over all tokens of GPT-2,
from their comments. All rows share a large mean, which alone makes cosines high. So the panels below show the same two
medians with the mean of the rows subtracted (filled markers) and not (hollow), by how often the token was seen in
training. The dotted lines there are another token's unigram residual (c), and the similarity of unigram residuals to
their own nearest (d), from which token-biases start. Bars are 95% intervals of the median for one seed, with tokens taken
as independent.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from tsae.claims.ledger import load_ledger, published_range
from tsae.figures.inputs import Drawing, Inputs
from tsae.figures.labels import key, legend_above, write_ends
from tsae.figures.style import PUBLISHED, bars, grid, layers_of, name_layer_colours, over_seeds, pick

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
FLOOR = "token_bias_other_cosine"
FORMS: dict[str, dict[str, Any]] = {
    "_by_count": {"lw": 0.7, "markersize": 2.5, "mfc": "white"},
    "_centred_by_count": {},
}
CENTRED = {"_by_count": "", "_centred_by_count": ", centred"}
# What solid and dotted lines of the lower panels are.
LINES = {
    "token_bias_unigram_cosine": {"-": "own", ":": "another's"},
    "token_bias_neighbour_cosine": {"-": "token-biases", ":": "unigrams"},
}
EMPTY = 0.5  # share of a bin that is not worth room on the axis (%)


def draw(inputs: Inputs) -> Drawing:
    """A row of panels of all token-biases and, if the run has them, one of medians by count."""
    table, baselines = inputs.table("headline"), inputs.table("baselines")
    tokenized = inputs.roles["tokenized"]
    ledger = load_ledger(inputs.file("claims"), inputs.file("published"))
    # References of the medians by count: another token's unigram residual, and a unigram residual's nearest.
    references = {
        "token_bias_unigram_cosine": (table, tokenized, FLOOR),
        "token_bias_neighbour_cosine": (baselines, "unigram-residuals", "unigram_neighbour_cosine"),
    }
    colours = name_layer_colours(layers_of(table))
    # Tables of older runs have no medians by count.
    by_count = table["metric"].str.endswith("_by_count") & table["metric"].str.startswith("token_bias")
    edges = sorted(table.loc[by_count, "at"].dropna().unique())

    fig, panels = grid(1 + bool(edges), len(PANELS), height=2.4)
    for ax, (metric, (what, claim, check)) in zip(panels[0], PANELS.items(), strict=True):
        published = published_range(ledger, claim, check)[0]
        ax.axvline(published, color=PUBLISHED, lw=0.8, zorder=1)
        often = pick(table, tokenized, f"{metric}_share")["min_count"].max()  # missing if every training failed
        rows = table[(table["subject"] == tokenized) & (table["min_count"] == often)]
        _draw_histograms(ax, rows, metric, colours)
        ax.set_xlabel(f"cosine similarity to {what}")
        ax.set_ylim(0, 112)
        ax.set_yticks(range(0, 101, 20))
        bin_width = f" per {_bin_width(rows, metric):.2g}" if len(rows) else ""
        ax.set_ylabel(f"token-biases (%{bin_width})")
        if len(rows):
            ax.set_title(f"tokens seen ≥ {often} times")
    for ax, metric in zip(panels[-1] if edges else (), PANELS, strict=bool(edges)):
        ends: dict[str, list[tuple[float, float]]] = {}
        for of, style in ((references[metric], ":"), ((table, tokenized, metric), "-")):
            rows = of[0][of[0]["subject"] == of[1]]
            for form, marks in FORMS.items():
                for layer, colour in colours.items():
                    chosen = rows[(rows["metric"] == of[2] + form) & (rows["layer"] == layer)]
                    median = over_seeds(chosen, "at")
                    x = [edges.index(at) for at in median.index]
                    ax.errorbar(x, median["value"], yerr=bars(median), fmt=f"o{style}", color=colour, **marks)
                    last = list(zip(x, median["value"], strict=True))[-1:]
                    ends.setdefault(LINES[metric][style] + CENTRED[form], []).extend(last)
        ax.set_xticks(range(len(edges)), [f"{edge:g}" for edge in edges])
        ax.set_xlabel("times that the token was seen in training,\nat least (lower edge of a bin)")
        ax.set_ylim(top=1.03)
        ax.set_ylabel("cosine similarity (median)")
        write_ends(ax, {text: (*np.mean(points, axis=0).tolist(), "0.25") for text, points in ends.items() if points})
    entries = [
        key("floor: another token's unigram residual", ls=":"),
        key("median", marker="v", markersize=3.5, ls=""),
        key("published median (GPT-2)", PUBLISHED, lw=0.8),
    ]
    if edges:
        entries += [key("centred", marker="o"), key("not centred", marker="o", **FORMS["_by_count"])]
    legend_above(fig, panels[0][0], *entries)
    return Drawing(fig, (table,))


def _shares(rows: pd.DataFrame, metric: str) -> "pd.Series[float]":
    """The share of token-biases at or above each threshold, the mean of the seeds (%)."""
    return rows[rows["metric"] == f"{metric}_share"].groupby("at")["value"].mean() * 100


def _bin_width(rows: pd.DataFrame, metric: str) -> float:
    """The distance of thresholds."""
    thresholds = _shares(rows, metric).index.to_numpy(float)
    return float(np.diff(thresholds).min()) if len(thresholds) > 1 else 1.0


def _draw_histograms(ax: Axes, rows: pd.DataFrame, metric: str, colours: dict[int, Any]) -> None:
    """Draw how token-biases and the floor are distributed at each layer, and the medians at the top."""
    lowest = 1.0
    for place, (layer, colour) in enumerate(colours.items()):
        of_layer = rows[rows["layer"] == layer]
        for of, style in ((FLOOR, {"ls": ":"}), (metric, {"fill": True, "alpha": 0.25, "lw": 0}), (metric, {})):
            shares = _shares(of_layer, of)
            if len(shares) < 2:
                continue
            counts = -np.diff(shares)
            edges = shares.index.to_numpy(float)
            ax.stairs(counts, edges, color=colour, **{"lw": 1.2} | style)
            lowest = min([lowest, *edges[:-1][counts > EMPTY]])
        ax.plot([], [], color=colour, label=f"layer {layer}")
        for of, fill in ((metric, colour), (FLOOR, "white")):
            median = over_seeds(of_layer[of_layer["metric"] == of], "layer")
            y = [109 - 4 * place] * len(median)
            ax.errorbar(median["value"], y, xerr=bars(median), fmt="v", color=colour, mfc=fill, markersize=3.5)
    ax.set_xlim(max(0, lowest - 0.05), 1)
