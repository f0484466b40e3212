"""What figures share that draw a metric of SAEs over that of their baseline."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from tsae.claims.replicates import Measured, estimate, load_sums_of_run, sample
from tsae.claims.selection import NotMeasuredError, Run
from tsae.figures.inputs import Inputs
from tsae.figures.style import COLOURS, draw_seeds, layers_of, style_of
from tsae.profile.families import BASELINE, FIXED, LEARNED, REMAINDER

# Blocks with SAEs that are shown, beside the headline's.
OPTIONAL = ("controls", "expansion")
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


def draw_ratios_by_bin(axes: Sequence[Axes], inputs: Inputs, metric: str, edges: Sequence[float]) -> None:
    """Draw a metric of each SAE / that of its baseline, with its paired interval and every seed if several.

    Args:
        axes: a panel for each layer of the headline, left to right.
        inputs: with the table `headline` and, where the profile has them, those of `OPTIONAL`, and their sums.
        metric: the metric, which has the edge of a bin as its `at`.
        edges: the bins, which are places 0, 1, ... on the x axis.
    """
    headline = inputs.table("headline")
    table = inputs.together("headline", *OPTIONAL).drop_duplicates([*SAE, "metric", "at", "min_count"])
    sums = load_sums_of_run(inputs.sums)
    run = Run({}, {}, simple_threshold=0, sums=sums, bootstrap=inputs.bootstrap, seed=inputs.seed)
    table = table[table["metric"] == metric]
    tokenized = headline.loc[headline["subject"] == inputs.roles["tokenized"], ALIKE].iloc[0]
    alike = table[ALIKE].eq(tokenized).fillna(False) | (table[ALIKE].isna() & tokenized.isna())
    is_baseline = table["subject"] == inputs.roles["baseline"]
    table = table[alike.all(axis=1) | is_baseline]
    found = {name: of for name, of in table.groupby(["table", "rows", "encoder_input"]) if name in SHOWN}
    shown = {name: found[name] for name in SHOWN if name in found}
    for ax, layer in zip(axes, layers_of(headline), strict=True):
        baseline = table[(table["layer"] == layer) & (table["subject"] == inputs.roles["baseline"])]
        for place, (name, rows) in enumerate(shown.items()):
            offset = 0.08 * (place - (len(shown) - 1) / 2)
            of_layer = rows[rows["layer"] == layer]
            pairs = {
                index + offset: (of_layer[of_layer["at"] == edge], baseline[baseline["at"] == edge])
                for index, edge in enumerate(edges)
            }
            draw_pairs(ax, run, pairs, SHOWN[name])
        ax.axhline(1, color=COLOURS[BASELINE], lw=0.8, zorder=1)
        style: dict[str, Any] = {
            "transform": ax.get_yaxis_transform(),
            "ha": "right",
            "va": "bottom",
            "fontsize": "small",
        }
        ax.text(1, 1, "baseline", color=COLOURS[BASELINE], **style)
        ax.set_title(f"layer {layer}")


def label_bins(ax: Axes, names: Sequence[str]) -> None:
    """Name the bins on the x axis."""
    ax.set_xticks(range(len(names)), list(names), rotation=45, ha="right", rotation_mode="anchor", fontsize="x-small")


def draw_pairs(
    ax: Axes, run: Run, pairs: Mapping[float, tuple[pd.DataFrame, pd.DataFrame]], style: Mapping[str, Any]
) -> dict[float, Measured]:
    """Draw the ratio of the first rows of each pair to the second, with its paired interval and every seed if several.

    Args:
        ax: the panel.
        run: the sums of the SAEs.
        pairs: by place on the x axis: rows of one metric, one per seed, and those that they are divided by.
        style: of the markers and the line.

    Returns:
        What was drawn, by place. A pair without rows, or with too little for an interval, is left out.
    """
    ratios: dict[float, Measured] = {}
    for x, pair in pairs.items():
        by_seed = [rows.sort_values("seed") for rows in pair]
        if any(rows.empty for rows in by_seed):
            continue
        with contextlib.suppress(NotMeasuredError):
            ratios[x] = estimate(run, lambda a, b: a / b, [sample(run, rows) for rows in by_seed], log=True)
            first, second = (rows.set_index("seed")["value"] for rows in by_seed)
            seeds = (first / second).dropna()
            if len(seeds) > 1:
                draw_seeds(ax, [x] * len(seeds), seeds)
    if ratios:
        ends = [[r.value - r.low for r in ratios.values()], [r.high - r.value for r in ratios.values()]]
        ax.errorbar(list(ratios), [r.value for r in ratios.values()], yerr=ends, **style)
    return ratios
