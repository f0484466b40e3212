"""Where the files of a run are. Rules spell the same paths; `tests/workflow/test_layout.py` compares the two."""

from pathlib import Path

SOURCES = Path("results/sources")
"""Fetched files, which all profiles share."""
BENCH = Path("results/bench")
EMBEDDED = Path("results/embedded")
"""Results of the default profile."""

# Below the folder of a profile. {job} is an SAE's id: a layer, a point and a seed.
MODEL = "model"
MODEL_SOURCE = "model/source.json"
DOCUMENTS = "documents.jsonl"
TRAIN_TOKENS = "tokens/train.safetensors"
HELDOUT_TOKENS = "tokens/heldout.safetensors"
RESIDUALS = "residuals/index.json"
RESIDUALS_PART = "residuals/parts/{part}.json"
UNIGRAMS = "unigrams/layer{layer}.safetensors"
EMBEDDING = "unigrams/embedding.safetensors"
NGRAMS = "ngrams/layer{layer}.safetensors"
SPELLING = "ngrams/spelling.safetensors"
CONDITIONAL_MEANS = "conditional_means/layer{layer}.safetensors"
LETTER_TOKENS = "letter_tokens/layer{layer}.safetensors"
ABLATIONS = "ablations/layer{layer}.safetensors"
SAE = "saes/{job}"
CHECKPOINTS = "saes/{job}/checkpoints"
MEASUREMENTS = "metrics/{job}.json"
METRICS_OF_SAE = "metrics/{job}.json"
FEATURES = "features/{job}.parquet"
SUMS = "sums/{job}.safetensors"
CURVE_SUMS = "sums/curves/{job}.safetensors"
TABLE = "tables/{table}.csv"
METRICS = "metrics.csv"
CLAIMS = "claims.csv"
CLAIMS_PAGE = "claims.md"
NOTEBOOK = "notebooks/{notebook}.ipynb"
EXPLORER = "explorer.html"
EXPLORER_PARTS = "explorer"
VERIFIED = "verified.txt"
MANIFEST = "manifest.json"
BENCHMARKS = "benchmarks"
PREFIXES = "prefixes.json"
"""Of the command `measure-prefixes`; no rule writes it."""
RELEASE = "release"
"""Of the command `release`; no rule writes it."""


def results_of(profile: str) -> Path:
    """Folder of a profile's results."""
    return Path("results", profile)


def figures_of(profile: str) -> Path:
    """Folder of a profile's figures."""
    return Path("figures", profile)
