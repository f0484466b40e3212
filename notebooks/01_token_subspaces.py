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
# # Token subspaces
#
# How much of a residual still says *which token is here*? The **unigram residual** of a token is the model's residual of the
# token after a short fixed prompt. If the residual of the same token in a long text is still close to it, a sparse
# autoencoder has to spend features on the token, unless a table does it. That motivates a tokenized SAE (claim C12).

# %%
import matplotlib.pyplot as plt
import pandas as pd
from torch.nn.functional import cosine_similarity

from tsae.explore.run import open_run
from tsae.figures.style import draw_against, figure, log2_ticks, name_layer_colours

run = open_run()
print(run.results, "layers", run.layers)

# %% [markdown]
# ## By length of context
#
# Mean cosine similarity between held-out residuals and the unigram residuals of their tokens, by the number of tokens up to
# and including them. The dashed floor is the unigram residual of a random other token. Residuals share a large mean, so the
# floor is far above zero.

# %%
table = run.table("baselines")
fig, (ax,) = figure(1, height=3)
for layer, colour in name_layer_colours(run.layers).items():
    for metric, style in (("residual_unigram_cosine", "-"), ("residual_other_cosine", "--")):
        rows = table[(table["metric"] == metric) & (table["layer"] == layer)]
        label = f"layer {layer}" if style == "-" else None
        draw_against(ax, rows, "at", color=colour, fmt=f"o{style}", label=label)
log2_ticks(ax, rows["at"])
ax.set_xlabel("context length (tokens)")
ax.set_ylabel("cosine similarity")
ax.legend()
plt.show()

# %% [markdown]
# ## Look at one sequence
#
# For a few tokens of one held-out sequence: the token, its similarity to its own unigram residual, and the tokens whose unigram
# residuals are nearest.

# %%
layer = run.layers[len(run.layers) // 2]
unigrams = run.unigrams(layer)
sequences = run.heldout(layer)
sequence = min(3, len(sequences.tokens) - 1)
positions = [p for p in (1, 2, 4, 8, 16, 31, 64, 127) if p < sequences.tokens.shape[1] and sequences.kept[sequence, p]]
looked_at = []
for position in positions:
    residual = sequences.residuals[sequence, position].float()
    token = int(sequences.tokens[sequence, position])
    near = run.nearest(residual, unigrams, 5)
    looked_at.append(
        {
            "position": position,
            "token": run.shown(token),
            "own cosine": round(cosine_similarity(residual, unigrams[token], dim=0).item(), 3),
            "nearest unigram residuals": " | ".join(near["token"]),
        }
    )
pd.DataFrame(looked_at)

# %% [markdown]
# ## How much of a residual lies along it
#
# The share of a centred residual's squared length that lies along the centred unigram residual of its token. A table with one
# free coefficient per position could explain this share.

# %%
shares = []
for layer in run.layers:
    unigrams = run.unigrams(layer)
    sequences = run.heldout(layer)
    x = sequences.residuals[sequences.kept].float()
    tokens = sequences.tokens[sequences.kept]
    x, u = x - x.mean(0), unigrams[tokens] - unigrams[tokens].mean(0)
    along = (x * u).sum(1).square() / (u.square().sum(1) * x.square().sum(1))
    shares.append({"layer": layer, "mean share": along.mean().item(), "median share": along.median().item()})
pd.DataFrame(shares).round(3)
