"""NMSE and CE added at checkpoints of the training, for the baseline and both tokenized forms.

Claim C2, the curves behind the speed-up on one schedule: NMSE (above) and CE added (below) on held-out tokens against
training tokens, one column per layer. Lines are means over seeds at each checkpoint and bands their range; a single seed
has no band. The thin horizontal line is the baseline's final value: the further left a tokenized curve crosses it, the
larger the speed-up. All SAEs see the same tokens in the same order, and the learning rate falls throughout training,
which bends the curves at the end. An axis is linear instead of logarithmic if it has values that are not positive.
"""

from tsae.figures.inputs import Drawing, Inputs
from tsae.figures.style import (
    COLOURS,
    draw_curve,
    grid,
    headline_families,
    key,
    layers_of,
    legend_above,
    line_of,
    log_axis,
    pick,
)
from tsae.profile.families import BASELINE

NEEDS = {"category": "Training", "claims": ["C2"], "tables": ["curves"], "compares": True}
PANELS = {
    "nmse": ("NMSE", 1),
    "ce_added": ("CE added (% of clean CE)", 100),
}


def draw(inputs: Inputs) -> Drawing:
    """A row of panels for each metric, a column for each layer."""
    table = inputs.table("curves")
    table = table.assign(thousands=table["tokens"] / 1000)
    layers = layers_of(table)

    fig, panels = grid(len(PANELS), len(layers), height=1.9, sharex=True, sharey="row")
    for row, (metric, (label, scale)) in zip(panels, PANELS.items(), strict=True):
        for ax, layer in zip(row, layers, strict=True):
            for name, subject in headline_families(table, inputs.roles).items():
                rows = pick(table, subject, metric, layer=layer)
                rows = rows[rows["tokens"] > 0]  # the axis is logarithmic
                draw_curve(ax, rows, "thousands", scale, **line_of(name))
                if name == BASELINE and len(rows):
                    final = rows.loc[rows["step"] == rows["step"].max(), "value"].mean()
                    ax.axhline(final * scale, color=COLOURS[name], lw=0.6, zorder=1)
        row[0].set_ylabel(label)
        log_axis(row[0], "y", table.loc[(table["metric"] == metric) & (table["tokens"] > 0), "value"] * scale)
    for ax, layer in zip(panels[0], layers, strict=True):
        ax.set_title(f"layer {layer}")
        log_axis(ax, "x", table.loc[(table["metric"] != "failed") & (table["tokens"] > 0), "thousands"])
    fig.supxlabel("training tokens (thousands)", fontsize="medium")
    legend_above(fig, panels[0][0], key("baseline's final value", COLOURS[BASELINE], lw=0.6))
    return Drawing(fig, (table,))
