"""Everything that a page tells, computed from a finished run."""

import logging
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tsae.explore.blocks import smallest
from tsae.explore.features import Columns, describe_features, nearest_features, top_logits
from tsae.explore.run import Run
from tsae.explore.text import Parts, divide
from tsae.explore.tokens import (
    compare_with_unigrams,
    counted,
    features_on_tokens,
    fvu_by_token,
    neighbours,
    texts_of,
)
from tsae.measure.sequences import load_sequences
from tsae.model.language_model import load_model
from tsae.residuals.read import ResidualCache
from tsae.sae.checkpoint import check_fits
from tsae.sae.firings import Encoded, encode_kept, sort_firings
from tsae.store import layout

LOG = logging.getLogger(__name__)


class Explored(NamedTuple):
    """One SAE."""

    columns: Columns
    on_tokens: dict[str, np.ndarray]
    """Of `features_on_tokens`."""
    parts: Parts


class Collected(NamedTuple):
    """What a page tells."""

    saes: dict[str, Explored]
    """By role."""
    texts: list[str]
    """Text of every token id (V,)."""
    text: dict[str, np.ndarray]
    """Of every held-out token: `tokens`, `kept`, `documents`, `norms`, each (n_sequences * n_ctx,)."""
    tokens: dict[str, np.ndarray]
    """Of every token id (V,): counts, norms, cosines and FVUs."""
    neighbours: dict[str, np.ndarray] | None
    """Of the table; None without one."""
    n_ctx: int
    n_sequences: int
    n_vocabulary: int


def collect(run: Run, layer: int, subjects: Mapping[str, str]) -> Collected:
    """Compute what a page tells of SAEs at a layer.

    Args:
        run: a finished run.
        layer: one of its layers.
        subjects: ids of the SAEs by role.

    Raises:
        ValueError: something is missing or damaged, or does not fit together.
    """
    cache = run.residuals(layer)
    saes = {role: run.sae(subject, layer) for role, subject in subjects.items()}
    for subject, sae in zip(subjects.values(), saes.values(), strict=True):
        check_fits(sae, run.folder(subject, layer), cache.d_model, cache.vocab_size)
    text, mean = _read_text(run, cache)
    ids = text["tokens"].astype(np.int64)
    counts = run.residuals(layer, "train").token_counts(cache.vocab_size)
    unigrams = run.unigrams(layer)
    model = load_model(run.results / layout.MODEL, cache.made_from["compatibility_mode"])
    n_words = min(len(run.tokenizer), cache.vocab_size)
    tokens = {
        "trained": counts.numpy().astype(np.uint32),
        "heldout": counted(ids[text["kept"] == 1], cache.vocab_size),
        "unigram_norm": unigrams.norm(dim=1).numpy(),
    }
    explored, table_neighbours = {}, None
    for role, sae in saes.items():
        LOG.info("layer %d: %s", layer, subjects[role])
        encoded: list[Encoded] = []
        parts = divide(sae, mean, encode_kept(sae, cache), encoded)
        firings = sort_firings(encoded, sae.n_features)
        del encoded
        columns = describe_features(run.features(subjects[role], layer), firings, cache.n_ctx, ids)
        columns.details.update(top_logits(sae.W_dec, model, n_words))
        if others := [other for name, other in saes.items() if name != role]:
            columns.overview.update(nearest_features(sae.W_dec, others[0].W_dec))
        explored[role] = Explored(columns, features_on_tokens(firings, ids, cache.vocab_size), parts)
        tokens[f"fvu_{role}"] = _fvu(parts, parts.squared_errors, cache)
        if sae.W_lookup is not None:
            tokens |= compare_with_unigrams(sae.W_lookup, unigrams, counts)
            tokens["fvu_table"] = _fvu(parts, parts.table_errors, cache)
            table_neighbours = neighbours(sae.W_lookup, counts)
    texts = [*texts_of(run.tokenizer, n_words), *[""] * (cache.vocab_size - n_words)]
    return Collected(explored, texts, text, tokens, table_neighbours, cache.n_ctx, cache.n_sequences, cache.vocab_size)


def _fvu(parts: Parts, errors: np.ndarray, cache: ResidualCache) -> np.ndarray:
    return fvu_by_token(errors, parts.squared_deviations, parts.tokens, cache.vocab_size)


def _read_text(run: Run, cache: ResidualCache) -> tuple[dict[str, np.ndarray], Tensor]:
    """Columns of the held-out tokens, and the mean of the kept residuals (d,)."""
    sequences = load_sequences(cache, run.results / layout.HELDOUT_TOKENS)
    parts = (part.split(cache.shard_sequences) for part in (sequences.residuals, sequences.kept))
    total = sum(residuals[kept].double().sum(0) for residuals, kept in zip(*parts, strict=True))
    assert isinstance(total, Tensor)
    columns = {
        "tokens": smallest(sequences.tokens.flatten().numpy(), cache.vocab_size),
        "kept": sequences.kept.flatten().numpy().astype(np.uint8),
        "documents": sequences.documents.flatten().numpy().astype(np.int32),
        "norms": torch.cat([cache.shard(index).norms for index in range(len(cache.shards))]).numpy(),
    }
    return columns, (total / cache.n_kept).float()
