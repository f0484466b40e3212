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
layer = run.layers[len(run.layers) // 2]
print(f"The run is {run.results}, with SAEs at layers {', '.join(map(str, run.layers))}.")

# %% [markdown]
# ## By length of context
#
# Mean cosine similarity between held-out residuals and the unigram residuals of their tokens, by the number of tokens up to
# and including them. The dashed floor is the unigram residual of a random other token. Residuals share a large mean, so the
# floor is far above zero.

# %%
OWN, OTHER = "residual_unigram_cosine", "residual_other_cosine"
table = run.table("baselines")
table = table[table["metric"].isin([OWN, OTHER])]
fig, (ax,) = figure(1, height=3)
for of_layer, colour in name_layer_colours(run.layers).items():
    for metric, style in ((OWN, "-"), (OTHER, "--")):
        rows = table[(table["metric"] == metric) & (table["layer"] == of_layer)]
        label = f"layer {of_layer}" if style == "-" else None
        draw_against(ax, rows, "at", color=colour, fmt=f"o{style}", label=label)
log2_ticks(ax, table["at"])
ax.set_xlabel("context length (tokens)")
ax.set_ylabel("cosine similarity")
ax.legend()
plt.show()

# %% [markdown]
# **What it shows:**

# %%
cosines = table.pivot_table(index=["layer", "at"], columns="metric", values="value")
for of_layer in run.layers:
    longest = cosines.loc[of_layer].iloc[-1]
    print(
        f"At layer {of_layer}, after {longest.name:g} tokens of context, the cosine similarity to the unigram residual of the "
        f"own token is {longest[OWN]:.2f}, and to that of a random other token {longest[OTHER]:.2f}."
    )
print("As long as the first number is above the second, the residual still says something about its token.")

# %% [markdown]
# ## A sentence of yours
#
# Write a sentence, and run the cells of this section again. Of a long text, only as much is read as fits in a sequence. For each of its tokens: the cosine similarity to its own unigram
# residual, the rank of that among all tokens of the vocabulary (1 is the nearest), and the tokens whose unigram residuals are
# nearest. In quotes you see which tokens begin with a space. Some tokens are parts of a character, and show as `�`.

# %%
SENTENCE = "The bridge over the river was opened in the spring of the next year."

# %%
sentence = run.sentence(SENTENCE, [layer])
unigrams = run.unigrams(layer)
looked_at = []
for token, residual in zip(sentence.tokens.tolist(), sentence.residuals[layer], strict=True):
    cosine = cosine_similarity(residual[None], unigrams, dim=1)
    looked_at.append(
        {
            "token": run.shown(token),
            "own cosine": cosine[token].item(),
            "own rank": 1 + int((cosine > cosine[token]).sum()),
            "nearest unigram residuals": " | ".join(run.nearest(residual, unigrams, 5)["token"]),
        }
    )
looked_at = pd.DataFrame(looked_at)
looked_at.round(3)

# %% [markdown]
# **What it shows:**

# %%
n_first = int((looked_at["own rank"] == 1).sum())
print(
    f"Of {len(looked_at)} tokens, {n_first} are nearest to their own unigram residual among all {len(unigrams)} at layer {layer}; "
    f"the median rank is {looked_at['own rank'].median():g}."
)
print("One sentence is an example, and no measurement: the section above is over all held-out text.")

# %% [markdown]
# ## How much of a residual lies along it
#
# The share of a centred residual's squared length that lies along the centred unigram residual of its token. A table with one
# free coefficient per position could explain this share.

# %%
shares = []
for of_layer in run.layers:
    unigrams = run.unigrams(of_layer)
    sequences = run.heldout(of_layer)
    x = sequences.residuals[sequences.kept].float()
    tokens = sequences.tokens[sequences.kept]
    x, u = x - x.mean(0), unigrams[tokens] - unigrams[tokens].mean(0)
    along = (x * u).sum(1).square() / (u.square().sum(1) * x.square().sum(1))
    shares.append({"layer": of_layer, "mean share": along.mean().item(), "median share": along.median().item()})
shares = pd.DataFrame(shares).set_index("layer")
shares.round(3)

# %% [markdown]
# **What it shows:**

# %%
chance = 1 / x.shape[1]
print(
    ", ".join(f"{share:.1%} at layer {of_layer}" for of_layer, share in shares["mean share"].items())
    + f": so much of a residual's squared length lies along one direction that its token alone decides. Along a random "
    f"direction of the {x.shape[1]} it would be {chance:.1%}."
)
