"""Whether the gain of a table lasts: with more training text, and with more epochs.

Claim B3. Held-out NMSE of the headline SAEs against the share of the training text that they were trained on, each with
a whole learning rate schedule of its own (a), and NMSE (b) and CE added (c) of the tokenized SAE divided by its
baseline's. Below the line at 1 the table helps; a line that rises with the text says that the gain shrinks. Joined
markers are one epoch; hollow ones, set a little to the right, are several epochs of the same text, with their number beside
them. Markers are means over seeds; small dots are seeds, where there are several. Bars in (a) are the 95% interval of one seed (the mean of the seeds'
own) over held-out documents; bars of ratios are 95% intervals over held-out documents and seeds, paired. Parts of the text are evenly
spaced sequences for several epochs, and the first that the order of a seed comes to for one.
"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.transforms import ScaledTranslation

from tsae.claims.replicates import load_sums_of_run
from tsae.claims.selection import Run
from tsae.figures.inputs import Drawing, Inputs
from tsae.figures.labels import key, legend_above
from tsae.figures.ratios import draw_pairs
from tsae.figures.style import COLOURS, TABLES, draw_against, grid, layers_of, log2_ticks, style_of
from tsae.profile.families import BASELINE, LEARNED

NEEDS = {
    "category": "Training",
    "claims": ["B3"],
    "blocks": {"growth": {"has": ["tokenized", "baseline"], "varies": "budget"}},
    "optional": ["epochs"],
    "sums": ["growth", "epochs"],
}
RATIOS = {"nmse": "NMSE", "ce_added": "CE added"}
HOLLOW = {"ls": "", "mfc": "none"}  # several epochs
RIGHT = 4.0  # of one epoch is where several are drawn [points]


def draw(inputs: Inputs) -> Drawing:
    """A row of panels for each layer."""
    growth, epochs = inputs.table("growth"), inputs.together("epochs")
    run = Run(
        {}, {}, simple_threshold=0, sums=load_sums_of_run(inputs.sums), bootstrap=inputs.bootstrap, seed=inputs.seed
    )
    layers = layers_of(growth)
    fig, panels = grid(len(layers), 1 + len(RATIOS), height=2.3)
    for row, layer in zip(panels, layers, strict=True):
        once, again = (_with_text(table[table["layer"] == layer]) for table in (growth, epochs))
        for table, name in TABLES.items():
            for rows, style in ((once, style_of(name)), (again, _style_of_epochs(row[0], name))):
                of_table = rows[(rows["table"] == table) & (rows["metric"] == "nmse")]
                if len(of_table):
                    draw_against(row[0], of_table, "text", **style)
        row[0].set_ylabel("NMSE")
        for ax, (metric, name) in zip(row[1:], RATIOS.items(), strict=True):
            _draw_ratios(ax, run, once[once["metric"] == metric], again[again["metric"] == metric])
            ax.axhline(1, color=COLOURS[BASELINE], lw=0.8, zorder=1)
            ax.set_ylabel(f"{name} / baseline's")
        for ax in row:
            log2_ticks(ax, once["text"])
            ax.set_xlabel("share of the training text")
            ax.set_title(f"layer {layer}")
    legend_above(fig, panels[0][0], *[key("several epochs", marker="o", **HOLLOW)] * bool(len(epochs)))
    return Drawing(fig, (growth, epochs))


def _style_of_epochs(ax: Axes, family: str) -> dict[str, Any]:
    """How several epochs are drawn in a panel."""
    figure = ax.get_figure()
    assert figure is not None
    beside = ScaledTranslation(RIGHT / 72, 0, figure.dpi_scale_trans)
    return style_of(family) | HOLLOW | {"label": None, "transform": ax.transData + beside}


def _with_text(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the share of the text that an SAE has seen, and how many times."""
    text = rows[["budget", "distinct"]].min(axis=1)
    return rows.assign(text=text, epochs=rows["budget"] / text)


def _pairs(rows: pd.DataFrame) -> dict[float, tuple[pd.DataFrame, pd.DataFrame]]:
    """The tokenized SAE's rows and its baseline's, by text."""
    tokenized, baseline = rows[rows["table"] == "learned"], rows[rows["table"] == "none"]
    return {
        float(text): (tokenized[tokenized["text"] == text], baseline[baseline["text"] == text])
        for text in sorted(rows["text"].unique())
    }


def _draw_ratios(ax: Axes, run: Run, once: pd.DataFrame, again: pd.DataFrame) -> None:
    """Draw the tokenized SAE's metric / its baseline's by text, and the number of epochs where it is not one."""
    draw_pairs(ax, run, _pairs(once), style_of(LEARNED))
    epochs = again.groupby("text")["epochs"].first()
    for text, ratio in draw_pairs(ax, run, _pairs(again), _style_of_epochs(ax, LEARNED)).items():
        place: dict[str, Any] = {"xytext": (RIGHT + 5, 0), "textcoords": "offset points", "va": "center"}
        ax.annotate(f"{epochs[text]:g} epochs", (text, ratio.value), fontsize="x-small", **place)
