"""NMSE, CE added and dead features by where the table starts, and whether it is trained.

How the table's start affects the SAE: held-out NMSE, CE added and dead features of tokenized SAEs against the multiple of
the unigram residuals at which the table starts (``lookup_scale``). If SAEs differ in the start of the encoder, the lower
numbers on the axis are the multiple of the decoder's transpose: one minus ``lookup_scale`` with the authors' start,
otherwise one. A fixed table stays at its start, as in the authors' init sweep, and is no table at zero; a learned one is
trained with the rest. Markers are means over seeds; small dots are seeds, where there are several. Bars are the 95%
interval of one seed (the mean of the seeds' own), over held-out documents or, for dead features, over features.
"""

from tsae.figures.inputs import Drawing, Inputs
from tsae.figures.style import draw_against, families_in, grid, layers_of, legend_above, start_at_zero, style_of

NEEDS = {
    "category": "Reconstruction",
    "blocks": {"init": {"has": ["table"], "varies": "lookup_scale", "by_family": True, "against": ["lookup_scale"]}},
}
PANELS = {
    "nmse": ("NMSE", 1),
    "ce_added": ("CE added\n(% of clean CE)", 100),
    "dead_heldout": ("dead on held-out tokens\n(% of features)", 100),
}


def draw(inputs: Inputs) -> Drawing:
    """A row of panels for each layer."""
    table = inputs.table("init")
    table = table[table["table"] != "none"]
    # With the authors' start W_enc begins at 1 - lookup_scale times W_dec's transpose.
    encoder_scale = table["encoder_scale"].fillna((1 - table["lookup_scale"]).where(table["start"] == "authors", 1))
    starts = sorted(set(zip(table["lookup_scale"], encoder_scale, strict=True)))
    both = len(set(encoder_scale)) > 1
    layers = layers_of(table)

    fig, panels = grid(len(layers), len(PANELS))
    for row, layer in zip(panels, layers, strict=True):
        for ax, (metric, (label, scale)) in zip(row, PANELS.items(), strict=True):
            rows = table[(table["layer"] == layer) & (table["metric"] == metric)]
            for name, family in families_in(rows).items():
                draw_against(ax, family, "lookup_scale", scale, **style_of(name))
            ticks = [f"{lookup:g}\n{encoder:g}" if both else f"{lookup:g}" for lookup, encoder in starts]
            ax.set_xticks([lookup for lookup, _ in starts], ticks)
            ax.set_xlabel("initial scale of the table" + " (above)\nand of the encoder (below)" * both)
            ax.set_ylabel(label)
            ax.set_title(f"layer {layer}")
            start_at_zero(ax)
    legend_above(fig, panels[0][0])
    return Drawing(fig, (table,))
