"""How many times sooner the tokenized SAE reaches the baseline's final value, by layer (C2)."""

from tsae.ledger import load_published
from tsae.plots import COLOURS, PUBLISHED, draw_seeds, figure, key, layers_of, legend_above, log_axis, save
from tsae.speedups import mean_of_seeds, speedups
from tsae.table import read_table

curves = read_table(snakemake.input.curves)
published = load_published(snakemake.input.published)["speedup"]
PANELS = {
    "nmse": "NMSE",
    "ce_added": "CE added",
}
GAP = 0.8  # between models, in layers
place = {layer: float(x) for x, layer in enumerate(layers_of(curves))}

fig, axes = figure(len(PANELS), sharey=True)
every = [1.0]
for ax, (metric, name) in zip(axes, PANELS.items(), strict=True):
    of = (snakemake.params.baseline, snakemake.params.tokenized, metric)
    found, of_mean = speedups(curves, *of), speedups(mean_of_seeds(curves), *of)
    ax.plot(of_mean["layer"].map(place), of_mean["speedup"], "o", color=COLOURS["tokenized"], label="mean of seeds")
    draw_seeds(ax, found["layer"].map(place), found["speedup"])
    never = found[found["speedup"].isna()]
    ax.plot(
        never["layer"].map(place),
        [0.03] * len(never),
        "x",
        color=COLOURS["tokenized"],
        transform=ax.get_xaxis_transform(),
    )
    every += list(found["speedup"].dropna())
    ticks, groups = [(x, layer) for layer, x in place.items()], [("this run", list(place.values()))]
    for model, theirs in published[published["metric"] == metric].groupby("model", sort=False):
        first = ticks[-1][0] + 1 + GAP
        xs = [first + x for x in range(len(theirs))]
        ax.plot(xs, theirs["speedup"], "o", mfc="none", color=PUBLISHED)
        every += list(theirs["speedup"])
        ticks += zip(xs, theirs["layer"], strict=True)
        groups.append((model, xs))
    for group, xs in groups:
        ax.text(sum(xs) / len(xs), 1.02, group, transform=ax.get_xaxis_transform(), ha="center", fontsize="small")
    ax.axhline(1, color="0.75", lw=0.8, zorder=0)
    ax.set_xticks([x for x, _ in ticks], [str(layer) for _, layer in ticks])
    ax.tick_params("x", labelsize="x-small")
    ax.set_xlabel("layer (resid_pre)")
    ax.set_ylabel(f"speed-up to the baseline's\nfinal {name} (ratio of steps)")
log_axis(axes[0], "y", every)
marks = (
    key("seed", "black", ls="", marker=".", markersize=2),
    key("published", PUBLISHED, ls="", marker="o", mfc="none"),
)
legend_above(fig, axes[0], *marks)
save(fig, snakemake.output, curves)
