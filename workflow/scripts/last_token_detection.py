"""How often the most similar row of a table names a residual's own token (C9)."""

from tsae.plots import COLOURS, PUBLISHED, draw_seeds, figure, label_layers, pick, save
from tsae.table import read_table

table = read_table(snakemake.input.metrics)
PANELS = {
    "last_token_detection": "last row of a sequence",
    "last_token_detection_any_position": "any position",
}
PUBLISHED_RANGES = {"token-biases": (88, 98), "unigram residuals": (35, 77)}

fig, axes = figure(len(PANELS), width=3.8)
for ax, (metric, title) in zip(axes, PANELS.items(), strict=True):
    layers = pick(table, "unigram-residuals", metric)["layer"]
    for name, (low, high) in PUBLISHED_RANGES.items():
        ax.axhspan(low, high, color=COLOURS[name], alpha=0.08, lw=0)
        ax.text(
            len(layers) - 0.55,
            high - 1,
            f"GPT-2 L5 to L10, {name}",
            color=PUBLISHED,
            ha="right",
            va="top",
            fontsize=6.5,
        )
    for name, subject, offset in (
        ("token-biases", snakemake.params.tokenized, -0.12),
        ("unigram residuals", "unigram-residuals", 0),
        ("conditional means", "conditional-means", 0.12),
    ):
        rows = pick(table, subject, metric)
        if rows["seed"].isna().all():
            x = [place + offset for place in range(len(rows))]
            errors = [100 * (rows["value"] - rows["low"]), 100 * (rows["high"] - rows["value"])]
            ax.errorbar(x, 100 * rows["value"], yerr=errors, fmt="o", color=COLOURS[name], label=name)
        else:
            draw_seeds(ax, rows, "layer", offset, 100, color=COLOURS[name], label=name)
    label_layers(ax, layers)
    ax.set_ylim(0, 100)
    ax.set_title(title)
axes[0].set_ylabel("last token named by max-cos-sim (%)")
axes[0].legend(loc="lower left")
save(fig, snakemake.output)
