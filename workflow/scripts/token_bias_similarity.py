"""How many features resemble a token, by their most similar token-bias or unigram residual (C4, C5)."""

from tsae.ledger import load_ledger, published_range
from tsae.plots import (
    COLOURS,
    PUBLISHED,
    draw_against,
    draw_curve,
    figure,
    key,
    layers_of,
    legend_above,
    log2_ticks,
    over_seeds,
    pick,
    save,
)
from tsae.table import read_table

headline, expansion = read_table(snakemake.input.headline), read_table(snakemake.input.expansion)
SEEN = 1  # compared with rows of tokens that occur in training
STYLES = {"token_bias": ("-", "token-biases"), "unigram": (":", "unigram residuals")}
BAND = (0.4, 0.9)  # the authors' "similar"
ledger = load_ledger(snakemake.input.ledger, snakemake.input.published)
PUBLISHED_EXPANSION = 64
published_share, _ = published_range(ledger, "C4", "similar features, 64x baseline")
_, published_most = published_range(ledger, "C4", "similar features, 4x baseline")  # "up to" at smaller expansions
ALIVE = {"color": COLOURS["baseline"], "lw": 0.7, "alpha": 0.6}
layers, baselines = layers_of(headline), expansion[expansion["table"] == "none"]
by_expansion = layers_of(baselines)


def say_what_is_not_measured(ax, rows):
    """Where the training of the tokenized SAE failed there is no table to compare features with."""
    if len(rows) and not rows["metric"].str.startswith("feature_token_bias").any():
        ax.text(0.5, 0.97, "to token-biases:\nnot measured", transform=ax.transAxes, ha="center", va="top", color="red")


fig, axes = figure(len(layers) + len(by_expansion))
for ax, layer in zip(axes, layers, strict=False):
    ax.axvspan(*BAND, color="0.93", lw=0, zorder=-1)
    for name, subject in (("baseline", snakemake.params.baseline), ("tokenized", snakemake.params.tokenized)):
        for target, (style, target_name) in STYLES.items():
            rows = pick(headline, subject, f"feature_{target}_similarity_alive", layer=layer, min_count=SEEN)
            label = f"{name}, to {target_name}"
            draw_curve(ax, rows, "at", 100, color=COLOURS[name], linestyle=style, label=label)
    of_baseline = (headline["layer"] == layer) & (headline["subject"] == snakemake.params.baseline)
    say_what_is_not_measured(ax, headline[of_baseline & (headline["metric"] != "failed")])
    ax.set_title(f"layer {layer}")
    ax.set_xlabel("cosine similarity ≥")
    ax.set_xlim(0, 1)
for ax, layer in zip(axes[len(layers) :], by_expansion, strict=True):
    saes = baselines[baselines["layer"] == layer]
    rows = saes[saes["min_count"] == SEEN]
    say_what_is_not_measured(ax, rows)
    for target, (style, _) in STYLES.items():
        similar = rows[rows["metric"] == f"feature_{target}_similar"]
        draw_against(ax, similar, "expansion", 100, color=COLOURS["baseline"], fmt=f"o{style}")
        alive = over_seeds(rows[rows["metric"] == f"feature_{target}_similar_alive"], "expansion")["value"] * 100
        ax.plot(alive.index, alive, style, **ALIVE)
    ax.axhline(published_most * 100, color=PUBLISHED, lw=0.6, ls="--", zorder=1)
    ax.plot(PUBLISHED_EXPANSION, published_share * 100, "o", mfc="none", color=PUBLISHED)
    log2_ticks(ax, [*saes["expansion"], PUBLISHED_EXPANSION])
    ax.set_title(f"layer {layer}, baseline")
    ax.set_xlabel("expansion")
    ax.set_ylabel("similar features (%)")
for ax in axes:
    ax.set_ylim(0, 100)
axes[0].set_ylabel("alive features (%)")
marks = (
    key("of alive features alone", **ALIVE),
    key("published (GPT-2)", PUBLISHED, lw=0.6, ls="--", marker="o", mfc="none"),
)
legend_above(fig, axes[0], *marks, columns=3)
save(fig, snakemake.output, headline, expansion)
