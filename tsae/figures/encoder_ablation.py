"""Phrases that one feature covers token by token, with and without unigram directions in the encoder.

Claim C10: without the unigram direction in its input, an encoder no longer activates on the tokens of a phrase such as
" Golden Gate Bridge". For each frequent phrase of the training text, the feature that covers it best is chosen in one
half of the documents and measured in the other. Top left are means over all phrases. Recall is how often that feature
fires, averaged over the phrase's tokens. Coverage is its recall on the weakest token less how often it fires on other
tokens of the same documents. Grey lines are the coverage of an untrained encoder. Top right is the share of the features'
firings on their phrases that is lost when the trained encoder's input loses its part along unigram directions: those of
all the phrase's tokens, or the token's own. In the controls the input moves as far along another token's direction, or
loses its part along that. Hollow markers are SAEs trained without the direction. Bars are 95% bootstrap intervals over
phrases, small dots are seeds. Below is one phrase in its context for the lowest seed: the activation of each SAE's
feature on every token, with the token's unigram direction and without.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from tsae.figures.inputs import Drawing, Inputs
from tsae.figures.style import COLOURS, TABLES, bars, draw_seeds, grid, key, layers_of, legend_above, over_seeds
from tsae.store.files import check

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
    "examples": True,
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
SEEN = {"residual": "whole", "remainder": "remainder", "without_unigram": "trained without"}
FLOOR: dict[str, Any] = {"marker": "_", "markersize": 9, "ls": "", "color": "0.55"}
Kind = tuple[str, str]  # an SAE's table and encoder_input


def draw(inputs: Inputs) -> Drawing:
    """Two panels of means over phrases, and below them one phrase, at the middle layer."""
    table = inputs.table("encoder")
    layers = layers_of(table)
    layer = layers[len(layers) // 2]
    found = dict(iter(table[table["layer"] == layer].groupby(["table", "encoder_input"])))
    groups = {(kind, name): found[kind, name] for kind in TABLES for name in INPUTS if (kind, name) in found}
    files = {path.name: path for path in inputs.examples if path.parent.name == f"layer{layer}"}
    examples = {sae: tokens for sae, rows in groups.items() if len(tokens := _example_of(rows, files))}

    fig, ((scores, lost), (left, right)) = grid(2, 2, height=2.7, width_ratios=[2, 3])
    gridspec = left.get_gridspec()
    assert gridspec is not None
    left.remove()
    right.remove()
    panel = fig.add_subplot(gridspec[1, :])

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
    lost.set_title("by the unigram direction that the encoder's input loses", fontsize="small")
    _draw_examples(panel, examples)
    legend_above(fig, scores, key("untrained encoder", **FLOOR), columns=2)
    return Drawing(fig, (table,))


def _draw_metrics(ax: Axes, metrics: Mapping[str, str], sae: Kind, rows: pd.DataFrame, offset: float) -> None:
    """Draw an SAE's metrics [%] as categories along x."""
    table, (name, style) = TABLES[sae[0]], INPUTS[sae[1]]
    measured = rows[rows["metric"].isin(list(metrics))]
    summary = over_seeds(measured, "metric").reindex(list(metrics)) * 100
    style = style | {"ls": "", "color": COLOURS[table], "label": f"{table}: {name}"}
    ax.errorbar([x + offset for x in range(len(metrics))], summary["value"], yerr=bars(summary), **style)
    if measured["seed"].nunique() > 1:
        draw_seeds(ax, [list(metrics).index(m) + offset for m in measured["metric"]], measured["value"] * 100)


def _example_of(rows: pd.DataFrame, files: Mapping[str, Path]) -> pd.DataFrame:
    """The first phrase token by token, of the first seed whose training did not fail."""
    saes = rows.sort_values("seed")
    trained = saes[saes["metric"] != "failed"]
    first = (saes if trained.empty else trained).iloc[0]
    path = files[f"{first['subject']}-s{first['seed']}.examples.csv"]
    check(path)
    tokens = pd.read_csv(path, keep_default_na=False)
    return tokens[tokens["text"] == tokens["text"].iloc[0]] if len(tokens) else tokens


def _draw_examples(panel: Axes, examples: Mapping[Kind, pd.DataFrame]) -> None:
    """Draw a row per SAE and input: the activation of its feature on every token of a phrase."""
    strips = [
        (sae, column, f"{TABLES[sae[0]].removeprefix('tokenized, ')}, {SEEN[sae[1]]}{ending}")
        for sae in examples
        for column, ending in (("activation", ""), ("activation_without", ", removed"))
        if column == "activation" or sae[1] != "without_unigram"
    ]
    for row, (sae, column, _) in enumerate(strips):
        activations = {
            name: pd.to_numeric(examples[sae][name], errors="coerce") for name in ("activation", "activation_without")
        }
        largest = max(np.nanmax(values.abs()) for values in activations.values())
        colour = np.array(to_rgb(COLOURS[TABLES[sae[0]]]))
        for place, value in enumerate(activations[column].to_numpy(float)):
            share = 0.85 * abs(value) / largest if value and np.isfinite(value) else 0.0
            panel.add_patch(Rectangle((place - 0.5, row - 0.5), 1, 1, color=1 - share * (1 - colour), lw=0))
            text = f"{value:.3g}" if value and np.isfinite(value) else "·"
            text_colour = "white" if share > 0.6 else "black"
            panel.text(place, row, text, ha="center", va="center", fontsize=6, color=text_colour)
    panel.set_yticks(range(len(strips)), [label for _, _, label in strips], fontsize="x-small")
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0)
    if not examples:
        panel.set_xticks([])
        panel.set_title("no phrase is frequent enough", fontsize="small")
        return
    found = next(iter(examples.values()))
    panel.set_xticks(range(len(found)), [_readable(token) for token in found["token"]], rotation=40, ha="right")
    panel.set_xlim(-0.5, len(found) - 0.5)
    panel.set_ylim(len(strips) - 0.5, -0.5)
    (inside,) = np.nonzero(found["of_phrase"].to_numpy(bool))
    outline = Rectangle((inside[0] - 0.5, -0.5), len(inside), len(strips), fill=False, color="black", lw=1.2)
    panel.add_patch(outline)
    outline.set_clip_on(False)
    panel.set_title(
        f"activation of the feature of “{_readable(found['text'].iloc[0])}” (unigram direction removed at test time, or in training)",
        fontsize="small",
    )


def _readable(token: str) -> str:
    """A token as a label."""
    return token.strip(" ").replace("\n", "↵").replace("$", r"\$") or "␣"
