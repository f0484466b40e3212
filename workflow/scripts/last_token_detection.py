"""How often the most similar row of a table names a residual's own token (C9)."""

from matplotlib.patches import Patch

from tsae.families import REMAINDER
from tsae.ledger import load_ledger, published_range
from tsae.plots import (
    COLOURS,
    MARKERS,
    PUBLISHED,
    RELEASED,
    draw_by_layer,
    figure,
    key,
    label_layers,
    layers_of,
    legend_above,
    of_the_same_size,
    pick,
    save,
)
from tsae.table import read_table, read_tables

headline, baselines = read_table(snakemake.input.headline), read_table(snakemake.input.baselines)
PANELS = {
    "last_token_detection": "last row of a sequence",
    "last_token_detection_any_position": "any position",
}
TABLES = {
    "token-biases": {"marker": "D", "color": COLOURS["token-biases"]},
    "token-biases, remainder": {"marker": MARKERS[REMAINDER], "color": COLOURS[REMAINDER]},
    "unigram residuals": {"marker": "o", "color": COLOURS["unigram residuals"]},
    "conditional means": {"marker": "s", "color": COLOURS["conditional means"]},
}
tables = {"token-biases": (headline, snakemake.params.tokenized)}
if hasattr(snakemake.params, "remainder"):
    tables["token-biases, remainder"] = (headline, snakemake.params.remainder)
tables |= {
    "unigram residuals": (baselines, "unigram-residuals"),
    "conditional means": (baselines, "conditional-means"),
}
layers = layers_of(baselines)
released = of_the_same_size(read_tables(snakemake.input.released), headline)
released = released[released["k"].isin(headline["k"]) & (released["table"] != "none")]
ledger = load_ledger(snakemake.input.ledger, snakemake.input.published)
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
    ax.set_ylim(0, 100)
    ax.set_title(title)
for name, (low, high) in published.items():
    axes[0].axhspan(low * 100, high * 100, color=COLOURS[name], alpha=0.12, lw=0)
axes[0].set_ylabel("last token named (%)")
marks: list = [Patch(color=PUBLISHED, alpha=0.3, lw=0, label="published range (GPT-2)")]
if len(released):
    marks.append(key("token-biases released by the authors", **RELEASED))
legend_above(fig, axes[0], *marks, columns=3)
save(fig, snakemake.output, headline)
