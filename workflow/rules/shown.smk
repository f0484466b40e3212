"""What notebooks and the feature explorer show: the headline SAEs at one layer."""

# At the middle one of their layers, of the lowest seed.
HEADLINE_LAYERS = sorted({job.layer for job in CONFIG.jobs("headline")})
MIDDLE_LAYER = HEADLINE_LAYERS[len(HEADLINE_LAYERS) // 2] if HEADLINE_LAYERS else None
SEED = min((job.seed for job in CONFIG.jobs("headline")), default=0)
SHOWN = {role: name for role, point in HEADLINE.items() if (name := job_id(MIDDLE_LAYER, point, SEED)) in JOBS}
EXPLORED = [role for role in ("baseline", "tokenized") if role in SHOWN]
NOTEBOOKS = [
    notebook
    for notebook, is_possible in {
        "01_token_subspaces": bool(HEADLINE),
        "02_training_and_pareto": CURVES and "pareto" in CONFIG.sweep,
        "03_token_biases": "tokenized" in SHOWN,
        "04_features": {"baseline", "tokenized"} <= SHOWN.keys(),
    }.items()
    if is_possible
]
ONE_PAGE = CONFIG.tokens.heldout <= 100_000  # else the text and the details of the feature explorer are beside its page


def files_of_explorer():
    """Inputs of the feature explorer: the headline baseline and tokenized SAE at the middle layer and lowest seed."""
    saes = [SHOWN[role] for role in EXPLORED]
    return {
        "saes": expand("<results>/saes/{sae}/sae.safetensors", sae=saes),
        "features": expand("<results>/features/{sae}.parquet", sae=saes),
        "table": "<results>/tables/headline.csv",
        "model": "<results>/model/source.json",
        "heldout": "<results>/tokens/heldout.safetensors",
        "residuals": [
            "<results>/residuals/index.json",
            *expand("<results>/{kind}/layer{layer}.safetensors", kind=["residuals", "unigrams"], layer=MIDDLE_LAYER),
        ],
    }


def results_of_notebook(wildcards):
    """Inputs of a notebook: tables, and files of the headline SAEs at the middle layer and lowest seed."""
    saes = expand("<results>/saes/{sae}/sae.safetensors", sae=SHOWN.values())
    residuals = [
        "<results>/residuals/index.json",
        "<results>/tokens/heldout.safetensors",
        *expand("<results>/{kind}/layer{layer}.safetensors", kind=["residuals", "unigrams"], layer=LAYERS),
    ]
    match wildcards.notebook:
        case "01_token_subspaces":
            return [*expand("<results>/tables/{table}.csv", table=["headline", "baselines"]), *residuals]
        case "02_training_and_pareto":
            return [*expand("<results>/tables/{table}.csv", table=["headline", "curves", "pareto"]), *saes]
        case "03_token_biases":
            return ["<results>/tables/headline.csv", *saes, *residuals]
        case "04_features":
            return [
                "<results>/tables/headline.csv",
                *saes,
                *expand("<results>/features/{sae}.parquet", sae=SHOWN.values()),
            ]
        case _:
            return ["<results>/metrics.csv"]
