"""How many times sooner a tokenized SAE is as good as its baseline: at equal loss, and on one schedule (C2)."""

from dataclasses import replace
from pathlib import Path

from matplotlib.transforms import ScaledTranslation

from tsae.ledger import load_published
from tsae.plots import (
    COLOURS,
    MARKERS,
    PUBLISHED,
    SEED,
    draw_seeds,
    figure,
    headline_families,
    key,
    layers_of,
    legend_above,
    log_axis,
    save,
)
from tsae.replicates import load_sums_of_run
from tsae.selection import ROLES, NotMeasuredError, Run
from tsae.speedups import EqualLossSpeedUp, SpeedUp, measure_equal_loss_speedup, measure_speedup
from tsae.table import read_table, read_tables

curves, headline = read_table(snakemake.input.curves), read_table(snakemake.input.headline)
published = load_published(snakemake.input.published)["speedup"]
run = Run(
    {"curves": curves, "headline": headline, "speed": read_tables(snakemake.input.budgets)},
    {role: getattr(snakemake.params, role) for role in ROLES if hasattr(snakemake.params, role)},
    simple_threshold=0,
    sums=load_sums_of_run(map(Path, snakemake.input.sums)),
    bootstrap=snakemake.params.bootstrap,
    seed=snakemake.params.bootstrap_seed,
)
PANELS = {
    "nmse": "NMSE",
    "ce_added": "CE added",
}
COUNTS = {
    "this run,\nequal loss": lambda run, metric, of, layer: measure_equal_loss_speedup(
        run, EqualLossSpeedUp(kind="equal_loss_speedup", metric=metric, of=of), layer
    ),
    "this run,\none schedule": lambda run, metric, of, layer: measure_speedup(
        run, SpeedUp(kind="speedup", metric=metric, of=of), layer
    ),
}
GAP = 0.8  # between groups, in layers
APART = 0.3  # forms of a tokenized SAE, in layers
BELOW = 0.03  # where what is never as good stands, of the height
layers, seeds = layers_of(headline), sorted(headline["seed"].dropna().unique())
family_of_role = {
    role: name
    for name, subject in headline_families(headline, snakemake.params).items()
    for role in ROLES[1:]
    if subject == run.roles.get(role)
}


def measured(count, run, *of):
    """What a count finds, or nothing where it lacks an SAE."""
    try:
        return count(run, *of)
    except NotMeasuredError:
        return None


def draw(ax, x, found, of_seeds, colour, marker):
    """Draw a speed-up, with its interval as far as it can be told, and those of single seeds."""
    within = [min(max(value, found.ends[0]), found.ends[1]) for value in (found.low, found.value, found.high)]
    if found.value == 0:
        ax.plot(x, BELOW, "x", color=colour, transform=ax.get_xaxis_transform())
    else:
        style = {"color": colour, "marker": marker} | ({"mfc": "none"} if found.value > found.ends[1] else {})
        ax.errorbar(x, within[1], yerr=[[within[1] - within[0]], [within[2] - within[1]]], **style)
        every.append(within[1])
    there = [min(one.value, one.ends[1]) for one in of_seeds if one.value > 0]
    draw_seeds(ax, [x] * len(there), there)
    every.extend(there)


fig, axes = figure(len(PANELS), height=2.8, sharey=True)
every = [1.0]
for ax, (metric, name) in zip(axes, PANELS.items(), strict=True):
    ticks, groups = [], []
    for title, count in COUNTS.items():
        found = {
            (role, layer): one
            for role in family_of_role
            for layer in layers
            if (one := measured(count, run, metric, role, layer)) is not None
        }
        first = ticks[-1][0] + 1 + GAP if ticks else 0
        if not found and "equal" in title:
            continue  # a profile need not have SAEs with schedules of their own
        shown = [role for role in family_of_role if any(of == role for of, _ in found)]
        for (role, layer), one in found.items():
            x = first + layers.index(layer) + APART * (shown.index(role) - (len(shown) - 1) / 2)
            alone = [
                replace(run, tables={block: t[t["seed"] == seed] for block, t in run.tables.items()}, bootstrap=2)
                for seed in seeds
            ]
            of_seeds = [s for r in alone if (s := measured(count, r, metric, role, layer)) is not None]
            family = family_of_role[role]
            draw(ax, x, one, of_seeds if len(of_seeds) > 1 else [], COLOURS[family], MARKERS[family])
        groups.append((title, [first + place for place in range(len(layers))]))
        ticks += zip(groups[-1][1], layers, strict=True)
    for model, theirs in published[published["metric"] == metric].groupby("model", sort=False):
        first = ticks[-1][0] + 1 + GAP
        xs = [first + x for x in range(len(theirs))]
        ax.plot(xs, theirs["speedup"], "o", mfc="none", color=PUBLISHED)
        every += list(theirs["speedup"])
        ticks += zip(xs, theirs["layer"], strict=True)
        groups.append((model, xs))
    raised = ax.get_xaxis_transform() + ScaledTranslation(0, 4 / 72, fig.dpi_scale_trans)
    for group, xs in groups:
        ax.text(sum(xs) / len(xs), 1, group, transform=raised, ha="center", va="bottom", fontsize="x-small")
    ax.axhline(1, color="0.75", lw=0.8, zorder=0)
    ax.set_xticks([x for x, _ in ticks], [str(layer) for _, layer in ticks])
    ax.tick_params("x", labelsize="x-small")
    ax.set_xlabel("layer (resid_pre)")
    ax.set_ylabel(f"speed-up to the baseline's\nfinal {name}")
log_axis(axes[0], "y", every)
marks = [key(name, COLOURS[name], marker=MARKERS[name], ls="") for name in family_of_role.values()]
marks += [key("seed", **SEED), key("published", PUBLISHED, ls="", marker="o", mfc="none")]
legend_above(fig, axes[0], *marks, columns=4)
save(fig, snakemake.output, curves)
