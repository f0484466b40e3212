"""Similarity of features and token-biases over training (C5).

The authors say that training the token-biases makes a baseline's features more similar to them. So for checkpoints of a
tokenized SAE the features are those of the trained baseline, and the token-biases change, from the unigram residuals
on. For checkpoints of a baseline its features change, and are compared with the trained token-biases and with the
unigram residuals.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tsae.measure.intervals import median, share
from tsae.measure.measurement import Measurement, failure
from tsae.measure.similarity import in_band, most_similar_rows
from tsae.profile.evaluation import Evaluation
from tsae.residuals.read import ResidualCache
from tsae.residuals.unigrams import load_unigrams
from tsae.sae.checkpoint import check_fits, load
from tsae.sae.sae import SAE
from tsae.store.arguments import Folder


class Trained(NamedTuple):
    """Trained SAEs and unigram residuals, of the n tokens seen in training, that checkpoints are compared with."""

    W_dec: Tensor | None
    """(F, d) decoder rows of the trained baseline; None if its training failed."""
    token_biases: Tensor | None
    """(n, d) of the trained tokenized SAE; None if its training failed."""
    unigrams: Tensor
    """(n, d) unigram residuals."""
    tokens: Tensor
    """(n,) int64, the tokens."""
    counts: Tensor
    """(n,) int64, how often each was seen."""


class TrainedPaths(NamedTuple):
    """Files of `Trained`."""

    baseline: Folder
    """Checkpoint of the trained baseline."""
    token_biases: Folder
    """Checkpoint of the trained tokenized SAE."""
    unigrams: Path
    """Unigram residuals of the layer."""

    def load(self, cache: ResidualCache, device: torch.device | str) -> Trained:
        """Read the files of the cache's layer, to a device.

        Raises:
            ValueError: a file is missing or damaged, or of another model.
        """
        counts = cache.token_counts(cache.vocab_size)
        seen = counts.nonzero().flatten()
        trained: list[SAE | None] = []
        for folder in (self.baseline, self.token_biases):
            sae = load(folder)
            check_fits(sae, folder, cache.d_model, cache.vocab_size)
            trained.append(None if failure(sae.metadata) else sae)
        baseline, tokenized = trained
        biases = None if tokenized is None else tokenized.token_table
        return Trained(
            None if baseline is None else baseline.W_dec.to(device),
            None if biases is None else biases[seen].to(device),
            load_unigrams(self.unigrams)[seen].to(device),
            seen.to(device),
            counts[seen].to(device),
        )


def measure_checkpoint(sae: SAE, trained: Trained, settings: Evaluation) -> list[Measurement]:
    """Measure one checkpoint, over tokens seen in training at least `min_count` times, for every `min_count` above 0.

    `feature_token_bias_similar` and `feature_unigram_similar` are as in an evaluation, but with the features and tables
    that the module's docstring names. The latter is of baselines alone, since it does not change for tokenized SAEs.
    `token_bias_unigram_cosine` is of tokenized SAEs. Features are a seeded sample of `settings.similarity_rows`, the
    same at every checkpoint.
    """
    min_counts = [at for at in settings.min_counts if at > 0]
    features: Tensor | None = sae.W_dec
    tables = {"token_bias": trained.token_biases, "unigram": trained.unigrams}
    rows = []
    if sae.token_table is not None:
        biases = sae.token_table[trained.tokens]
        features, tables = trained.W_dec, {"token_bias": biases}
        own = cosine_similarity(biases, trained.unigrams, dim=1)
        rows += [
            median("token_bias_unigram_cosine", own[trained.counts >= at], at)
            for at in min_counts
            if (trained.counts >= at).any()
        ]
    for name, table in tables.items():
        if features is None or table is None:
            continue
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(settings.seed))
        sample = features[order[: settings.similarity_rows].to(features.device)]
        for at, similar in most_similar_rows(sample, table, trained.counts, min_counts).items():
            hits = in_band(similar.cosine)
            rows.append(share(f"feature_{name}_similar", hits, settings.bootstrap, settings.seed, min_count=at))
    return rows
