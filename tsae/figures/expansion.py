"""NMSE and dead features by number of features, and NMSE by trained parameters.

Claims C3 and C6: a tokenized SAE beats a baseline with several times its features, and smaller expansions have fewer dead
features. Panels show held-out NMSE against the number of features (a) and of trained parameters (b), the share of
features that fire on no held-out token (c), and the share that fired on none of the last training tokens (d; the window
is ``evaluation.dead_window``). SAEs with equal features differ in parameters: a learned table has a row for every token
of the vocabulary, of which a token reads one. A fixed table has as many numbers, but they are not trained and do not
count in (b). The table is fixed at its initial rows, as in the authors' sweep, or learned; with the remainder, the
encoder sees what the table leaves. Markers are means over seeds; small dots are seeds, where there are several. Bars are
the 95% interval of one seed (the mean of the seeds' own), over held-out documents for NMSE and over features for dead
ones, and leave out the spread of seeds. A tokenized point below the thin line has a lower error than the largest
baseline.
"""

from tsae.figures.inputs import Drawing, Inputs
from tsae.figures.style import (
    COLOURS,
    draw_against,
    families_in,
    grid,
    key,
    layers_of,
    legend_above,
    log2_ticks,
    log_axis,
    start_at_zero,
    style_of,
)
from tsae.profile.families import BASELINE

NEEDS = {
    "category": "Reconstruction",
    "claims": ["C3", "C6"],
    "blocks": {
        "expansion": {
            "has": ["table", "baseline"],
            "varies": "expansion",
            "by_family": True,
            "against": ["expansion"],
        },
    },
}
SAE = ["layer", "subject", "seed"]
PANELS = {
    "nmse": ("NMSE", 1),
    "dead_heldout": ("dead on held-out tokens\n(% of features)", 100),
    "dead_training": ("dead at the end of training\n(% of features)", 100),
}


def draw(inputs: Inputs) -> Drawing:
    """A row of panels for each layer."""
    table = inputs.table("expansion")
    layers = layers_of(table)
    # Tables of older runs have no numbers of parameters.
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
                # Among all rows: no smaller baseline takes the place of a failed one.
                largest = saes.loc[saes["table"] == "none", "expansion"].max()
                values = rows.loc[(rows["table"] == "none") & (rows["expansion"] == largest), "value"]
                if len(values):
                    ax.axhline(values.mean(), color=COLOURS[BASELINE], lw=0.6, zorder=1)
    legend_above(fig, panels[0][0], key("largest baseline", COLOURS[BASELINE], lw=0.6))
    return Drawing(fig, (table,))
