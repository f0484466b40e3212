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
# use their features (claims C4, C11).

# %%
import pandas as pd
from IPython.display import HTML, display

from tsae.explore.run import contexts_html, features_on, open_run

run = open_run()
layer = run.layers[len(run.layers) // 2]
features = {
    name: run.features(subject, layer) for name, subject in (("baseline", run.baseline), ("tokenized", run.tokenized))
}
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
    return texts[SHOWN].round(3)


# %% [markdown]
# ## How features are used
#
# Alive features of both SAEs by the share of their activation mass that lies on one token.

# %%
pd.DataFrame(
    {
        name: {
            "features": len(frame),
            "that fire on held-out tokens": int((frame["firings"] > 0).sum()),
            "median share on the top token": frame.loc[frame["firings"] >= 10, "top_token_share"].median(),
            "share with half their mass or more on one token": (
                frame.loc[frame["firings"] >= 10, "top_token_share"] >= 0.5
            ).mean(),
            "share with cosine 0.4 to 0.9 to a token-bias": frame.loc[frame["firings"] > 0, "token_bias_cosine"]
            .between(0.4, 0.9)
            .mean(),
        }
        for name, frame in features.items()
    }
).round(3)

# %% [markdown]
# ## Search by token
#
# The features of each SAE that respond most exclusively to a token. Try another token.

# %%
firing = features["baseline"].query("firings >= 10").sort_values("top_token_share", ascending=False)
token = int(firing["top_token"].iloc[0])
print("token:", run.shown(token))
for name, frame in features.items():
    found = features_on(frame, [token], n=3)
    display(HTML(f"<h3>{name}: {len(features_on(frame, [token], n=10**6))} features with this top token</h3>"))
    display(readable(found))
    display(HTML(contexts_html(run, found)))

# %% [markdown]
# ## The most complex features of a tokenized SAE
#
# The features with the smallest share of their mass on one token, among those that fire often enough to judge and on fewer than
# one token in fifty.

# %%
often = features["tokenized"].query("firings >= 30 and firing_rate < 0.02").sort_values("top_token_share")
display(readable(often.head(8)))
display(HTML(contexts_html(run, often.head(5))))

# %% [markdown]
# ## Matched features
#
# Both SAEs start from the same random features. For some simple features of the baseline, this shows the feature of the tokenized
# SAE with the most similar decoder row.

# %%
from tsae.measure.nearest import max_cosine_similarity

saes = {name: run.sae(subject, layer) for name, subject in (("baseline", run.baseline), ("tokenized", run.tokenized))}
simple = firing.head(8)
cosine, match = max_cosine_similarity(saes["baseline"].W_dec[simple["feature"].tolist()], saes["tokenized"].W_dec)
matched = features["tokenized"].iloc[match.tolist()]
pd.DataFrame(
    {
        "baseline feature": simple["feature"].to_numpy(),
        "its top token": [run.shown(t) for t in simple["top_token"]],
        "its share": simple["top_token_share"].to_numpy(),
        "nearest tokenized feature": match.tolist(),
        "cosine": cosine.tolist(),
        "firings": matched["firings"].to_numpy(),
        "share": matched["top_token_share"].to_numpy(),
    }
).round(3)
