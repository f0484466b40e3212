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
# # Features
#
# Search the features of a baseline and of a tokenized SAE by token, read the contexts on which they fire, and compare how the two
# use their features (claims C4, C11). A feature's **mass** is the sum of its activations on held-out text, and its **top token** is
# the one that most of this mass is on.

# %%
import pandas as pd
from IPython.display import HTML, display

from tsae.explore.run import contexts_html, features_on, open_run
from tsae.measure.nearest import max_cosine_similarity

run = open_run()
layer = run.layers[len(run.layers) // 2]
features = {role: run.features(subject, layer) for role, subject in run.headline.items()}
SHOWN = [
    "feature",
    "firings",
    "mean_activation",
    "top",
    "top_token_share",
    "top_bigram_share",
    "token_bias_cosine",
    "nearest token-bias",
]


def readable(rows: pd.DataFrame) -> pd.DataFrame:
    """The columns to look at, with tokens as text."""
    texts = rows.assign(
        **{
            "top": [run.shown(token) if pd.notna(token) else "" for token in rows["top_token"]],
            "nearest token-bias": [run.shown(token) for token in rows["token_bias_token"]],
        }
    )
    return texts[SHOWN].round(3).set_index("feature")


print(
    f"The run is {run.results}, at layer {layer}: {', '.join(f'{role} {name}' for role, name in run.headline.items())}."
)

# %% [markdown]
# ## How features are used
#
# Features of each SAE by the share of their activation mass that lies on one token, of those that fire at least 10 times.

# %%
used = {}
for role, frame in features.items():
    fires, often = frame[frame["firings"] > 0], frame[frame["firings"] >= 10]
    used[role] = {
        "features": len(frame),
        "that fire on held-out tokens": len(fires),
        "median share on the top token": often["top_token_share"].median(),
        "share with half their mass or more on one token": (often["top_token_share"] >= 0.5).mean(),
        "share with cosine 0.4 to 0.9 to a token-bias": fires["token_bias_cosine"].between(0.4, 0.9).mean(),
    }
used = pd.DataFrame(used)
used.round(3)

# %% [markdown]
# **What it shows:**

# %%
for role, numbers in used.items():
    print(
        f"Of the features of the {role} SAE, {numbers.iloc[1] / numbers.iloc[0]:.0%} fire on held-out text; {numbers.iloc[3]:.0%} of "
        f"those that fire often have half their mass on one token, and {numbers.iloc[4]:.0%} point roughly along a token-bias."
    )

# %% [markdown]
# ## Search by token
#
# Write a token as text, for example `TOKEN = " of"`, and run the cells of this section again. Mind the leading space: most words
# have one. A text that is no token of this model says what to write instead. Here is the token that some feature of the
# first SAE responds to most exclusively.

# %%
first = next(iter(features))
firing = features[first].query("firings >= 10").sort_values("top_token_share", ascending=False)
TOKEN = run.writable(firing["top_token"].dropna())[0]

# %%
token = run.token(TOKEN)
for role, frame in features.items():
    found = features_on(frame, [token], n=3)
    display(HTML(f"<h3>{role}</h3>"))
    display(readable(found))
    display(HTML(contexts_html(run, found)))

# %% [markdown]
# **What it shows:**

# %%
for role, frame in features.items():
    n_found = int((frame["top_token"] == token).sum())
    print(f"{TOKEN!r} is the top token of {n_found} of {len(frame)} features of the {role} SAE.")
print(
    "A feature whose contexts all mark one token is simple. If the contexts share more than the token, it is more than that."
)

# %% [markdown]
# ## The most complex features
#
# The features of the last SAE with the smallest share of their mass on one token, among those that fire often enough to judge
# and on fewer than one token in fifty.

# %%
last = list(features)[-1]
often = features[last].query("firings >= 30 and firing_rate < 0.02").sort_values("top_token_share")
display(readable(often.head(8)))
display(HTML(contexts_html(run, often.head(5))))

# %% [markdown]
# **What it shows:**

# %%
if often.empty:
    print(f"No feature of the {last} SAE fires that often and that rarely.")
else:
    print(
        f"{len(often)} features of the {last} SAE fire often enough and rarely enough; the {min(8, len(often))} above have at most "
        f"{often['top_token_share'].head(8).max():.0%} of their mass on one token."
    )
    print("Read the contexts, and say what they share. If nothing comes to mind, that is a finding, too.")

# %% [markdown]
# ## Matched features
#
# Both SAEs start from the same random features. For some simple features of the baseline, this shows the feature of the tokenized
# SAE with the most similar decoder row.

# %%
if len(features) < 2:
    matches = pd.DataFrame()
else:
    saes = {role: run.sae(subject, layer) for role, subject in run.headline.items()}
    simple = firing.head(8)
    cosine, match = max_cosine_similarity(saes["baseline"].W_dec[simple["feature"].tolist()], saes["tokenized"].W_dec)
    matched = features["tokenized"].iloc[match.tolist()]
    matches = pd.DataFrame(
        {
            "baseline feature": simple["feature"].to_numpy(),
            "its top token": [run.shown(token) for token in simple["top_token"]],
            "its share": simple["top_token_share"].to_numpy(),
            "nearest tokenized feature": match.tolist(),
            "cosine": cosine.tolist(),
            "firings": matched["firings"].to_numpy(),
            "share": matched["top_token_share"].to_numpy(),
        }
    )
    display(matches.round(3))

# %% [markdown]
# **What it shows:**

# %%
if len(matches):
    print(
        f"The simple features above have {matches['its share'].median():.0%} of their mass on their top token. Their nearest tokenized "
        f"features have a median cosine similarity of {matches['cosine'].median():.2f}, and {matches['share'].median():.0%} of their "
        "mass on theirs."
    )
    print(
        "A high cosine similarity says that the feature is still there. A low one says that the tokenized SAE has none like it."
    )
else:
    print(f"This run has the {first} SAE alone, so there is nothing to match.")
