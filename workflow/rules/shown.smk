"""What notebooks and the feature explorer show: the headline SAEs at one layer."""

from tsae.profile.shown import notebooks_of, shown_of

SHOWN = shown_of(CONFIG)
EXPLORED = SHOWN.explored
NOTEBOOKS = notebooks_of(CONFIG)
ONE_PAGE = CONFIG.tokens.heldout <= 100_000  # else the text and the details of the feature explorer are beside its page


def files_of_explorer():
    """Inputs of the feature explorer: the headline baseline and tokenized SAE at the middle layer and lowest seed."""
    saes = [SHOWN.saes[role] for role in EXPLORED]
    return {
        "saes": expand("<results>/saes/{sae}/sae.safetensors", sae=saes),
        "features": expand("<results>/features/{sae}.parquet", sae=saes),
        "table": "<results>/tables/headline.csv",
        "model": "<results>/model/source.json",
        "heldout": "<results>/tokens/heldout.safetensors",
        "residuals": [
            "<results>/residuals/index.json",
            *expand("<results>/{kind}/layer{layer}.safetensors", kind=["residuals", "unigrams"], layer=SHOWN.layer),
        ],
    }


def results_of_notebook(wildcards):
    """Inputs of a notebook: tables, and files of the headline SAEs at the middle layer and lowest seed."""
    saes = expand("<results>/saes/{sae}/sae.safetensors", sae=SHOWN.saes.values())
    text = ["<results>/model/source.json", "<results>/tokens/heldout.safetensors"]
    residuals = [
        *text,
        "<results>/residuals/index.json",
        *expand("<results>/{kind}/layer{layer}.safetensors", kind=["residuals", "unigrams"], layer=LAYERS),
    ]
    match wildcards.notebook:
        case "01_token_subspaces":
            return [*expand("<results>/tables/{table}.csv", table=["headline", "baselines"]), *residuals]
        case "02_training_and_pareto":
            return [*expand("<results>/tables/{table}.csv", table=["headline", "curves", "pareto"]), *saes, *residuals]
        case "03_token_biases":
            return ["<results>/tables/headline.csv", *saes, *residuals]
        case "04_features":
            return [
                "<results>/tables/headline.csv",
                "<results>/documents.jsonl",
                *text,
                *saes,
                *expand("<results>/features/{sae}.parquet", sae=SHOWN.saes.values()),
            ]
        case _:
            return ["<results>/metrics.csv"]
