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
# # Token-biases
#
# The table of a tokenized SAE has one row per token of the vocabulary. Rows start as a multiple of the unigram residuals and are
# trained with the rest. How far do they move (claims C7, C8), and do they name the token (C9)?

# %%
import pandas as pd
import torch
from torch.nn.functional import cosine_similarity

from tsae.explore.run import open_run
from tsae.measure.nearest import max_cosine_similarity

run = open_run()
layer = run.layers[len(run.layers) // 2]
sae = run.sae(run.tokenized, layer)
table, unigrams = sae.W_lookup, run.unigrams(layer)
counts = run.residuals(layer, "train").token_counts(len(table))
print(f"layer {layer}: {len(table)} token-biases, {(counts > 0).sum()} of tokens seen in training")

# %% [markdown]
# ## Nearest tokens of a token-bias
#
# Change the tokens and run the cell again. Mind the leading space: most words have one.

# %%
frequent = counts.argsort(descending=True)[:400:40].tolist()
pd.DataFrame(
    {run.shown(token): run.nearest(table[token], table, 7)["token"][1:].tolist() for token in frequent}
).T.rename_axis("token")

# %% [markdown]
# ## What training did to them
#
# Cosine similarity of each token-bias to the unigram residual that it started from, by how often the token was seen. A row
# never seen stays at its start. The floor is another token's unigram residual.

# %%
own = cosine_similarity(table, unigrams, dim=1)
shuffled = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
floor = cosine_similarity(table, unigrams[shuffled], dim=1)
groups = []
for low, high in ((0, 0), (1, 1), (2, 4), (5, 19), (20, 99), (100, 10**9)):
    chosen = (counts >= low) & (counts <= high)
    if chosen.any():
        name = f"{low}" if low == high else f"{low} to {high}" if high < 10**9 else f"{low} and more"
        groups.append(
            {
                "seen": name,
                "tokens": int(chosen.sum()),
                "median cosine to its unigram residual": own[chosen].median().item(),
                "to another's": floor[chosen].median().item(),
                "length / start": (table[chosen].norm(dim=1) / (sae.point.lookup_scale * unigrams[chosen].norm(dim=1)))
                .median()
                .item(),
            }
        )
pd.DataFrame(groups).round(3)

# %% [markdown]
# The rows that moved most, of tokens seen at least 20 times:

# %%
seen = (counts >= 20).nonzero().flatten()
moved = seen[own[seen].argsort()[:12]].tolist()
pd.DataFrame([{"token": run.shown(t), "cosine": round(own[t].item(), 3), "seen": int(counts[t])} for t in moved])

# %% [markdown]
# ## Detecting the last token
#
# Which row of a table is most similar to a held-out residual? If it is the row of the token at the position, the table has
# detected the token.

# %%
sequences = run.heldout(layer)
last = sequences.kept[:, -1]
residuals, tokens = sequences.residuals[last, -1].float(), sequences.tokens[last, -1]
named = {
    name: max_cosine_similarity(residuals, rows)[1]
    for name, rows in (("token-biases", table), ("unigram residuals", unigrams))
}
print({name: f"{(found == tokens).float().mean():.1%}" for name, found in named.items()})
wrong = (named["token-biases"] != tokens).nonzero().flatten()[:10].tolist()
pd.DataFrame(
    [
        {
            "last token": run.shown(tokens[i]),
            **{name: run.shown(found[i]) for name, found in named.items()},
            "seen": int(counts[tokens[i]]),
        }
        for i in wrong
    ]
)
