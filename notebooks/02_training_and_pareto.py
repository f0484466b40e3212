# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Training and the Pareto front
#
# At equal sparsity, does a tokenized SAE reconstruct better than its baseline, which is the same SAE without a table (claim C1)?
# How much sooner does it match its baseline's final value (claim C2)?
#
# **NMSE** is the squared error of the reconstruction, divided by the squared length of the residual: 0 is perfect. **CE added** is
# how much the model's own loss (cross-entropy) rises when the reconstruction takes the place of the residual, as a share of that
# loss. **L0** is the number of active features per token.

# %%
import matplotlib.pyplot as plt
import pandas as pd

from tsae.claims.speedups import speedups
from tsae.explore.run import open_run
from tsae.figures.style import COLOURS, MARKERS, draw_curve, families_in, figure, log_axis
from tsae.profile.architectures import label_of

run = open_run()
layer = run.layers[len(run.layers) // 2]
print(f"The run is {run.results}; the baseline is {run.baseline}, the tokenized SAE {run.tokenized}.")

# %% [markdown]
# ## One training
#
# Every SAE keeps its history beside it: the loss on training batches, and NMSE on held-out tokens.

# %%
histories = {role: run.history(subject, layer) for role, subject in run.headline.items()}
fig, (ax,) = figure(1, height=2.8)
for role, history in histories.items():
    ax.plot(history["tokens"], history["heldout_nmse"], color=COLOURS[role], label=role)
log_axis(ax, "x", pd.concat(histories.values())["tokens"])
ax.set_xlabel("training tokens")
ax.set_ylabel(f"held-out NMSE, layer {layer}")
ax.legend()
plt.show()

# %% [markdown]
# **What it shows:**

# %%
# A training that failed may have no history.
ends = {role: list(history["heldout_nmse"].iloc[[0, -1]]) for role, history in histories.items() if len(history)}
for role, (first, last) in ends.items():
    print(f"NMSE of the {role} SAE goes from {first:.3f} to {last:.3f}.")
if {"baseline", "tokenized"} <= ends.keys():
    ratio = ends["tokenized"][-1] / ends["baseline"][-1]
    print(f"At the end the tokenized SAE has {ratio:.2f} times the error of the baseline.")

# %% [markdown]
# ## The checkpoints
#
# The headline SAEs leave checkpoints during training. Each was measured on all held-out sequences for NMSE, and on some of
# them for CE added. Lines are means over seeds, bands their range.

# %%
LABELS = {"nmse": "NMSE", "ce_added": "CE added"}
curves = run.table("curves")
of_layer = curves[curves["layer"] == layer]
fig, axes = figure(2, height=2.8)
for ax, (metric, label) in zip(axes, LABELS.items(), strict=True):
    for role, subject in run.headline.items():
        rows = of_layer[(of_layer["metric"] == metric) & (of_layer["subject"] == subject)]
        draw_curve(ax, rows, "tokens", color=COLOURS[role], label=role)
    log_axis(ax, "x", of_layer["tokens"].dropna())
    ax.set_xlabel("training tokens")
    ax.set_ylabel(f"{label}, layer {layer}")
axes[0].legend()
plt.show()

# %% [markdown]
# **What it shows:**

# %%
means = of_layer.pivot_table(index=["metric", "step"], columns="subject", values="value")
for metric, label in LABELS.items():
    start, end = (means.loc[metric].reindex(columns=[run.baseline, run.tokenized]).iloc[at] for at in (0, -1))
    print(
        f"{label} of the baseline is {start[run.baseline]:.3f} at the first checkpoint and {end[run.baseline]:.3f} at the end; of the "
        f"tokenized SAE {start[run.tokenized]:.3f} and {end[run.tokenized]:.3f}."
    )

# %% [markdown]
# ## Speed-up
#
# The steps of the baseline divided by the steps after which the tokenized SAE was as good, interpolated between checkpoints in
# the logarithm of the step. Learning rates follow one schedule, so a tokenized SAE that stopped there would have had a higher
# one. The authors count in this way; it promises no wall time.

# %%
faster = pd.concat(
    [speedups(curves, run.baseline, run.tokenized, metric).assign(metric=label) for metric, label in LABELS.items()]
)
faster.round(2)

# %% [markdown]
# **What it shows:**

# %%
for (label, at_layer), rows in faster.groupby(["metric", "layer"], sort=False):
    there = rows["speedup"].dropna()
    sooner = f", {there.median():.1f} times sooner in the median" if len(there) else ""
    print(
        f"{label}, layer {at_layer}: {len(there)} of {len(rows)} tokenized SAEs get as good as the baseline ends{sooner}."
    )

# %% [markdown]
# ## A sentence of yours
#
# Write a sentence, and run the cells of this section again. Of a long text, only as much is read as fits in a sequence. For each of its tokens: the error of both SAEs (NMSE). The last
# column is what the tokenized SAE has left of the baseline's error: below 1 is better.

# %%
SENTENCE = "The bridge over the river was opened in the spring of the next year."

# %%
sentence = run.sentence(SENTENCE, [layer])
kept = sentence.kept[layer]
x, tokens = sentence.residuals[layer][kept], sentence.tokens[kept]
errors = {
    role: (run.sae(subject, layer)(x, tokens) - x).square().sum(1).detach().numpy()
    for role, subject in run.headline.items()
}
lengths = x.square().sum(1).numpy()
by_token = pd.DataFrame({role: error / lengths for role, error in errors.items()})
by_token.insert(0, "token", [run.shown(token) for token in tokens])
by_token["tokenized / baseline"] = by_token["tokenized"] / by_token["baseline"]
by_token.round(3)

# %% [markdown]
# **What it shows:**

# %%
print(
    f"In this sentence the tokenized SAE makes {errors['tokenized'].sum() / errors['baseline'].sum():.2f} times the squared error "
    f"of the baseline. It is better at {int((by_token['tokenized / baseline'] < 1).sum())} of {len(by_token)} tokens."
)
if not kept.all():
    print(f"Left out, since their residuals are outliers by length: {int((~kept).sum())} tokens.")

# %% [markdown]
# ## The Pareto front
#
# Every point of the sweep's block `pareto` by its L0 and its errors, means over seeds. Further left is sparser, lower is better.

# %%
pareto = run.table("pareto")
METRICS = ["l0", "nmse", "fvu", "ce_added", "dead_heldout"]
points = []
for family, rows in families_in(pareto[pareto["metric"].isin(METRICS)]).items():
    of_family = rows.pivot_table(
        index=["layer", "architecture", "subject"], columns="metric", values="value", observed=True
    )
    points.append(of_family.reindex(columns=METRICS).assign(SAE=family).reset_index())
points = (
    pd.concat(points).sort_values(["layer", "architecture", "SAE", "l0"]).set_index(["layer", "architecture", "SAE"])
)
points.round(4)

# %%
STYLES = ("-", "--", ":", "-.")
architectures = points.index.unique("architecture")
lines = dict(zip(architectures, (STYLES[place % len(STYLES)] for place in range(len(architectures))), strict=True))
fig, axes = figure(2, height=3.4)
for ax, (metric, label) in zip(axes, LABELS.items(), strict=True):
    for (of_layer, architecture, family), rows in points.groupby(level=points.index.names):
        name = f"{label_of(architecture)}, {family}, layer {of_layer}"
        style = {"color": COLOURS[family], "marker": MARKERS[family], "ls": lines[architecture]}
        ax.plot(rows["l0"], rows[metric], **style, label=name)
    log_axis(ax, "x", points["l0"])
    log_axis(ax, "y", points[metric])
    ax.set_xlabel("L0 (active features per token)")
    ax.set_ylabel(label)
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=7)
plt.show()

# %% [markdown]
# **What it shows:**

# %%
for role, subject in (("baseline", run.baseline), ("tokenized SAE", run.tokenized)):
    measured = points[points["subject"] == subject]
    for (of_layer, *_), row in measured.iterrows():
        print(
            f"At layer {of_layer}, the {role} of the headline has an L0 of {row['l0']:.1f}, an NMSE of {row['nmse']:.4f}, and adds "
            f"{row['ce_added']:.1%} to the model's loss."
        )
print("Compare SAEs at equal L0 alone, since more active features make a reconstruction easier.")
