"""How much sooner a tokenized SAE is as good as its baseline: at equal loss, and on one schedule.

Claim C2: a tokenized SAE is as good as its baseline after a fraction of the training. The left of each panel, at equal
loss, is the number of the baseline's tokens divided by the number that a tokenized SAE needs for the baseline's NMSE (a)
or CE added (b). Tokenized SAEs were trained on an eighth, a quarter, half and all of the tokens, each with its own whole
learning rate schedule, and log(metric) is interpolated in log(tokens). On one schedule, as the authors count, is the
ratio of the training steps after which checkpoints of one training first match the baseline's end; that judges the
tokenized SAE before its learning rate has fallen. A profile may lack either. Lines join the layers of one model. Both use held-out tokens. Large markers are
for the mean of the seeds, with their 95% interval over held-out documents and seeds, paired; small dots are seeds, where
there are several. The grey line at 1 means no gain. A hollow coloured marker is a lower bound: the tokenized SAE is as
good at its first checkpoint, or with the smallest budget. A cross at the bottom is a tokenized SAE that never gets there;
an interval ends where the checkpoints or budgets do. Hollow grey circles are the authors' values for GPT-2 small and
Pythia-1.4B, from their project page, on one schedule and each over its own layers.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import ScaledTranslation

from tsae.claims.ledger import load_published
from tsae.claims.replicates import Measured, load_sums_of_run
from tsae.claims.selection import ROLES, NotMeasuredError, Run
from tsae.claims.speedups import EqualLossSpeedUp, SpeedUp, measure_equal_loss_speedup, measure_speedup
from tsae.figures.inputs import Drawing, Inputs
from tsae.figures.labels import key, legend_above
from tsae.figures.style import (
    COLOURS,
    LINES,
    MARKERS,
    PUBLISHED,
    draw_seeds,
    figure,
    headline_families,
    layers_of,
    log_axis,
)
from tsae.profile.config import Role

NEEDS = {
    "category": "Training",
    "claims": ["C2"],
    "blocks": {"headline": {}},
    "optional": ["speed"],
    "tables": ["curves"],
    "compares": True,
    "sums": ["headline", "speed", "curves"],
    "files": ["published"],
}
PANELS = {
    "nmse": "NMSE",
    "ce_added": "CE added",
}
Count = Callable[[Run, str, Role, int], Measured]
COUNTS: dict[str, Count] = {
    "this run,\nequal loss": lambda run, metric, of, layer: measure_equal_loss_speedup(
        run, EqualLossSpeedUp.model_validate({"kind": "equal_loss_speedup", "metric": metric, "of": of}), layer
    ),
    "this run,\none schedule": lambda run, metric, of, layer: measure_speedup(
        run, SpeedUp.model_validate({"kind": "speedup", "metric": metric, "of": of}), layer
    ),
}
GAP = 0.8  # between groups, in layers
APART = 0.3  # forms of a tokenized SAE, in layers
BELOW = 0.03  # place of a tokenized SAE that is never as good, as a share of the height


class Group(NamedTuple):
    """Neighbouring places along x, labelled by layer."""

    title: str
    xs: list[float]
    layers: list[int]


def draw(inputs: Inputs) -> Drawing:
    """A panel for each metric."""
    curves, headline = inputs.table("curves"), inputs.table("headline")
    published = load_published(inputs.file("published"))["speedup"]
    run = Run(
        {"curves": curves, "headline": headline, "speed": inputs.together("speed")},
        inputs.roles,
        simple_threshold=0,
        sums=load_sums_of_run(inputs.sums),
        bootstrap=inputs.bootstrap,
        seed=inputs.seed,
    )
    layers, seeds = layers_of(headline), sorted(headline["seed"].dropna().unique())
    family_of_role = {
        role: name
        for name, subject in headline_families(headline, inputs.roles).items()
        for role in ROLES[1:]
        if subject == run.roles.get(role)
    }
    by_seed = [
        replace(run, tables={block: t[t["seed"] == seed] for block, t in run.tables.items()}, bootstrap=2)
        for seed in seeds
    ]

    fig, axes = figure(len(PANELS), height=2.8, sharey=True)
    every = [1.0]
    for ax, (metric, name) in zip(axes, PANELS.items(), strict=True):
        groups: list[Group] = []
        for title, count in COUNTS.items():
            found = _measured(count, run, metric, itertools.product(family_of_role, layers))
            if not found and "equal" in title:
                continue  # the block `speed` is optional
            first = groups[-1].xs[-1] + 1 + GAP if groups else 0
            alone = [_measured(count, one, metric, found) for one in by_seed]
            every += _draw_group(ax, first, found, alone, family_of_role, layers)
            groups.append(Group(title, [first + place for place in range(len(layers))], layers))
        for model, theirs in published[published["metric"] == metric].groupby("model", sort=False):
            first = groups[-1].xs[-1] + 1 + GAP
            xs = [first + x for x in range(len(theirs))]
            ax.plot(xs, theirs["speedup"], "o-", mfc="white", lw=0.6, color=PUBLISHED)
            every += list(theirs["speedup"])
            groups.append(Group(f"published,\n{model}", xs, list(theirs["layer"])))
        raised = ax.get_xaxis_transform() + ScaledTranslation(0, 4 / 72, fig.dpi_scale_trans)
        for group in groups:
            middle = sum(group.xs) / len(group.xs)
            ax.text(middle, 1, group.title, transform=raised, ha="center", va="bottom", fontsize="x-small")
        ax.axhline(1, color="0.75", lw=0.8, zorder=0)
        ax.set_xticks([x for g in groups for x in g.xs], [str(layer) for g in groups for layer in g.layers])
        ax.tick_params("x", labelsize="x-small")
        ax.set_xlabel("layer (resid_pre)")
        ax.set_ylabel(f"speed-up in {name}")
    log_axis(axes[0], "y", every)
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    marks = [key(name, COLOURS[name], marker=MARKERS[name], ls=LINES[name]) for name in family_of_role.values()]
    legend_above(fig, axes[0], *marks)
    return Drawing(fig, (curves,))


Found = dict[tuple[Role, int], Measured]  # by role and layer


def _measured(count: Count, run: Run, metric: str, wanted: Iterable[tuple[Role, int]]) -> Found:
    """The speed-ups of roles and layers whose SAEs exist."""
    found: Found = {}
    for role, layer in wanted:
        with contextlib.suppress(NotMeasuredError):
            found[role, layer] = count(run, metric, role, layer)
    return found


def _draw_group(
    ax: Axes, first: float, found: Found, alone: Sequence[Found], family_of_role: Mapping[Role, str], layers: list[int]
) -> list[float]:
    """Draw speed-ups from `first` along x, for all seeds and each seed; returns the heights."""
    heights: list[float] = []
    shown = [role for role in family_of_role if any(of == role for of, _ in found)]
    for role in shown:
        family, joined = family_of_role[role], []
        for layer in (layer for of, layer in found if of == role):
            one = found[role, layer]
            x = first + layers.index(layer) + APART * (shown.index(role) - (len(shown) - 1) / 2)
            of_seeds = [of[role, layer] for of in alone if (role, layer) in of]
            of_seeds = of_seeds if len(of_seeds) > 1 else []
            drawn = _draw_speedup(ax, x, one, of_seeds, COLOURS[family], MARKERS[family])
            heights += drawn
            joined.append((x, drawn[0] if one.value > 0 else math.nan))
        ax.plot(*zip(*joined, strict=True), color=COLOURS[family], ls=LINES[family], lw=0.8, zorder=1)
    return heights


def _draw_speedup(
    ax: Axes, x: float, found: Measured, of_seeds: Sequence[Measured], colour: str, marker: str
) -> list[float]:
    """Draw a speed-up with its interval within the measurable range, and those of single seeds; returns the heights."""
    heights: list[float] = []
    low, value, high = (min(max(v, found.ends[0]), found.ends[1]) for v in (found.low, found.value, found.high))
    if found.value == 0:
        ax.plot(x, BELOW, "x", color=colour, transform=ax.get_xaxis_transform(), label="never as good")
    else:
        style: dict[str, Any] = {"color": colour, "marker": marker} | (
            {"mfc": "none", "label": "at least"} if found.value > found.ends[1] else {}
        )
        ax.errorbar(x, value, yerr=[[value - low], [high - value]], **style)
        heights.append(value)
    there = [min(one.value, one.ends[1]) for one in of_seeds if one.value > 0]
    draw_seeds(ax, [x] * len(there), there)
    return heights + there
