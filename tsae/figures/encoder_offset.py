"""Dead features and NMSE against how far off centre the encoder's input starts.

An off-centre encoder input leaves features dead, with a table or without (claim C6 reports the dead features too). The x
axis is the length of the mean of the encoder's input when training starts, divided by the root mean squared distance of
inputs to it; a centred input is at zero. The y axes are the share of features that fire on no held-out token (left) and
held-out NMSE (right). Filled markers, joined by a line, are SAEs from which all, half or none of that mean was
subtracted. Half-filled markers have the authors' start, in which b_dec is zero. Hollow markers, if the profile has any,
see the residual without the direction of the token's unigram residual, so their NMSE belongs to another task. The axis of
NMSE does not begin at zero. Markers are means over seeds; small dots are seeds, where there are several. Bars are the 95% interval of one seed (the mean of
the seeds' own) over features or held-out documents.
"""

import pandas as pd

from tsae.figures.inputs import Drawing, Inputs
from tsae.figures.labels import key, legend_above
from tsae.figures.style import (
    TABLES,
    bars,
    draw_seeds,
    figure,
    layers_of,
    over_seeds,
    start_at_zero,
    style_of,
)
from tsae.profile.families import FAMILIES, REMAINDER

NEEDS = {
    "category": "Features",
    "claims": ["C6"],
    "blocks": {"centre": {"has": ["table"], "by_family": True, "without_unigram": True}},
    "optional": ["encoder"],
}
OFFSET = "encoder_offset_at_start"
PANELS = {
    "dead_heldout": ("dead on held-out tokens\n(% of features)", 100),
    "nmse": ("NMSE", 1),
}
SAE = ["layer", "subject", "seed"]


def draw(inputs: Inputs) -> Drawing:
    """Two panels for each layer."""
    table = _with_offsets(inputs.together("centre", "encoder"))
    layers = layers_of(table)
    fig, axes = figure(len(layers) * len(PANELS), height=2.8)
    places = [(layer, metric) for layer in layers for metric in PANELS]
    for ax, (layer, metric) in zip(axes, places, strict=True):
        label, scale = PANELS[metric]
        rows = table[(table["layer"] == layer) & (table["metric"] == metric)]
        for (name, *_), family in rows.groupby(["family", "encoder_input", "start"], observed=True):
            style = style_of(str(name))
            points = over_seeds(family, "subject") * scale
            x = family.groupby("subject")["offset"].mean().loc[points.index].sort_values()
            points, fill = points.loc[x.index], _fill_of(family)
            style |= {"fillstyle": fill, "markerfacecoloralt": "white", "zorder": 3}
            style |= {"lw": 0.7} if fill == "full" else {"ls": "", "label": None}
            ax.errorbar(x, points["value"], yerr=bars(points), **style)
            several = family[family.duplicated("subject", keep=False)]
            draw_seeds(ax, several["offset"], several["value"] * scale)
        ax.set_xlabel("offset of the encoder's input at the start\n(length of its mean / its spread)")
        ax.set_ylabel(label)
        ax.set_title(f"layer {layer}")
        if metric != "nmse":
            start_at_zero(ax)
    # Filled markers have labels; a family without any needs an entry.
    filled = {drawn.get_label() for ax in axes for drawn in ax.containers}
    marks = [key(**style_of(name)) for name in table["family"].cat.categories if name not in filled]
    if (table["start"] == "authors").any():
        marks.append(key("authors' start", marker="o", ls="", fillstyle="left", markerfacecoloralt="white"))
    if (table["encoder_input"] == "without_unigram").any():
        marks.append(key("no unigram direction in the input", marker="o", ls="", mfc="none"))
    legend_above(fig, axes[0], *marks)
    return Drawing(fig, (table,))


def _with_offsets(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the offset and family of each SAE, without duplicates of SAEs in both blocks."""
    table = table.drop_duplicates([*SAE, "metric", "at", "min_count"], ignore_index=True)
    offsets = table[table["metric"] == OFFSET].set_index(SAE)["value"]
    table = table.join(offsets.rename("offset"), on=SAE)
    names = table["table"].map(TABLES).mask(table["encoder_input"] == "remainder", REMAINDER)
    table["family"] = pd.Categorical(names, [name for name in FAMILIES.values() if (names == name).any()])
    return table


def _fill_of(rows: pd.DataFrame) -> str:
    """Fill of markers: hollow without the unigram direction, half with the authors' start."""
    if rows["encoder_input"].iloc[0] == "without_unigram":
        return "none"
    return "left" if rows["start"].iloc[0] == "authors" else "full"
