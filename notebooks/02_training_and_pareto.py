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
# At equal sparsity, does a tokenized SAE reconstruct better (claim C1)? How much sooner does it match its baseline's final
# value (claim C2)?

# %%
import matplotlib.pyplot as plt
import pandas as pd

from tsae.claims.speedups import speedups
from tsae.explore.run import open_run
from tsae.figures.style import COLOURS, draw_curve, figure, log_axis

run = open_run()
print("baseline:", run.baseline, " tokenized:", run.tokenized)

# %% [markdown]
# ## One training
#
# Every SAE keeps its history beside it: the loss on training batches, and NMSE on held-out tokens.

# %%
layer = run.layers[len(run.layers) // 2]
for name, subject in (("baseline", run.baseline), ("tokenized", run.tokenized)):
    history = run.history(subject, layer)
    plt.plot(history["tokens"], history["heldout_nmse"], color=COLOURS[name], label=name)
plt.xscale("log")
plt.xlabel("training tokens")
plt.ylabel(f"held-out NMSE, layer {layer}")
plt.legend()
plt.show()
history.tail()

# %% [markdown]
# ## The checkpoints
#
# The headline SAEs leave checkpoints during training. Each was measured on all held-out sequences for NMSE, and on some of
# them for the model's loss with the reconstruction in place.

# %%
curves = run.table("curves")
fig, axes = figure(2, height=2.8)
for ax, metric in zip(axes, ("nmse", "ce_added"), strict=True):
    for name, subject in (("baseline", run.baseline), ("tokenized", run.tokenized)):
        rows = curves[(curves["metric"] == metric) & (curves["subject"] == subject) & (curves["layer"] == layer)]
        draw_curve(ax, rows, "tokens", color=COLOURS[name], label=name)
    log_axis(ax, "x", rows["tokens"])
    ax.set_xlabel("training tokens")
    ax.set_ylabel(f"{metric}, layer {layer}")
axes[0].legend()
plt.show()

# %% [markdown]
# ## Speed-up
#
# The steps of the baseline divided by the steps after which the tokenized SAE was as good, interpolated between checkpoints in
# the logarithm of the step. Learning rates follow one schedule, so a tokenized SAE that stopped there would have had a higher
# one. The authors count in this way; it promises no wall time.

# %%
pd.concat(
    [speedups(curves, run.baseline, run.tokenized, metric).assign(metric=metric) for metric in ("nmse", "ce_added")]
)

# %% [markdown]
# ## The Pareto front
#
# Every point of the sweep by its L0 and its errors (NMSE, CE added).

# %%
pareto = run.table("pareto")
columns = ["architecture", "table", "subject"]
wide = pareto[pareto["metric"].isin(["l0", "nmse", "fvu", "ce_added", "dead_heldout"])].pivot_table(
    index=columns, columns="metric", values="value", observed=True
)
wide.sort_values(["architecture", "table", "l0"]).round(4)

# %%
fig, axes = figure(2, height=3)
for ax, metric in zip(axes, ("nmse", "ce_added"), strict=True):
    for (architecture, table), rows in wide.groupby(["architecture", "table"]):
        rows = rows.sort_values("l0")
        style = {"topk": "o-", "relu": "s--", "gated": "^:"}[architecture]
        colour = COLOURS["baseline" if table == "none" else "tokenized"]
        ax.plot(rows["l0"], rows[metric], style, color=colour, label=f"{architecture}, {table}")
    log_axis(ax, "x", wide["l0"])
    log_axis(ax, "y", wide[metric])
    ax.set_xlabel("L0")
    ax.set_ylabel(metric)
axes[0].legend(fontsize=6)
plt.show()
