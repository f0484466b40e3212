"""Dead features and NMSE against how far off centre the encoder's input is when training starts (C6)."""

import pandas as pd

from tsae.families import FAMILIES, REMAINDER
from tsae.plots import (
    TABLES,
    bars,
    draw_seeds,
    figure,
    key,
    layers_of,
    legend_above,
    over_seeds,
    save,
    start_at_zero,
    style_of,
)
from tsae.table import read_tables

OFFSET = "encoder_offset_at_start"
PANELS = {
    "dead_heldout": ("dead on held-out tokens\n(% of features)", 100),
    "nmse": ("NMSE", 1),
}
SAE = ["layer", "subject", "seed"]
# An SAE may be in both blocks.
table = read_tables([snakemake.input.centre, *snakemake.input.more])
table = table.drop_duplicates([*SAE, "metric", "at", "min_count"], ignore_index=True)
offsets = table[table["metric"] == OFFSET].set_index(SAE)["value"]
table = table.join(offsets.rename("offset"), on=SAE)
names = table["table"].map(TABLES).mask(table["encoder_input"] == "remainder", REMAINDER)
table["family"] = pd.Categorical(names, [name for name in FAMILIES.values() if (names == name).any()])
layers = layers_of(table)


def fill_of(rows):
    """How markers are filled: hollow without the unigram direction, by half with the authors' start."""
    if rows["encoder_input"].iloc[0] == "without_unigram":
        return "none"
    return "left" if rows["start"].iloc[0] == "authors" else "full"


fig, axes = figure(len(layers) * len(PANELS), height=2.8)
places = [(layer, metric) for layer in layers for metric in PANELS]
for ax, (layer, metric) in zip(axes, places, strict=True):
    label, scale = PANELS[metric]
    rows = table[(table["layer"] == layer) & (table["metric"] == metric)]
    for (name, *_), family in rows.groupby(["family", "encoder_input", "start"], observed=True):
        style = style_of(name)
        points = over_seeds(family, "subject") * scale
        x = family.groupby("subject")["offset"].mean().loc[points.index].sort_values()
        points, fill = points.loc[x.index], fill_of(family)
        style |= {"fillstyle": fill, "markerfacecoloralt": "white", "zorder": 3}
        style |= {"lw": 0.7} if fill == "full" else {"ls": "", "label": None}
        ax.errorbar(x, points["value"], yerr=bars(points), **style)
        several = family[family.duplicated("subject", keep=False)]
        draw_seeds(ax, several["offset"], several["value"] * scale)
    ax.set_xlabel("offset of the encoder's input at the start\n(length of its mean / its spread)")
    ax.set_ylabel(label)
    ax.set_title(f"layer {layer}")
    start_at_zero(ax)
# A family may have no filled markers, whose legend is theirs.
filled = {bars.get_label() for ax in axes for bars in ax.containers}
marks = [key(**style_of(name)) for name in table["family"].cat.categories if name not in filled]
if (table["start"] == "authors").any():
    marks.append(key("authors' start", marker="o", ls="", fillstyle="left", markerfacecoloralt="white"))
if (table["encoder_input"] == "without_unigram").any():
    marks.append(key("no unigram direction in the input", marker="o", ls="", mfc="none"))
legend_above(fig, axes[0], *marks)
save(fig, snakemake.output, table)
