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
# The table of a tokenized SAE has one row per token of the vocabulary, its **token-bias**. Rows start as a multiple of the unigram
# residuals, which are the model's residuals of single tokens after a short fixed prompt, and are trained with the rest. How far
# do they move (claims C7, C8), and do they name the token (C9)?

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
print(f"The run is {run.results}, the SAE {run.tokenized} of layer {layer}.")
print(f"Of its {len(table)} token-biases, {int((counts > 0).sum())} are of tokens seen in training.")

# %% [markdown]
# ## Nearest tokens of a token-bias
#
# Write tokens as text, for example `TOKENS = [" of", " bridge", "ing"]`, and run the cells of this section again. Mind the leading
# space: most words have one. A text that is no token of this model says what to write instead.

# %%
TOKENS = run.writable(counts.argsort(descending=True)[:400:40])

# %%
near = {text: run.nearest(table[run.token(text)], table, 7).iloc[1:] for text in TOKENS}
pd.DataFrame({repr(text): rows["token"].tolist() for text, rows in near.items()}).T.rename_axis("token")

# %% [markdown]
# **What it shows:**

# %%
for text in TOKENS[:3]:
    token, cosine = near[text].iloc[0]
    print(
        f"The token-bias nearest to that of {text!r} is the one of {token}, with a cosine similarity of {cosine:.2f}."
    )
print(
    "Token-biases share a large mean, so that all of them are similar. Which ones are nearest says more than how near they are."
)

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
        start = sae.point.lookup_scale * unigrams[chosen].norm(dim=1)
        groups.append(
            {
                "seen": name,
                "tokens": int(chosen.sum()),
                "median cosine to its unigram residual": own[chosen].median().item(),
                "to another's": floor[chosen].median().item(),
                "length / start": (table[chosen].norm(dim=1) / start).median().item(),
            }
        )
groups = pd.DataFrame(groups).set_index("seen")
groups.round(3)

# %% [markdown]
# **What it shows:**

# %%
most = groups.iloc[-1]
print(
    f"Tokens seen {most.name} times: the median token-bias has a cosine similarity of {most.iloc[1]:.2f} to its own unigram "
    f"residual, against {most.iloc[2]:.2f} to another token's, and {most.iloc[3]:.2f} times its length at the start."
)
print("A row is only as well trained as its token is frequent: rows of rare tokens are near their start.")

# %% [markdown]
# The rows that moved most, of tokens seen at least 20 times:

# %%
seen = (counts >= 20).nonzero().flatten()
moved = seen[own[seen].argsort()[:12]].tolist()
moved = pd.DataFrame(
    [{"token": run.shown(token), "cosine": own[token].item(), "seen": int(counts[token])} for token in moved]
)
moved.round(3)

# %% [markdown]
# **What it shows:** what these tokens have in common is for you to say. Look at their counts first: a frequent token has more
# steps to move in.

# %% [markdown]
# ## Detecting the last token
#
# Which row of a table is most similar to a held-out residual? If it is the row of the token at the position, the table has
# detected the token. Below are tokens at the end of held-out sequences that the token-biases miss.

# %%
sequences = run.heldout(layer)
last = sequences.kept[:, -1]
residuals, tokens = sequences.residuals[last, -1].float(), sequences.tokens[last, -1]
named = {
    name: max_cosine_similarity(residuals, rows)[1]
    for name, rows in (("token-biases", table), ("unigram residuals", unigrams))
}
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

# %% [markdown]
# **What it shows:**

# %%
for name, found in named.items():
    print(
        f"The {name} name the last token of {(found == tokens).float().mean():.1%} of {len(tokens)} held-out sequences."
    )
print(
    "Look at each miss above: is the row that won another spelling of the same word? Had training seen the token often?"
)
