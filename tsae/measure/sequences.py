"""Held-out sequences."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tsae.residuals.read import ResidualCache
from tsae.residuals.shards import evenly_spaced, restored
from tsae.text.tokens import load_tokens


class Sequences(NamedTuple):
    """Held-out sequences at one layer."""

    residuals: Tensor  # (n_seq, n_ctx, d) float16, or float32 if a row is beyond float16
    tokens: Tensor  # (n_seq, n_ctx) int64
    kept: Tensor  # (n_seq, n_ctx) bool: neither BOS nor of outlying norm
    documents: Tensor  # (n_seq, n_ctx) int64: line of the token's document; BOS has that of the next token


def load_sequences(cache: ResidualCache, tokens: Path) -> Sequences:
    """Read all sequences of a split, whose token ids and documents are in the file `tokens`.

    Raises:
        ValueError: a file is missing or damaged, or the residuals are of other tokens.
    """
    split = load_tokens(tokens)
    shards = [cache.shard(index) for index in range(len(cache.shards))]
    shape = (cache.n_sequences, cache.n_ctx)
    ids = torch.cat([shard.tokens for shard in shards]).view(shape)
    if not torch.equal(ids, split.ids):
        raise ValueError(
            f"{tokens}: its tokens {tuple(split.ids.shape)} are not those {shape} of {cache.index}; cache the residuals again"
        )
    documents = split.documents.long()
    return Sequences(
        torch.cat([restored(shard.residuals, shard.norms) for shard in shards]).view(*shape, cache.d_model),
        ids.long(),
        torch.cat([shard.kept for shard in shards]).view(shape),
        torch.where(documents < 0, documents.roll(-1, 1), documents),
    )


def spread(sequences: Sequences, limit: int | None) -> Sequences:
    """At most `limit` of the sequences, evenly spaced; None: all."""
    chosen = evenly_spaced(len(sequences.tokens), limit)
    return sequences if len(chosen) == len(sequences.tokens) else Sequences(*(part[chosen] for part in sequences))
