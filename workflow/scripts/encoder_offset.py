"""Dead features and NMSE against how far off centre the encoder's input is when training starts (C6)."""

from tsae.families import REMAINDER
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
layers = layers_of(table)


def order_of(rows):
    """The place of each SAE's table among all kinds."""
    return rows["table"].map(list(TABLES).index)


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
    for (kind, seen, _), family in rows.groupby([order_of(rows), "encoder_input", "start"]):
        style = style_of(REMAINDER if seen == "remainder" else list(TABLES.values())[kind])
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
marks = [key("authors' start", marker="o", ls="", fillstyle="left", markerfacecoloralt="white")]
if (table["encoder_input"] == "without_unigram").any():
    marks.append(key("no unigram direction in the input", marker="o", ls="", mfc="none"))
legend_above(fig, axes[0], *marks)
save(fig, snakemake.output, table)
