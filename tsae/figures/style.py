"""One style for every figure."""

import string
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from tsae.profile.config import Role
from tsae.profile.families import BASELINE, FAMILIES, FIXED, LEARNED, REMAINDER
from tsae.store.files import replacing

# One colour per thing in all figures. The hues of families are told apart by colour-blind readers, their lightness in grey.
COLOURS = {
    BASELINE: "#00305F",
    FIXED: "#F5C04E",
    LEARNED: "#E8772E",
    REMAINDER: "#A8321E",
    "tokenized": "#E8772E",
    "token-biases": "#E8772E",
    "unigram residuals": "#0F8F6B",
    "conditional means": "#6A2C82",
    "bigrams": "#4E9FD1",
    "random residuals": "0.1",
    "random directions": "0.6",
}
# Markers and lines of families.
MARKERS = {BASELINE: "o", FIXED: "s", LEARNED: "D", REMAINDER: "^"}
LINES = {BASELINE: "-", FIXED: ":", LEARNED: "--", REMAINDER: "-."}
# What a label beside a line says.
SHORT = {BASELINE: "baseline", FIXED: "fixed table", LEARNED: "learned table", REMAINDER: "remainder"}
# Families by table, where the fill of a marker shows the encoder's input.
TABLES = {"none": BASELINE, "fixed": FIXED, "learned": LEARNED}
RELEASED: dict[str, Any] = {"marker": "*", "markersize": 8, "ls": ""}  # the authors' own SAEs, measured here
SEED: dict[str, Any] = {
    "marker": "o",
    "markersize": 1.8,
    "mfc": "white",
    "mec": "black",
    "mew": 0.4,
    "ls": "",
    "zorder": 6,
    "label": "one seed",
}
RANGE = "range of the seeds"
PUBLISHED = "0.55"  # the authors' numbers: faint grey, or the faint colour of the thing
METADATA: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
PAGE = 7.2  # width of a figure on a page, unscaled [inches]
CHARACTERS = 18  # of the smallest text per inch
NARROWEST = 1.5  # width of a panel, for which a figure may be wider than the page [inches]


def grid(rows: int, columns: int, height: float = 2.2, **options: Any) -> tuple[Figure, list[list[Axes]]]:
    """Rows of panels in the project's style, as wide as the page; `height` of a panel in inches."""
    sns.set_theme(style="ticks", context="paper", font_scale=0.85)
    mpl.rcParams |= {
        "svg.hashsalt": "tsae",  # same figure, same bytes
        # One family, which matplotlib brings; text stays text in svg, and is TrueType in pdf.
        "font.sans-serif": ["DejaVu Sans"],
        "svg.fonttype": "none",
        "pdf.fonttype": 42,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": "medium",
        "axes.linewidth": 0.8,
        "legend.frameon": False,
        "lines.linewidth": 1.2,
        "lines.markersize": 4,
        "errorbar.capsize": 2,
    }
    size = (max(PAGE, columns * NARROWEST), rows * height + 0.4)
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)
    return fig, [list(row) for row in axes]


def figure(panels: int, height: float = 2.4, **options: Any) -> tuple[Figure, list[Axes]]:
    """A row of panels in the project's style; `height` in inches."""
    fig, rows = grid(1, panels, height, **options)
    return fig, rows[0]


def save(fig: Figure, outputs: Iterable[Path], *tables: pd.DataFrame) -> None:
    """Write the figure to each path, in the format of its ending and without dates. Several panels get letters.

    A note below names the SAEs of the tables that are missing because their training failed.
    """
    if len(fig.axes) > 1:
        for ax, letter in zip(fig.axes, string.ascii_lowercase, strict=False):
            ax.set_title(letter, loc="left", ha="right", weight="bold")
    failed = pd.concat(tables).query("metric == 'failed'") if tables else pd.DataFrame()
    if len(failed):
        names = failed.drop_duplicates(["subject", "layer", "seed"]).agg(
            "{0[subject]} (layer {0[layer]}, seed {0[seed]}) at step {0[value]:.0f}".format, axis=1
        )
        text = textwrap.fill(
            f"failed in training, and not drawn: {', '.join(names)}",
            width=int(CHARACTERS * fig.get_figwidth()),
            break_long_words=False,
            break_on_hyphens=False,
        )
        # The note is a legend without entries, because a figure has only one label, here extended to make room.
        if label := fig.get_supxlabel():
            fig.supxlabel(label + "\n" * (2 + text.count("\n")), fontsize="medium")
        note = fig.legend(handles=[], title=text, title_fontsize="x-small", loc="outside lower center")
        note.get_title().set_color("red")
    for output in outputs:
        ending = output.suffix.removeprefix(".")
        with replacing(output) as temporary:
            fig.savefig(temporary, format=ending, dpi=200, metadata=METADATA[ending])
    plt.close(fig)


def pick(table: pd.DataFrame, subject: str, metric: str, **where: Any) -> pd.DataFrame:
    """Rows of one subject and metric, sorted by layer, threshold and seed; may be empty if a training failed.

    Raises:
        ValueError: there are none, and no training failed.
    """
    chosen = table[(table["subject"] == subject) & (table["metric"] == metric)]
    for column, value in where.items():
        chosen = chosen[chosen[column] == value]
    if chosen.empty and not (table["metric"] == "failed").any():
        raise ValueError(f"the table has no {metric!r} of {subject!r}{f' with {where}' if where else ''}")
    return chosen.sort_values(["layer", "at", "seed"])


def of_the_same_size(released: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The authors' SAEs with an expansion of the table whose encoders see the residual."""
    return released[released["expansion"].isin(table["expansion"]) & (released["encoder_input"] == "residual")]


def layers_of(table: pd.DataFrame) -> list[int]:
    """The layers of a table, in order."""
    return [int(layer) for layer in sorted(table["layer"].unique())]


def families_in(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of a table by family, in the order of the legend."""
    plain = table if "rows" not in table else table[table["rows"].isna() | table["rows"].eq("unigram")]
    found = {
        name: plain[(plain["table"] == kind) & (plain["encoder_input"] == seen)]
        for (kind, seen), name in FAMILIES.items()
    }
    return {name: rows for name, rows in found.items() if len(rows)}


def headline_families(table: pd.DataFrame, roles: Mapping[Role, str]) -> dict[str, str]:
    """The headline SAEs' ids by family; `roles` has the ids by role, and `table` contains the tokenized SAE."""
    family_of = {"baseline": BASELINE, "remainder": REMAINDER}
    if "tokenized" in roles:
        family_of["tokenized"] = TABLES[table.loc[table["subject"] == roles["tokenized"], "table"].iloc[0]]
    return {family_of[role]: roles[role] for role in ("baseline", "tokenized", "remainder") if role in roles}


def style_of(family: str) -> dict[str, Any]:
    """Colour, marker, line style and label of a family."""
    return {"color": COLOURS[family], "marker": MARKERS[family], "ls": LINES[family], "label": family}


def line_of(family: str) -> dict[str, Any]:
    """Style without the marker, for curves of many points."""
    return style_of(family) | {"marker": ""}


def over_seeds(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """The mean over seeds for every value of the column `by`, with the 95% interval of one seed.

    `low` and `high` are means of the seeds' own ends: the uncertainty from documents or features, without that from seeds.
    """
    return rows.groupby(by)[["value", "low", "high"]].mean()


def bars(summary: pd.DataFrame, scale: float = 1.0) -> list[Any]:
    """Lengths of error bars below and above `value`, from `low` and `high`."""
    return [(summary["value"] - summary["low"]) * scale, (summary["high"] - summary["value"]) * scale]


def draw_by_layer(
    ax: Axes, rows: pd.DataFrame, layers: Sequence[int], offset: float, scale: float = 1.0, **style: Any
) -> None:
    """Draw the mean over seeds with the 95% interval of one, and every seed if several, with `layers` as categories."""
    summary = over_seeds(rows, "layer")
    x = [layers.index(layer) + offset for layer in summary.index]
    ax.errorbar(x, summary["value"] * scale, yerr=bars(summary, scale), **({"marker": "o"} | style | {"ls": ""}))
    if rows["seed"].nunique() > 1:
        draw_seeds(ax, [layers.index(layer) + offset for layer in rows["layer"]], rows["value"] * scale)


def draw_against(ax: Axes, rows: pd.DataFrame, column: str, scale: float = 1.0, **style: Any) -> None:
    """Draw the mean over seeds with the 95% interval of one, and every seed if several, against a setting."""
    summary = over_seeds(rows, column)
    ax.errorbar(summary.index, summary["value"] * scale, yerr=bars(summary, scale), **style)
    if rows["seed"].nunique() > 1:
        draw_seeds(ax, rows[column], rows["value"] * scale)


def draw_seeds(ax: Axes, x: Iterable[float], y: Iterable[float]) -> None:
    """Draw every seed as a small dot."""
    if points := list(zip(x, y, strict=True)):
        ax.plot(*zip(*points, strict=True), **SEED)


def draw_curve(ax: Axes, rows: pd.DataFrame, column: str, scale: float = 1.0, **style: Any) -> None:
    """Draw the mean over seeds as a line and their range as a band, against `column`."""
    curve = rows.groupby(column)["value"].agg(["mean", "min", "max"]) * scale
    ax.plot(curve.index, curve["mean"], **style)
    if (curve["min"] < curve["max"]).any():
        label = RANGE if rows["seed"].nunique() > 1 else None
        ax.fill_between(curve.index, curve["min"], curve["max"], color=style["color"], alpha=0.2, lw=0, label=label)


def label_layers(ax: Axes, layers: Sequence[int]) -> None:
    """Put layers on the x axis as categories."""
    ax.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    ax.set_xlim(-0.5, len(layers) - 0.5)
    ax.set_xlabel("layer (resid_pre)")


def name_layer_colours(layers: Sequence[int]) -> dict[int, Any]:
    """A colour for each layer, darker for earlier ones."""
    return dict(zip(layers, sns.color_palette("viridis", len(layers)), strict=True))


def start_at_zero(ax: Axes) -> None:
    """Let the y axis begin at zero, unless something is below it."""
    if ax.dataLim.ymin >= 0:
        ax.set_ylim(bottom=0)


def log2_ticks(ax: Axes, values: Iterable[float], suffix: str = "") -> None:
    """A logarithmic x axis with ticks at the values only."""
    ticks = sorted(set(values))
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [f"{tick:g}{suffix}" for tick in ticks])
    ax.set_xticks([], minor=True)
    ax.set_xlim(ticks[0] / 2**0.4, ticks[-1] * 2**0.4)


def log_axis(ax: Axes, which: str, values: Iterable[float]) -> None:
    """A logarithmic axis, "x" or "y", with plain numbers as ticks; linear without values or if one is not positive."""
    values = list(values)
    if not values or not all(value > 0 for value in values):
        return
    getattr(ax, f"set_{which}scale")("log")
    axis: Axis = getattr(ax, f"{which}axis")
    near = max(values) < 4 * min(values)  # else too many ticks, or none
    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 6) if near else (1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
