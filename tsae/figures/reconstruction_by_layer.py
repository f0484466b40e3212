"""NMSE, FVU and CE added by layer: the baseline against both tokenized forms.

Claim C1 at one sparsity: held-out NMSE, FVU and CE added of the baseline and of both tokenized forms, layer by layer;
lower is better. With a learned (or fixed) table the encoder sees the residual, as in the paper; with the remainder it
sees what the table leaves. NMSE divides the squared error of each token by its squared norm. FVU divides the sum of
squared errors by that of deviations from the mean residual. CE added is the rise of the model's loss, relative to its
clean loss, when reconstructions replace residuals. Markers are means over seeds; small dots are seeds, where there are
several. Bars are the 95% interval of one seed over held-out documents (the mean of the seeds' own). All SAEs of a layer
share the documents, so two can differ significantly although their bars overlap; claims compare them paired. Stars, if
the profile has any, are SAEs of the same k and size that the authors released, measured here like the others.
"""

from tsae.figures.inputs import Drawing, Inputs
from tsae.figures.style import (
    RELEASED,
    draw_by_layer,
    figure,
    headline_families,
    key,
    label_layers,
    layers_of,
    legend_above,
    of_the_same_size,
    pick,
    start_at_zero,
    style_of,
)
from tsae.profile.families import BASELINE

NEEDS = {
    "category": "Reconstruction",
    "claims": ["C1"],
    "blocks": {"headline": {}},
    "optional": ["released"],
    "compares": True,
}
PANELS = {
    "nmse": ("NMSE", 1),
    "fvu": ("FVU", 1),
    "ce_added": ("CE added (% of clean CE)", 100),
}


def draw(inputs: Inputs) -> Drawing:
    """A panel for each metric."""
    table = inputs.table("headline")
    subjects = headline_families(table, inputs.roles)
    released = of_the_same_size(inputs.together("released"), table)
    released = released[released["k"].isin(table["k"])]
    layers = layers_of(table)

    fig, axes = figure(len(PANELS))
    for ax, (metric, (label, scale)) in zip(axes, PANELS.items(), strict=True):
        for place, (name, subject) in enumerate(subjects.items()):
            offset = 0.16 * (place - (len(subjects) - 1) / 2)
            draw_by_layer(ax, pick(table, subject, metric), layers, offset, scale, **style_of(name))
            if subject == inputs.roles.get("remainder"):
                continue  # the authors have none
            theirs = released[released["table"].ne("none") == (name != BASELINE)]
            for _, of_k in theirs[theirs["metric"] == metric].groupby("subject"):
                draw_by_layer(ax, of_k, layers, offset, scale, **style_of(name) | RELEASED | {"label": None})
        label_layers(ax, layers)
        ax.set_ylabel(label)
        start_at_zero(ax)
    legend_above(fig, axes[0], *([key("released by the authors", **RELEASED)] if len(released) else []))
    return Drawing(fig, (table,))
