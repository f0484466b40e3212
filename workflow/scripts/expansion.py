"""NMSE and dead features against the number of features, and NMSE against that of parameters, family by family (C3, C6)."""

from tsae.families import BASELINE
from tsae.plots import (
    COLOURS,
    draw_against,
    families_in,
    grid,
    key,
    layers_of,
    legend_above,
    log2_ticks,
    log_axis,
    save,
    start_at_zero,
    style_of,
)
from tsae.table import read_table

table = read_table(snakemake.input.expansion)
SAE = ["layer", "subject", "seed"]
PANELS = {
    "nmse": ("NMSE", 1),
    "dead_heldout": ("dead on held-out tokens\n(% of features)", 100),
    "dead_training": ("dead at the end of training\n(% of features)", 100),
}
layers = layers_of(table)
# A table of an older run does not say how many parameters an SAE has.
sizes = table[table["metric"] == "n_parameters"].set_index(SAE)["value"]
table = table.join(sizes.rename("n_parameters") / 1e6, on=SAE)
columns = [("nmse", "expansion"), *([("nmse", "n_parameters")] * bool(len(sizes)))]
columns += [("dead_heldout", "expansion"), ("dead_training", "expansion")]

fig, panels = grid(len(layers), len(columns), height=2.3)
for row, layer in zip(panels, layers, strict=True):
    saes = table[table["layer"] == layer]
    for ax, (metric, against) in zip(row, columns, strict=True):
        label, scale = PANELS[metric]
        rows = saes[saes["metric"] == metric]
        for name, family in families_in(rows).items():
            draw_against(ax, family, against, scale, **style_of(name))
        if against == "expansion":
            log2_ticks(ax, saes["expansion"], "x")
            ax.set_xlabel("features / d_model")
        else:
            log_axis(ax, "x", rows[against].dropna())
            ax.tick_params("x", labelsize="x-small")
            ax.set_xlabel("trained parameters\n(millions)")
        ax.set_ylabel(label)
        ax.set_title(f"layer {layer}")
        start_at_zero(ax)
        if metric == "nmse":
            # Of all: where the largest failed, no smaller one takes its place.
            largest = saes.loc[saes["table"] == "none", "expansion"].max()
            values = rows.loc[(rows["table"] == "none") & (rows["expansion"] == largest), "value"]
            if len(values):
                ax.axhline(values.mean(), color=COLOURS[BASELINE], lw=0.6, zorder=1)
legend_above(fig, panels[0][0], key("largest baseline", COLOURS[BASELINE], lw=0.6))
save(fig, snakemake.output, table)
