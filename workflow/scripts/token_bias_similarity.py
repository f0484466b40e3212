"""How many features resemble a token: their most similar token-bias or unigram residual (C4, C5, C11)."""

from tsae.plots import COLOURS, figure, legend_above, pick, save
from tsae.table import read_table

table = read_table(snakemake.input.metrics)
SEEN = 1  # compared with rows of tokens that occur in training
STYLES = {"token_bias": ("-", "token-biases"), "unigram": (":", "unigram residuals")}
layers = sorted(pick(table, snakemake.params.tokenized, "nmse")["layer"].unique())

fig, axes = figure(len(layers))
for ax, layer in zip(axes, layers, strict=True):
    ax.axvspan(0.4, 0.9, color="0.93", lw=0, zorder=-1)
    for name, subject in (("baseline", snakemake.params.baseline), ("tokenized", snakemake.params.tokenized)):
        for target, (style, target_name) in STYLES.items():
            rows = pick(table, subject, f"feature_{target}_similarity_alive", layer=layer, min_count=SEEN)
            curve = rows.groupby("at")["value"].agg(["mean", "min", "max"]) * 100
            ax.plot(curve.index, curve["mean"], style, color=COLOURS[name], label=f"{name}, to {target_name}")
            ax.fill_between(curve.index, curve["min"], curve["max"], color=COLOURS[name], alpha=0.15, lw=0)
    ax.set_title(f"layer {layer}")
    ax.set_xlabel("max cosine similarity ≥")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 100)
axes[0].set_ylabel("alive features (%)")
legend_above(fig, axes[0])
save(fig, snakemake.output)
