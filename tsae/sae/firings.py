"""On which held-out tokens the features of an SAE fire, and the activations of every token of a context."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tsae.residuals.read import ResidualCache
from tsae.sae.architectures.base import Active
from tsae.sae.sae import SAE

ROWS = 4096  # tokens that are encoded together


class Encoded(NamedTuple):
    """Some kept tokens with their active features."""

    places: Tensor
    """(n,) int64, sequence * n_ctx + position."""
    residuals: Tensor
    """(n, d) float32."""
    tokens: Tensor
    """Token ids (n,)."""
    active: Active


class Firings(NamedTuple):
    """Non-zero activations on all kept tokens, by feature and place."""

    starts: np.ndarray
    """(F + 1,) where each feature's firings begin."""
    places: np.ndarray
    """(M,) sequence * n_ctx + position."""
    values: np.ndarray
    """(M,) activations."""

    def of(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """Places in ascending order and activations of one feature."""
        start, end = self.starts[feature : feature + 2]
        return self.places[start:end], self.values[start:end]


class Context(NamedTuple):
    """One of a feature's top contexts, with the activation of each of its tokens."""

    start: int
    """Place of the first token."""
    active: int
    """Index of the token of the highest activation."""
    tokens: list[int]
    """Token ids."""
    activations: np.ndarray
    """(n,) float32; zero where the feature does not fire, and for tokens that are not kept, such as BOS."""


def encode_kept(sae: SAE, cache: ResidualCache) -> Iterator[Encoded]:
    """Encode all kept tokens of a split, in their order, a few thousand at a time."""
    for index in range(len(cache.shards)):
        shard = cache.shard(index)
        first = index * cache.shard_sequences * cache.n_ctx
        of_table = cache.table_rows(shard, sae.rows_of)
        for rows in shard.kept.nonzero().flatten().split(ROWS):
            residuals = shard.residuals[rows].float()
            yield Encoded(first + rows, residuals, shard.tokens[rows], sae.active(residuals, of_table[rows]))


def sort_firings(parts: Iterable[Encoded], n_features: int) -> Firings:
    """Sort the non-zero activations of encoded tokens by feature and place."""
    found = []
    for part in parts:
        fired = part.active.values != 0
        found.append(
            (part.active.features[fired], part.places[part.active.rows[fired]], part.active.values[fired].float())
        )
    features, places, values = (torch.cat(column).numpy() for column in zip(*found, strict=True))
    order = np.lexsort((places, features))
    starts = np.searchsorted(features[order], np.arange(n_features + 1))
    return Firings(starts, places[order], values[order])


def contexts_of(row: Mapping[Any, Any], firings: Firings, n_ctx: int) -> list[Context]:
    """The top contexts of a feature, from its row of the table of features and its firings."""
    places, values = firings.of(row["feature"])
    lists = (row[f"context_{name}"] for name in ("activations", "sequences", "positions", "active", "tokens"))
    contexts = []
    for highest, sequence, position, active, tokens in zip(*lists, strict=True):
        window = sequence * n_ctx + position - active + np.arange(len(tokens))
        found = np.minimum(np.searchsorted(places, window), max(len(places) - 1, 0))
        shown = np.where(places[found] == window, values[found], 0.0) if len(places) else np.zeros(len(window))
        shown[active] = highest  # as evaluated; another batch may round differently
        contexts.append(Context(int(window[0]), int(active), [int(token) for token in tokens], shown))
    return contexts
