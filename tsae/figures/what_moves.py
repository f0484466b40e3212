"""What moves into the table.

A table gives every token a row, so features need not stand for tokens. Left, above: of the features of each bin of firing rates, the
share of simple ones, with at least half of their activation mass on one token, at the lower end of the bin; features that fire too
rarely on held-out tokens to be judged (``simple.min_firings``) are left out. Below it is the share of all features in each bin; on
the left edge are features that never fire. In the middle is how well a probe tells held-out tokens that begin with a letter from
others, as a mean of balanced accuracies over letters, from the k features that differ most: 50% is chance, and no token of the vocabulary is
both trained and tested on. The dashed line is a linear probe on residuals themselves, and the dotted one a probe on rows of the
table. Right is absorption, as SAEBench defines it: the share of held-out tokens with a letter that the probe on residuals finds, at which
no main feature of the letter fires and one other feature stands in for them. All are of the middle layer. Points are means over
seeds with the 95% interval of one, over features (left) or tokens of the vocabulary; small dots are seeds, where there are several.
"""

from matplotlib.axes import Axes

from tsae.figures.inputs import Drawing, Inputs
from tsae.figures.labels import key, legend_above
from tsae.figures.style import (
    bars,
    draw_against,
    draw_seeds,
    grid,
    headline_families,
    layers_of,
    log_axis,
    over_seeds,
    start_at_zero,
    style_of,
)

NEEDS = {
    "category": "Features",
    "claims": ["B5"],
    "blocks": {"headline": {"has": ["baseline", "tokenized"]}},
    "tables": ["baselines"],
}
NEVER = 3e-6  # where features that never fire are drawn; the lowest bin begins at 1e-5


def draw(inputs: Inputs) -> Drawing:
    """Shares by firing rate, accuracy by the number of features, and absorption, of the middle layer."""
    table = inputs.table("headline")
    layers = layers_of(table)
    middle = layers[len(layers) // 2]
    ours, alone = (rows[rows["layer"] == middle] for rows in (table, inputs.table("baselines")))
    subjects = headline_families(table, inputs.roles)

    fig, ((simple, accuracy, absorption), (density, *unused)) = grid(
        2, 3, height=1.9, gridspec_kw={"height_ratios": [2, 1]}
    )
    # The two panels on the right are as high as both on the left.
    places = simple.get_gridspec()
    assert places is not None
    for column, (ax, below) in enumerate(zip((accuracy, absorption), unused, strict=True), start=1):
        ax.set_subplotspec(places[:, column])
        below.remove()
    for place, (name, subject) in enumerate(subjects.items()):
        rows = ours[ours["subject"] == subject]
        of = dict(list(rows.groupby("metric")))
        style = style_of(name)
        if "simple_share_by_rate" in of:
            draw_against(simple, of["simple_share_by_rate"], "at", 100, **style)
        if "density" in of:
            shares = over_seeds(of["density"].assign(at=of["density"]["at"].replace(0.0, NEVER)), "at")["value"]
            density.plot(shares.index, shares * 100, drawstyle="steps-post", **style | {"marker": "", "label": None})
        if "first_letter_accuracy" in of:
            draw_against(accuracy, of["first_letter_accuracy"], "at", 100, **style)
        if "first_letter_accuracy_table" in of:
            value = of["first_letter_accuracy_table"]["value"].mean()
            accuracy.axhline(100 * value, color=style["color"], lw=0.9, ls=":", zorder=1)
        if "first_letter_absorption" in of:
            found = of["first_letter_absorption"].assign(place=float(place))
            summary = over_seeds(found, "place")
            absorption.errorbar(
                summary.index, summary["value"] * 100, yerr=bars(summary, 100), **style | {"ls": "", "label": None}
            )
            if found["seed"].nunique() > 1:
                draw_seeds(absorption, found["place"], found["value"] * 100)
    ceiling = alone[(alone["subject"] == "residuals") & (alone["metric"] == "first_letter_accuracy")]
    if len(ceiling):
        accuracy.axhline(100 * ceiling["value"].mean(), color="0.25", lw=0.9, ls="--", zorder=1)
    _label(simple, density, accuracy, absorption, len(subjects))
    simple.set_title(f"layer {middle}", fontsize="small")
    legend_above(
        fig,
        simple,
        key("probe on residuals", lw=0.9, ls="--"),
        key("probe on rows of the table", lw=0.9, ls=":"),
    )
    return Drawing(fig, (table,))


def _label(simple: Axes, density: Axes, accuracy: Axes, absorption: Axes, n_subjects: int) -> None:
    """Axes and their labels."""
    for ax in (simple, density):
        ax.set_xscale("log")
        ax.set_xlim(NEVER, 1)
    simple.set_ylim(0, 101)
    simple.set_ylabel("simple features (%)")
    simple.tick_params(labelbottom=False)
    start_at_zero(density)
    density.set_ylabel("features (%)")
    density.set_xlabel("firing rate (share of tokens)")
    log_axis(accuracy, "x", [1, 5])
    accuracy.set_xticks([1, 2, 5], ["1", "2", "5"])
    accuracy.set_ylim(min(49, accuracy.get_ylim()[0]), 101)
    accuracy.set_xlabel("features k of the probe")
    accuracy.set_ylabel("first-letter balanced accuracy (%)")
    absorption.set_xticks([])
    absorption.set_xlim(-0.7, n_subjects - 0.3)
    start_at_zero(absorption)
    absorption.set_ylabel("absorbed first letters (%)")
