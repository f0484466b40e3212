"""Where a table helps: NMSE of tokenized SAEs and of controls over their baseline's, by training count of the token."""

from pathlib import Path

from tsae.families import FIXED, LEARNED, REMAINDER
from tsae.plots import COLOURS, draw_seeds, grid, layers_of, legend_above, save, style_of
from tsae.replicates import estimate, load_sums_of_run, sample
from tsae.selection import NotMeasuredError, Run
from tsae.table import read_table, read_tables

METRIC = "nmse_by_count"
SAE = ["layer", "subject", "seed"]
PERMUTED = {"mfc": "white", "lw": 0.8}
# By table, rows and encoder_input.
SHOWN = {
    ("fixed", "unigram", "residual"): style_of(FIXED),
    ("learned", "unigram", "residual"): style_of(LEARNED),
    ("learned", "unigram", "remainder"): style_of(REMAINDER),
    ("scaled", "unigram", "residual"): {"color": "0.35", "marker": "v", "ls": ":", "label": "fixed rows, each scaled"},
    ("embedding", "unigram", "residual"): {"color": "#56B4E9", "marker": "P", "ls": "-", "label": "map of embedding"},
    ("fixed", "permuted", "residual"): style_of(FIXED) | PERMUTED | {"label": "fixed, rows permuted"},
    ("learned", "permuted", "residual"): style_of(LEARNED) | PERMUTED | {"label": "learned, rows permuted"},
}
# What the SAEs that are shown have as the headline's tokenized one.
ALIKE = [
    *("architecture", "k", "l1", "expansion", "lookup_scale", "table_lr", "start", "centre"),
    *("decoder_norm", "encoder_scale", "topk_relu", "budget"),
]

headline, baselines = read_table(snakemake.input.headline), read_table(snakemake.input.baselines)
table = read_tables([snakemake.input.headline, *snakemake.input.more])
table = table.drop_duplicates([*SAE, "metric", "at", "min_count"])
shares = baselines[baselines["metric"] == "heldout_share_by_count"]
edges = sorted(shares["at"].unique())  # those of all bins: a share may be zero
layers = layers_of(headline)
run = Run(
    {},
    {},
    simple_threshold=0,
    sums=load_sums_of_run(map(Path, snakemake.input.sums)),
    bootstrap=snakemake.params.bootstrap,
    seed=snakemake.params.bootstrap_seed,
)
table = table[table["metric"] == METRIC]
tokenized = headline.loc[headline["subject"] == snakemake.params.tokenized, ALIKE].iloc[0]
alike = table[ALIKE].eq(tokenized).fillna(False) | (table[ALIKE].isna() & tokenized.isna())
is_baseline = table["subject"] == snakemake.params.baseline
table = table[alike.all(axis=1) | is_baseline]


def name_of(lower, upper):
    """The name of a bin of counts from its lower edge to below the next one's."""
    if upper is None:
        return f"{lower:g}+"
    return f"{lower:g}" if upper == lower + 1 else f"{lower:g}\u2013{upper - 1:g}"


fig, (above, below) = grid(2, len(layers), height=2.1, sharex=True, sharey="row", height_ratios=[5, 1])
shown = {name: of for name, of in table.groupby(["table", "rows", "encoder_input"]) if name in SHOWN}
for ax, strip, layer in zip(above, below, layers, strict=True):
    of_layer = table[table["layer"] == layer]
    baseline = of_layer[of_layer["subject"] == snakemake.params.baseline]
    for place, (name, style) in enumerate((name, SHOWN[name]) for name in SHOWN if name in shown):
        rows = shown[name][shown[name]["layer"] == layer]
        x, ratios = [], []
        for index, edge in enumerate(edges):
            pair = [t[t["at"] == edge].sort_values("seed") for t in (rows, baseline)]
            if any(t.empty for t in pair):
                continue
            try:
                ratios.append(estimate(run, lambda a, b: a / b, [sample(run, t) for t in pair], log=True))
            except NotMeasuredError:
                continue
            x.append(index + 0.08 * (place - (len(shown) - 1) / 2))
            by_seed = (pair[0].set_index("seed")["value"] / pair[1].set_index("seed")["value"]).dropna()
            if len(by_seed) > 1:
                draw_seeds(ax, [x[-1]] * len(by_seed), by_seed)
        if not ratios:
            continue
        values = [r.value for r in ratios]
        ends = [[r.value - r.low for r in ratios], [r.high - r.value for r in ratios]]
        ax.errorbar(x, values, yerr=ends, **style)
    ax.axhline(1, color=COLOURS["baseline"], lw=0.8, zorder=1)
    ax.set_title(f"layer {layer}")
    share = shares[shares["layer"] == layer].set_index("at")["value"].reindex(edges) * 100
    strip.bar(range(len(edges)), share, color="0.75", width=0.7)
    strip.set_xticks(
        range(len(edges)),
        [name_of(a, b) for a, b in zip(edges, [*edges[1:], None], strict=True)],
        rotation=45,
        ha="right",
        rotation_mode="anchor",
        fontsize="x-small",
    )
above[0].set_ylabel("NMSE / baseline's")
below[0].set_ylabel("held-out\ntokens (%)")
fig.supxlabel("times that the token was seen in training", fontsize="medium")
legend_above(fig, max(above, key=lambda ax: len(ax.containers)), columns=3)
save(fig, snakemake.output, headline)
