"""The gain by training count of the token, with permuted rows and a map of the embedding as controls.

Where a table helps: held-out NMSE of each SAE divided by that of its baseline at the same layer and seed, by how often
the token was seen in training. Below the line at 1 the table helps. The lower panels are the share of held-out tokens in
each bin. A learned table can only learn the rows of tokens that it sees, so the bin of unseen tokens shows what its
initial rows are worth. Controls, where a profile has them, show what a table must know: fixed rows with a trained number
per token, a trained linear map of the model's embedding instead of a table, and rows that were dealt to other tokens at
random, which stay fixed or are trained. Markers are ratios of means over seeds; small dots are seeds, where there are
several. Bars are 95% intervals of the ratio, paired: one bootstrap over held-out documents for both SAEs and, where there
are several, over seeds.
"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from tsae.claims.replicates import Measured, estimate, load_sums_of_run, sample
from tsae.claims.selection import NotMeasuredError, Run
from tsae.figures.inputs import Drawing, Inputs
from tsae.figures.labels import legend_above
from tsae.figures.style import COLOURS, draw_seeds, grid, layers_of, style_of
from tsae.profile.families import BASELINE, FIXED, LEARNED, REMAINDER

NEEDS = {
    "category": "Reconstruction",
    "blocks": {"headline": {}},
    "optional": ["controls", "expansion"],
    "tables": ["baselines"],
    "compares": True,
    "sums": ["headline", "controls", "expansion"],
}
METRIC = "nmse_by_count"
SAE = ["layer", "subject", "seed"]
PERMUTED = {"mfc": "white", "lw": 0.8}
# By table, rows and encoder_input.
SHOWN: dict[Any, dict[str, Any]] = {
    ("fixed", "unigram", "residual"): style_of(FIXED),
    ("learned", "unigram", "residual"): style_of(LEARNED),
    ("learned", "unigram", "remainder"): style_of(REMAINDER),
    ("scaled", "unigram", "residual"): {"color": "0.35", "marker": "v", "ls": ":", "label": "fixed rows, each scaled"},
    ("embedding", "unigram", "residual"): {"color": "#4E9FD1", "marker": "P", "ls": "-", "label": "map of embedding"},
    ("fixed", "permuted", "residual"): style_of(FIXED) | PERMUTED | {"label": "fixed, rows permuted"},
    ("learned", "permuted", "residual"): style_of(LEARNED) | PERMUTED | {"label": "learned, rows permuted"},
}
# Settings in which the shown SAEs agree with the headline's tokenized one.
ALIKE = [
    *("architecture", "k", "l1", "expansion", "lookup_scale", "table_lr", "start", "centre"),
    *("decoder_norm", "encoder_scale", "topk_relu", "budget", "distinct"),
]


def draw(inputs: Inputs) -> Drawing:
    """A column of panels for each layer, ratios above shares."""
    headline, baselines = inputs.table("headline"), inputs.table("baselines")
    table = inputs.together("headline", "controls", "expansion")
    table = table.drop_duplicates([*SAE, "metric", "at", "min_count"])
    shares = baselines[baselines["metric"] == "heldout_share_by_count"]
    edges = sorted(shares["at"].unique())  # those of all bins: a share may be zero
    layers = layers_of(headline)
    sums = load_sums_of_run(inputs.sums)
    run = Run({}, {}, simple_threshold=0, sums=sums, bootstrap=inputs.bootstrap, seed=inputs.seed)
    table = table[table["metric"] == METRIC]
    tokenized = headline.loc[headline["subject"] == inputs.roles["tokenized"], ALIKE].iloc[0]
    alike = table[ALIKE].eq(tokenized).fillna(False) | (table[ALIKE].isna() & tokenized.isna())
    is_baseline = table["subject"] == inputs.roles["baseline"]
    table = table[alike.all(axis=1) | is_baseline]

    fig, (above, below) = grid(2, len(layers), height=2.1, sharex=True, sharey="row", height_ratios=[5, 1])
    found = {name: of for name, of in table.groupby(["table", "rows", "encoder_input"]) if name in SHOWN}
    shown = {name: found[name] for name in SHOWN if name in found}
    for ax, strip, layer in zip(above, below, layers, strict=True):
        baseline = table[(table["layer"] == layer) & (table["subject"] == inputs.roles["baseline"])]
        for place, (name, rows) in enumerate(shown.items()):
            offset = 0.08 * (place - (len(shown) - 1) / 2)
            _draw_ratios(ax, run, rows[rows["layer"] == layer], baseline, edges, offset, SHOWN[name])
        ax.axhline(1, color=COLOURS[BASELINE], lw=0.8, zorder=1)
        style: dict[str, Any] = {
            "transform": ax.get_yaxis_transform(),
            "ha": "right",
            "va": "bottom",
            "fontsize": "small",
        }
        ax.text(1, 1, "baseline", color=COLOURS[BASELINE], **style)
        ax.set_title(f"layer {layer}")
        share = shares[shares["layer"] == layer].set_index("at")["value"].reindex(edges) * 100
        strip.bar(range(len(edges)), share, color="0.75", width=0.7)
        strip.set_xticks(
            range(len(edges)),
            [_name_of(a, b) for a, b in zip(edges, [*edges[1:], None], strict=True)],
            rotation=45,
            ha="right",
            rotation_mode="anchor",
            fontsize="x-small",
        )
    above[0].set_ylabel("NMSE / baseline's")
    below[0].set_ylabel("held-out\ntokens (%)")
    fig.supxlabel("times that the token was seen in training", fontsize="medium")
    legend_above(fig, max(above, key=lambda ax: len(ax.containers)))
    return Drawing(fig, (headline,))


def _draw_ratios(
    ax: Axes,
    run: Run,
    rows: pd.DataFrame,
    baseline: pd.DataFrame,
    edges: list[float],
    offset: float,
    style: dict[str, Any],
) -> None:
    """Draw an SAE's metric / its baseline's at each count, with its interval, and every seed if several."""
    x: list[float] = []
    ratios: list[Measured] = []
    for index, edge in enumerate(edges):
        pair = [t[t["at"] == edge].sort_values("seed") for t in (rows, baseline)]
        if any(t.empty for t in pair):
            continue
        try:
            ratios.append(estimate(run, lambda a, b: a / b, [sample(run, t) for t in pair], log=True))
        except NotMeasuredError:
            continue
        x.append(index + offset)
        by_seed = (pair[0].set_index("seed")["value"] / pair[1].set_index("seed")["value"]).dropna()
        if len(by_seed) > 1:
            draw_seeds(ax, [x[-1]] * len(by_seed), by_seed)
    if ratios:
        values = [r.value for r in ratios]
        ends = [[r.value - r.low for r in ratios], [r.high - r.value for r in ratios]]
        ax.errorbar(x, values, yerr=ends, **style)


def _name_of(lower: float, upper: float | None) -> str:
    """The name of a bin of counts; `upper` is the next bin's edge."""
    if upper is None:
        return f"{lower:g}+"
    return f"{lower:g}" if upper == lower + 1 else f"{lower:g}\u2013{upper - 1:g}"
