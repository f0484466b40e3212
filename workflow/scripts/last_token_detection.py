"""How often the most similar row of a table names a residual's own token (C9)."""

from tsae.plots import COLOURS, PUBLISHED, draw_by_layer, figure, label_layers, legend_above, pick, save
from tsae.table import read_table

table = read_table(snakemake.input.metrics)
PANELS = {
    "last_token_detection": "last row of a sequence",
    "last_token_detection_any_position": "any position",
}
TABLES = (
    ("token-biases", snakemake.params.tokenized, -0.12),
    ("unigram residuals", "unigram-residuals", 0),
    ("conditional means", "conditional-means", 0.12),
)
PUBLISHED_RANGES = {"token-biases": (88, 98), "unigram residuals": (35, 77)}

fig, axes = figure(len(PANELS), width=3.8)
for ax, (metric, title) in zip(axes, PANELS.items(), strict=True):
    for name, subject, offset in TABLES:
        rows = pick(table, subject, metric)
        draw_by_layer(ax, rows, offset, 100, color=COLOURS[name], label=name)
    label_layers(ax, rows["layer"])
    ax.set_ylim(0, 100)
    ax.set_title(title)
    for name, (low, high) in PUBLISHED_RANGES.items():
        ax.axhspan(low, high, color=COLOURS[name], alpha=0.08, lw=0)
        right = ax.get_xlim()[1] - 0.03
        text = f"published, {name}, GPT-2 layers 5 to 10"
        ax.text(right, low + 1, text, color=PUBLISHED, ha="right", va="bottom", fontsize=6.5)
axes[0].set_ylabel("last token named by max-cos-sim (%)")
legend_above(fig, axes[0])
save(fig, snakemake.output)
