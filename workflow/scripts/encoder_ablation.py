"""Phrases that one feature covers token by token, with the last token in the encoder's input and without it (C10)."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from tsae.files import check
from tsae.plots import COLOURS, TABLES, bars, draw_seeds, figure, layers_of, legend_above, over_seeds, save
from tsae.table import read_table

METRICS = {"phrase_coverage": "coverage", "phrase_token_recall": "recall"}
INPUTS = {
    "residual": ("whole residual", {}),
    "without_unigram": ("no unigram direction", {"mfc": "white"}),
}
EXAMPLES, LONGEST = 8, 26  # phrases, and characters of one
table = read_table(snakemake.input.encoder)
layers = layers_of(table)
layer = layers[len(layers) // 2]
groups = table[table["layer"] == layer].groupby(["table", "encoder_input"])
shown = [(kind, name) for kind in TABLES for name in INPUTS if (kind, name) in groups.groups]
files = {Path(path).stem: path for path in snakemake.input.phrases if Path(path).parent.name == f"layer{layer}"}

fig, (ax, *blocks) = figure(1 + len(shown), height=2.7, width_ratios=[2] + [1] * len(shown))
for place, (kind, name) in enumerate(shown):
    rows, offset = groups.get_group((kind, name)), 0.16 * (place - (len(shown) - 1) / 2)
    style = INPUTS[name][1] | {"color": COLOURS[TABLES[kind]], "label": f"{TABLES[kind]}: {INPUTS[name][0]}"}
    measured = rows[rows["metric"].isin(METRICS)]
    summary = over_seeds(measured, "metric").reindex(list(METRICS)) * 100
    ax.errorbar([x + offset for x in range(len(METRICS))], summary["value"], yerr=bars(summary), fmt="o", **style)
    draw_seeds(ax, [list(METRICS).index(metric) + offset for metric in measured["metric"]], measured["value"] * 100)
ax.set_xticks(range(len(METRICS)), METRICS.values())
ax.set_xlim(-0.5, len(METRICS) - 0.5)
ax.set_ylim(min(0, ax.get_ylim()[0]), 100)
ax.set_ylabel("mean over phrases (%)")
ax.set_title(f"layer {layer}")

examples: dict[tuple[str, str], pd.Series] = {}
for kind, name in shown:
    saes = groups.get_group((kind, name)).sort_values("seed")
    trained = saes[saes["metric"] != "failed"]
    first = (saes if trained.empty else trained).iloc[0]
    path = files[f"{first['subject']}-s{first['seed']}"]
    check(Path(path))
    phrases = pd.read_csv(path, keep_default_na=False)
    frequent = phrases.sort_values("count", ascending=False, kind="stable").head(EXAMPLES).set_index("text")
    examples[kind, name] = frequent["recall"].map(json.loads)
labelled = next((block for block, series in zip(blocks, examples.values(), strict=True) if len(series)), None)
n_places = max((len(recall) for series in examples.values() for recall in series), default=0)
for block, ((kind, name), series) in zip(blocks, examples.items(), strict=True):
    recalls = np.full((len(series), n_places), np.nan)
    for row, recall in enumerate(series):
        recalls[row, : len(recall)] = recall
        for column, share in enumerate(recall):
            ink = "white" if share > 0.5 else "black"
            block.text(column, row, f"{share * 100:.0f}", color=ink, ha="center", va="center", fontsize=6)
    if len(series):
        block.imshow(recalls, cmap="Greys", vmin=-0.15, vmax=1.2, aspect="auto")
    text = [phrase.strip() for phrase in series.index] if block is labelled else []
    block.set_yticks(range(len(text)), [t if len(t) <= LONGEST else f"{t[:LONGEST]}…" for t in text])
    block.set_xticks(range(n_places), [str(place + 1) for place in range(n_places)])
    block.set_xlabel("token", fontsize="small")
    block.tick_params(length=0)
    block.spines[:].set_visible(False)
    block.set_title(
        f"{TABLES[kind].removeprefix('tokenized, ')}\n{INPUTS[name][0].removesuffix(' direction')}", fontsize="small"
    )
if blocks:
    blocks[0].set_ylabel("recall on each token (%)" if n_places else "no phrase is frequent enough")
legend_above(fig, ax)
save(fig, snakemake.output, table)
