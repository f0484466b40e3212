"""Phrases that one feature covers token by token, with and without unigram directions in the encoder.

Claim C10: without the unigram direction in its input, an encoder no longer activates on the tokens of a phrase such as
" Golden Gate Bridge". For each frequent phrase of the training text, the feature that covers it best is chosen in one
half of the documents and measured in the other. Above are means over all phrases. Recall is how often that feature
fires, averaged over the phrase's tokens. Coverage is its recall on the weakest token less how often it fires on other
tokens of the same documents. Grey lines are the coverage of an untrained encoder. On the right is the share of the
features' firings on their phrases that is lost when the trained encoder's input loses its part along unigram directions:
those of all the phrase's tokens, or the token's own. In the controls the input moves as far along another token's
direction, or loses its part along that. Hollow markers are SAEs trained without the direction. Bars are 95% bootstrap
intervals over phrases, small dots are seeds. Below, every dot is one phrase, the mean of its seeds, and the mark on top
the mean with its 95% interval over phrases, paired. On the left is how many more of a phrase's firings are lost without
the token's own direction than when the input moves as far along another token's; there the mean is over all firings. On
the right is the coverage by an SAE trained without the direction less that by one trained with it. Phrases of several
words that are furthest to the left and right are named.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from tsae.claims.phrases import PhraseColumn, Phrases, measure_phrases
from tsae.claims.selection import NotMeasuredError, Run
from tsae.figures.inputs import Drawing, Inputs
from tsae.figures.labels import key, legend_above
from tsae.figures.style import COLOURS, SHORT, TABLES, bars, draw_seeds, grid, layers_of, over_seeds

NEEDS = {
    "category": "Features",
    "claims": ["C10"],
    "blocks": {
        "encoder": {
            "has": ["table", "pairs without unigram"],
            "by_family": True,
            "without_unigram": True,
            "against": [],
        },
    },
    "tables": ["phrases"],
}
SCORES = {"phrase_coverage": "coverage", "phrase_token_recall": "recall"}
LOST = {
    "phrase_firings_lost_span": "the phrase's\ntokens'",
    "phrase_firings_lost": "the token's\nown",
    "phrase_firings_lost_matched": "moved along\nanother's",
    "phrase_firings_lost_control": "another\ntoken's",
}
INPUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "residual": ("whole residual", {"marker": "o"}),
    "remainder": ("what the table leaves", {"marker": "s"}),
    "without_unigram": ("trained without unigram direction", {"marker": "o", "mfc": "white"}),
}
FLOOR: dict[str, Any] = {"marker": "_", "markersize": 9, "ls": "", "color": "0.55"}
Kind = tuple[str, str]  # an SAE's table and encoder_input
# The first of two columns of the phrase tables, and what differs in the second, which is subtracted.
PAIRS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "firings lost: own direction \u2212 as far along another's\n(percentage points, one phrase each)": (
        {"column": "lost"},
        {"column": "lost_matched"},
    ),
    "coverage: trained without the direction \u2212 with it\n(percentage points, one phrase each)": (
        {"column": "score", "encoder_input": "without_unigram"},
        {"encoder_input": "residual"},
    ),
}
DOT: dict[str, Any] = {"marker": "o", "markersize": 2.2, "ls": "", "alpha": 0.5, "mew": 0}
MEAN: dict[str, Any] = {"marker": "d", "color": "black", "markersize": 4.5, "zorder": 5, "label": "mean"}


def draw(inputs: Inputs) -> Drawing:
    """Two panels of means over phrases, and two of paired differences per phrase, at the middle layer."""
    table, phrases = inputs.table("encoder"), inputs.table("phrases")
    layers = layers_of(table)
    layer = layers[len(layers) // 2]
    found = dict(iter(table[table["layer"] == layer].groupby(["table", "encoder_input"])))
    groups = {(kind, name): found[kind, name] for kind in TABLES for name in INPUTS if (kind, name) in found}
    run = Run({"encoder": table, "phrases": phrases}, inputs.roles, 0, bootstrap=inputs.bootstrap, seed=inputs.seed)

    fig, ((scores, lost), below) = grid(2, 2, height=2.5, width_ratios=[2, 3])
    for place, (sae, rows) in enumerate(groups.items()):
        offset = 0.14 * (place - (len(groups) - 1) / 2)
        _draw_metrics(scores, SCORES, sae, rows, offset)
        _draw_metrics(lost, LOST, sae, rows, offset)
        floor = rows.query("metric == 'phrase_coverage_untrained'")["value"]
        scores.plot([offset] * bool(len(floor)), [100 * floor.mean()] * bool(len(floor)), **FLOOR)
    for ax, names, label in (
        (scores, SCORES, "mean over phrases (%)"),
        (lost, LOST, "firings lost on phrases (%)"),
    ):
        ax.set_xticks(range(len(names)), names.values(), fontsize="small")
        ax.set_xlim(-0.5, len(names) - 0.5)
        ax.set_ylabel(label)
    scores.set_ylim(min(0, scores.get_ylim()[0]), 100)
    lost.set_ylim(bottom=0)
    scores.set_title(f"layer {layer}")
    lost.set_title("the input loses, or moves along,\na unigram direction", fontsize="small")
    tables = [kind for kind in TABLES if any(kind == of for of, _ in groups)]
    for ax, (label, (first, second)) in zip(below, PAIRS.items(), strict=True):
        for row, kind in enumerate(tables):
            measure = Phrases.model_validate({"kind": "phrases", "of": {"table": kind, **first}, "to": second})
            _draw_pairs(ax, row, kind, measure, run, layer)
        ax.axvline(0, color="0.75", lw=0.8, zorder=0)
        ax.set_yticks(range(len(tables)), [SHORT[TABLES[kind]] for kind in tables])
        ax.set_ylim(len(tables) - 0.4, -0.6)
        ax.set_xlabel(label, fontsize="small")
    marks = (key("untrained encoder", **FLOOR), key("one phrase", **DOT))
    legend_above(fig, scores, *marks)
    return Drawing(fig, (table,))


def _draw_metrics(ax: Axes, metrics: Mapping[str, str], sae: Kind, rows: pd.DataFrame, offset: float) -> None:
    """Draw an SAE's metrics [%] as categories along x."""
    table, (name, style) = TABLES[sae[0]], INPUTS[sae[1]]
    measured = rows[rows["metric"].isin(list(metrics))]
    summary = over_seeds(measured, "metric").reindex(list(metrics)) * 100
    style = style | {"ls": "", "color": COLOURS[table], "label": f"{SHORT[table]}: {name}"}
    ax.errorbar([x + offset for x in range(len(metrics))], summary["value"], yerr=bars(summary), **style)
    if measured["seed"].nunique() > 1:
        draw_seeds(ax, [list(metrics).index(m) + offset for m in measured["metric"]], measured["value"] * 100)


def _draw_pairs(ax: Axes, row: int, table: str, measure: Phrases, run: Run, layer: int) -> None:
    """Draw the difference of two columns for every phrase in a row of the panel, and the mean with its interval."""
    try:
        mean = measure_phrases(run, measure, layer)
    except NotMeasuredError:
        ax.text(
            0.5, row, "not measured", transform=ax.get_yaxis_transform(), ha="center", va="center", fontsize="small"
        )
        return
    values = 100 * _differences(run.tables["phrases"], measure, layer)
    heights = dict(zip(values.index, row + _apart(values.to_numpy()), strict=True))
    ax.plot(values, list(heights.values()), color=COLOURS[TABLES[table]], **DOT)
    value, low, high = (100 * number for number in mean[:3])
    ax.errorbar(value, row - 0.42, xerr=[[value - low], [high - value]], ls="", **MEAN)
    words = values[[" " in text.strip() for text in values.index]]
    for text in {str(words.idxmin()), str(words.idxmax())} if len(words) else ():
        style: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "top", "fontsize": "x-small"}
        line = {"arrowstyle": "-", "lw": 0.4, "color": "0.6", "shrinkA": 0, "shrinkB": 1}
        ax.annotate(text.strip(), (values[text], heights[text]), (0, -14), arrowprops=line, **style)


def _differences(phrases: pd.DataFrame, measure: Phrases, layer: int) -> "pd.Series[float]":
    """The difference of two columns for every phrase that both have, by its text, the mean of the seeds."""

    def values(of: PhraseColumn) -> "pd.Series[float]":
        chosen = (phrases["table"] == of.table) & (phrases["encoder_input"] == of.encoder_input)
        rows = phrases[chosen & (phrases["layer"] == layer)].set_index(["text", "seed"])
        return rows[of.column] / rows["firings"] if of.column.startswith("lost") else rows[of.column]

    return (values(measure.of) - values(measure.second)).dropna().groupby("text").mean()


def _apart(values: np.ndarray, bins: int = 40, tallest: float = 0.5) -> np.ndarray:
    """Offsets (n,) that keep near values from hiding each other: those of a bin are stacked about zero."""
    if not len(values):
        return np.zeros(0)
    width = max(np.ptp(values) / bins, 1e-9)
    places = pd.Series(np.floor((values - values.min()) / width))
    rank = places.groupby(places).cumcount()
    size = places.groupby(places).transform("size")
    offsets = (rank - (size - 1) / 2).to_numpy(float)
    return offsets * min(0.08, tallest / max(1, int(size.max())))
