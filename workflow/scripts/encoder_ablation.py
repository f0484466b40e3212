"""Phrases that one feature covers token by token, and what is left of that without the unigram direction (C10)."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from tsae.files import check
from tsae.plots import COLOURS, TABLES, bars, draw_seeds, grid, key, layers_of, legend_above, over_seeds, save
from tsae.table import read_table

SCORES = {"phrase_coverage": "coverage", "phrase_token_recall": "recall"}
LOST = {
    "phrase_firings_lost_span": "the phrase's\ntokens'",
    "phrase_firings_lost": "the token's\nown",
    "phrase_firings_lost_matched": "moved along\nanother's",
    "phrase_firings_lost_control": "another\ntoken's",
}
INPUTS = {
    "residual": ("whole residual", {"marker": "o"}),
    "remainder": ("what the table leaves", {"marker": "s"}),
    "without_unigram": ("trained without unigram direction", {"marker": "o", "mfc": "white"}),
}
SEEN = {"residual": "whole", "remainder": "remainder", "without_unigram": "trained without"}
FLOOR = {"marker": "_", "markersize": 9, "ls": "", "color": "0.55"}
table = read_table(snakemake.input.encoder)
layers = layers_of(table)
layer = layers[len(layers) // 2]
groups = table[table["layer"] == layer].groupby(["table", "encoder_input"])
shown = [(kind, name) for kind in TABLES for name in INPUTS if (kind, name) in groups.groups]
files = {Path(path).name: path for path in snakemake.input.examples if Path(path).parent.name == f"layer{layer}"}


def draw(ax: Axes, metrics: dict[str, str], sae: tuple[str, str], offset: float) -> None:
    """Draw an SAE's metrics [%] as categories along x."""
    rows, (name, style) = groups.get_group(sae), INPUTS[sae[1]]
    measured = rows[rows["metric"].isin(metrics)]
    summary = over_seeds(measured, "metric").reindex(list(metrics)) * 100
    style = style | {"ls": "", "color": COLOURS[TABLES[sae[0]]], "label": f"{TABLES[sae[0]]}: {name}"}
    ax.errorbar([x + offset for x in range(len(metrics))], summary["value"], yerr=bars(summary), **style)
    if measured["seed"].nunique() > 1:
        draw_seeds(ax, [list(metrics).index(m) + offset for m in measured["metric"]], measured["value"] * 100)


def example_of(sae: tuple[str, str]) -> pd.DataFrame:
    """The first phrase token by token, of the first seed whose training did not fail."""
    saes = groups.get_group(sae).sort_values("seed")
    trained = saes[saes["metric"] != "failed"]
    first = (saes if trained.empty else trained).iloc[0]
    path = files[f"{first['subject']}-s{first['seed']}.examples.csv"]
    check(Path(path))
    tokens = pd.read_csv(path, keep_default_na=False)
    return tokens[tokens["text"] == tokens["text"].iloc[0]] if len(tokens) else tokens


def readable(token: str) -> str:
    """A token as the label of a column."""
    return token.strip(" ").replace("\n", "↵").replace("$", r"\$") or "␣"


examples = {sae: found for sae in shown if len(found := example_of(sae))}
strips = [
    (sae, column, f"{TABLES[sae[0]].removeprefix('tokenized, ')}, {SEEN[sae[1]]}{ending}")
    for sae in examples
    for column, ending in (("activation", ""), ("activation_without", ", removed"))
    if column == "activation" or sae[1] != "without_unigram"
]
fig, ((scores, lost), (left, right)) = grid(2, 2, height=2.7, width_ratios=[2, 3])
gridspec = left.get_gridspec()
left.remove()
right.remove()
panel = fig.add_subplot(gridspec[1, :])

for place, sae in enumerate(shown):
    offset = 0.14 * (place - (len(shown) - 1) / 2)
    draw(scores, SCORES, sae, offset)
    draw(lost, LOST, sae, offset)
    floor = groups.get_group(sae).query("metric == 'phrase_coverage_untrained'")["value"]
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

for row, (sae, column, _) in enumerate(strips):
    found = examples[sae]
    values = pd.to_numeric(found[column], errors="coerce").to_numpy(float)
    largest = max(
        np.nanmax(pd.to_numeric(found[c], errors="coerce").abs()) for c in ("activation", "activation_without")
    )
    colour = np.array(to_rgb(COLOURS[TABLES[sae[0]]]))
    for place, value in enumerate(values):
        share = 0.85 * abs(value) / largest if value and np.isfinite(value) else 0.0
        panel.add_patch(Rectangle((place - 0.5, row - 0.5), 1, 1, color=1 - share * (1 - colour), lw=0))
        text = f"{value:.3g}" if value and np.isfinite(value) else "·"
        panel.text(place, row, text, ha="center", va="center", fontsize=6, color="white" if share > 0.6 else "black")
panel.set_yticks(range(len(strips)), [label for _, _, label in strips], fontsize="x-small")
panel.spines[:].set_visible(False)
panel.tick_params(length=0)
if examples:
    found = next(iter(examples.values()))
    panel.set_xticks(range(len(found)), [readable(token) for token in found["token"]], rotation=40, ha="right")
    panel.set_xlim(-0.5, len(found) - 0.5)
    panel.set_ylim(len(strips) - 0.5, -0.5)
    (inside,) = np.nonzero(found["of_phrase"].to_numpy(bool))
    outline = Rectangle((inside[0] - 0.5, -0.5), len(inside), len(strips), fill=False, color="black", lw=1.2)
    panel.add_patch(outline)
    outline.set_clip_on(False)
    panel.set_title(
        f"activation of the feature of “{readable(found['text'].iloc[0])}” (unigram direction removed at test time, or in training)",
        fontsize="small",
    )
else:
    panel.set_xticks([])
    panel.set_title("no phrase is frequent enough", fontsize="small")
legend_above(fig, scores, key("untrained encoder", **FLOOR), columns=2)
save(fig, snakemake.output, table)
