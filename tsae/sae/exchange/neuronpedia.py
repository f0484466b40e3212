"""Features of an SAE in the layout of SAEDashboard's NeuronpediaRunner, which Neuronpedia's converter for uploads reads.

A file `batch-0.json` holds `model_id`, `layer`, `sae_set` and a list of features. Of a feature there are its index, the share of
tokens on which it fires (`frac_nonzero`), a histogram of its activations (`freq_hist_*`) and the contexts of its highest
activations, all from held-out tokens.

Not measured here, and so empty lists, as the runner leaves them when it is told not to compute them: logits (`pos_*`, `neg_*`,
`logits_hist_*`), aligned and correlated neurons and features, `decoder_weights_dist`. Contexts of lower activations, which the
runner samples from intervals, are missing.
"""

import json
import logging
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field

from tsae.residuals.read import open_residuals
from tsae.sae.checkpoint import check_fits, load
from tsae.sae.exchange.repository import trained_in
from tsae.sae.firings import Firings, contexts_of, encode_kept, sort_firings
from tsae.store import layout
from tsae.store.arguments import Folder
from tsae.store.files import check, remove, write_text
from tsae.text.tokens import load_tokenizer

LOG = logging.getLogger(__name__)
BINS = 50  # of the histogram, as in SAEDashboard
TOP = -1  # what the runner writes for the bounds of the group of highest activations
COLUMNS = [
    "feature", "firing_rate", "max_activation", "context_activations", "context_sequences", "context_positions",
    "context_active", "context_tokens",
]  # fmt: skip
MISSING = [
    "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1", "correlated_neurons_indices",
    "correlated_neurons_l1", "correlated_neurons_pearson", "correlated_features_indices", "correlated_features_l1",
    "correlated_features_pearson", "neg_str", "neg_values", "pos_str", "pos_values", "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values", "decoder_weights_dist",
]  # fmt: skip


def export_neuronpedia(
    sae: Folder,
    folder: Path,
    model_id: str,
    sae_set: str,
    dataset: str = "",
    batch_features: Annotated[int, Field(ge=1)] = 128,
    overwrite: bool = False,
) -> None:
    """Write an SAE's features as Neuronpedia's batch files.

    Activations in contexts are computed from the residual cache. Those of tokens that are not evaluated, such as BOS, are 0.
    Features that never fire are left out and listed in skipped_indexes.json.

    Args:
        sae: an SAE in the results of a profile, results/PROFILE/saes/layer12/topk-k32-x4-learned-s0.
        folder: the folder to write.
        model_id: name of the model at Neuronpedia, such as gpt2-small.
        sae_set: name of the set of SAEs at Neuronpedia.
        dataset: name of the corpus, to show beside the features.
        batch_features: features per file.
        overwrite: replace batch files that are in the folder.

    Raises:
        ValueError: the SAE is not finished or not evaluated, its residuals are missing, or the folder has batch files.
    """
    trained = trained_in(sae)
    results = trained.metrics.parent.parent.parent
    before = sorted(folder.glob("batch-*.json"))
    if before and not overwrite:
        raise ValueError(f"{folder}: holds {before[0].name} already; give --overwrite to replace it")
    loaded = load(sae)
    layer = loaded.metadata["layer"]
    cache = open_residuals(results / layout.RESIDUALS, "heldout", layer, results / layout.MODEL)
    check_fits(loaded, sae, cache.d_model, cache.vocab_size)
    check(trained.features)
    frame = pd.read_parquet(trained.features, columns=COLUMNS)
    if len(frame) != loaded.n_features:
        raise ValueError(f"{trained.features}: {len(frame)} features, and the SAE has {loaded.n_features}")
    tokenizer = load_tokenizer(results / "model")
    texts = [str(tokenizer.decode([token])) for token in range(cache.vocab_size)]
    firings = sort_firings(encode_kept(loaded, cache), loaded.n_features)
    about = {"n_prompts_total": cache.n_sequences, "n_tokens_in_prompt": cache.n_ctx, "dataset": dataset}
    fires = frame["firing_rate"] > 0
    for path in before:
        remove(path)
    header = {"model_id": model_id, "layer": layer, "sae_set": sae_set}
    alive: list[dict[Any, Any]] = frame[fires].to_dict("records")
    for number, start in enumerate(range(0, len(alive), batch_features)):
        features = [_feature(row, firings, cache.n_ctx, texts) | about for row in alive[start : start + batch_features]]
        write_text(folder / f"batch-{number}.json", json.dumps(header | {"features": features}))
    skipped = header | {"skipped_indexes": frame["feature"][~fires].tolist()}
    write_text(folder / "skipped_indexes.json", json.dumps(skipped))
    LOG.info("%s: %d features for Neuronpedia, %d never fire", folder, len(alive), len(frame) - len(alive))


def _feature(row: dict[Any, Any], firings: Firings, n_ctx: int, texts: list[str]) -> dict[str, Any]:
    _, values = firings.of(row["feature"])
    heights, edges = np.histogram(values, bins=BINS) if len(values) else (np.zeros(0, int), np.zeros(1))
    activations = [
        {
            "bin_min": TOP,
            "bin_max": _rounded(row["max_activation"]),
            "bin_contains": TOP,
            "tokens": [texts[token] for token in context.tokens],
            "values": [_rounded(value) for value in context.activations],
            "qualifying_token_index": context.active,
        }
        for context in contexts_of(row, firings, n_ctx)
    ]
    return {
        "feature_index": int(row["feature"]),
        **{name: [] for name in MISSING},
        "frac_nonzero": float(row["firing_rate"]),
        "freq_hist_data_bar_values": [_rounded(centre) for centre in (edges[1:] + edges[:-1]) / 2],
        "freq_hist_data_bar_heights": heights.tolist(),
        "activations": activations,
    }


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
