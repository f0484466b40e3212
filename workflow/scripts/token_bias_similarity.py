"""How many features resemble a token, by their most similar token-bias or unigram residual, and controls (C4, C5)."""

from tsae.ledger import load_ledger, published_range
from tsae.plots import (
    COLOURS,
    PUBLISHED,
    draw_against,
    draw_curve,
    grid,
    headline_families,
    key,
    layers_of,
    legend_above,
    log2_ticks,
    save,
)
from tsae.table import read_table

headline, expansion = read_table(snakemake.input.headline), read_table(snakemake.input.expansion)
SEEN = 1  # compared with rows of tokens that occur in training
BAND = (0.4, 0.9)  # the authors' "similar"
TO = {
    "token_bias": ("token-biases", "-"),
    "unigram": ("unigram residuals", "--"),
    "conditional_mean": ("conditional means", "-."),
    "gaussian": ("random residuals", (0, (1, 1))),
    "random": ("random directions", ":"),
}
# A table of an older run has no controls, and one whose tokenized SAE failed no token-biases.
measured = set(headline["metric"])
TARGETS = [name for name in TO if name in ("token_bias", "unigram") or f"feature_{name}_similar" in measured]
PUBLISHED_EXPANSION = 64
ledger = load_ledger(snakemake.input.ledger, snakemake.input.published)
published_share, _ = published_range(ledger, "C4", "similar features, 64x baseline")
_, published_most = published_range(ledger, "C4", "similar features, 4x baseline")  # "up to" at smaller expansions
layers, baselines = layers_of(headline), expansion[expansion["table"] == "none"]
by_expansion = layers_of(baselines)


def say_what_is_not_measured(ax, rows):
    """Where the training of the tokenized SAE failed there is no table to compare features with."""
    if len(rows) and not rows["metric"].str.startswith("feature_token_bias").any():
        ax.text(0.5, 0.97, "to token-biases:\nnot measured", transform=ax.transAxes, ha="center", va="top", color="red")


subjects = headline_families(headline, snakemake.params)
subjects = {name: subjects[name] for name in list(subjects)[:2]}
fig, panels = grid(2, len(layers) + len(by_expansion), height=2.1, sharey=True)
for row, (family, subject) in zip(panels, subjects.items(), strict=True):
    for ax, layer in zip(row, layers, strict=False):
        ax.axvspan(*BAND, color="0.93", lw=0, zorder=-1)
        rows = headline[(headline["subject"] == subject) & (headline["layer"] == layer)]
        for target in TARGETS:
            name, line = TO[target]
            curve = rows[(rows["metric"] == f"feature_{target}_similarity_alive") & (rows["min_count"] == SEEN)]
            draw_curve(ax, curve, "at", 100, color=COLOURS[name], linestyle=line, label=name)
        say_what_is_not_measured(ax, rows[rows["metric"] != "failed"])
        ax.set_title(f"layer {layer}")
        ax.set_xlim(0, 1)
        if row is panels[-1]:
            ax.set_xlabel("cosine similarity ≥")
    row[0].set_ylabel(f"alive features (%)\n{family}")
for row, (suffix, of) in zip(panels, (("", "all"), ("_alive", "alive")), strict=True):
    for ax, layer in zip(row[len(layers) :], by_expansion, strict=True):
        saes = baselines[baselines["layer"] == layer]
        rows = saes[saes["min_count"] == SEEN]
        say_what_is_not_measured(ax, rows)
        for target in TARGETS:
            name, line = TO[target]
            similar = rows[rows["metric"] == f"feature_{target}_similar{suffix}"]
            draw_against(ax, similar, "expansion", 100, color=COLOURS[name], marker="o", ls=line)
        if of == "all":
            ax.axhline(published_most * 100, color=PUBLISHED, lw=0.6, ls="--", zorder=1)
            ax.plot(PUBLISHED_EXPANSION, published_share * 100, "o", mfc="none", color=PUBLISHED)
        log2_ticks(ax, [*saes["expansion"], PUBLISHED_EXPANSION])
        ax.tick_params("x", labelsize="x-small")
        ax.set_title(f"layer {layer}, baseline", fontsize="small")
        ax.set_ylabel(f"similar, of {of} features (%)", fontsize="small")
        if row is panels[-1]:
            ax.set_xlabel("expansion")
for ax in panels[0]:
    ax.set_ylim(0, 100)
marks = (key("published (GPT-2)", PUBLISHED, lw=0.6, ls="--", marker="o", mfc="none"),)
legend_above(fig, panels[0][0], *marks, columns=3)
save(fig, snakemake.output, headline, expansion)
