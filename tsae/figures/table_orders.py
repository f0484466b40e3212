"""What a table alone explains, by the length of the context that it sees, and the rank of a dense bypass that explains as much.

FVU of held-out residuals without an SAE; lower explains more, and 1 is the mean residual. Panel (a): a lookup by the last
one to four tokens. Each row is the mean training residual behind these tokens, shrunk towards the row of one token fewer by
as much as is best in training. At one token it is the table of conditional means, shrunk towards the mean residual. The
dashed line is the table of unigram residuals, scaled and shifted to fit the training residuals. Panel (b): the mean residual
and the leading principal components of the training residuals, which is the best dense bypass of that rank. Where a
curve falls below the line of its colour, the table of one token, a bypass of that rank explains more than the table. A
dense bypass with as many parameters as the table would be the identity. Bars are 95% intervals over held-out documents.
"""

from tsae.figures.inputs import Drawing, Inputs
from tsae.figures.labels import key, legend_above
from tsae.figures.style import bars, figure, layers_of, log2_ticks, name_layer_colours, over_seeds, pick, start_at_zero

NEEDS = {"category": "Token subspaces", "claims": ["B1"], "tables": ["baselines"]}
MARKERS = "osD^vP"
OF_UNIGRAMS = "unigram residuals, fitted"
OF_TABLE = "table of one token"


def draw(inputs: Inputs) -> Drawing:
    """A panel of lookups by order, and one of principal components by rank."""
    table = inputs.table("baselines")
    lookups = pick(table, "conditional-means", "table_fvu_by_order")
    unigrams = pick(table, "unigram-residuals", "table_fvu_fitted")
    components = pick(table, "residuals", "pca_fvu")
    fig, (by_order, by_rank) = figure(2, height=2.8, sharey=True)
    for place, (layer, colour) in enumerate(name_layer_colours(layers_of(lookups)).items()):
        style = {"fmt": f"{MARKERS[place % len(MARKERS)]}-", "color": colour, "label": f"layer {layer}"}
        for ax, rows in ((by_order, lookups), (by_rank, components)):
            curve = over_seeds(rows[rows["layer"] == layer], "at")
            ax.errorbar(curve.index, curve["value"], yerr=bars(curve), **style)
        fitted = unigrams.loc[unigrams["layer"] == layer, "value"].mean()
        by_order.axhline(fitted, color=colour, ls="--", lw=0.8)
        of_one = lookups[(lookups["layer"] == layer) & (lookups["at"] == 1)]["value"].mean()
        by_rank.axhline(of_one, color=colour, ls=":", lw=0.8)
    orders = sorted(lookups["at"].unique())
    by_order.set_xticks(orders, [f"{order:g}" for order in orders])
    by_order.set_xlabel("tokens that the lookup sees")
    by_order.set_title("lookup by the last tokens")
    log2_ticks(by_rank, components["at"])
    by_rank.set_xlabel("principal components")
    by_rank.set_title("dense bypass")
    by_order.set_ylabel("FVU of held-out residuals")
    start_at_zero(by_order)
    legend_above(fig, by_order, key(OF_UNIGRAMS, ls="--", lw=0.8), key(OF_TABLE, ls=":", lw=0.8))
    return Drawing(fig)
