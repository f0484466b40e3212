"""The rows of bigrams that a table starts from: means of training residuals behind frequent pairs of tokens."""

from typing import NamedTuple

import torch
from torch import Tensor

from tsae.residuals.conditional_means import ConditionalMeans
from tsae.residuals.read import ResidualCache
from tsae.residuals.shrinkage import best_shrinkage
from tsae.sae.bigrams import bigram_keys, rows_with_bigrams

LEAST = 4  # occurrences of a bigram that has a row


class BigramRows(NamedTuple):
    """The rows of bigrams, which stand behind those of the V tokens in a table."""

    bigrams: Tensor
    """(M,) int64, ascending keys, see `sae.bigrams`."""
    rows: Tensor
    """(M, d) float32, in units of raw residuals."""
    counts: Tensor
    """(V + M,) int64, training tokens with each row of the whole table."""


def bigram_rows(cache: ResidualCache, means: ConditionalMeans, token_rows: Tensor) -> BigramRows:
    """Average the training residuals behind frequent bigrams, and shrink each mean towards the row of its second token.

    Bigrams are those of the cache's sampled shards, all of them in a small cache, that occur `LEAST` times or more: the most
    frequent ones if they are more than tokens. A token that is not kept, such as BOS, counts as the first of a bigram alone. The
    shrinkage minimises the squared error of residuals that are each left out of their own prediction; there the row of a token
    counts as the plain mean of its residuals.

    Args:
        cache: training residuals.
        means: conditional means of the layer.
        token_rows: (V, d) the rows of the tokens, in units of raw residuals.
    """
    vocab_size = len(token_rows)
    bigrams = _frequent(cache, vocab_size)
    sums, squares = torch.zeros(len(bigrams), cache.d_model), torch.zeros(len(bigrams), dtype=torch.float64)
    counts = torch.zeros(vocab_size + len(bigrams), dtype=torch.int64)
    mean = means.mean
    for shard in map(cache.shard, cache.sampled):
        rows = rows_with_bigrams(shard.tokens.view(-1, cache.n_ctx), bigrams, vocab_size).flatten()[shard.kept]
        counts += rows.bincount(minlength=len(counts))
        of_bigram = rows >= vocab_size
        x = shard.residuals[shard.kept.nonzero().flatten()[of_bigram]].float() - mean
        sums.index_add_(0, rows[of_bigram] - vocab_size, x)
        squares.index_add_(0, rows[of_bigram] - vocab_size, x.double().square().sum(1))
    second, n = bigrams % vocab_size, counts[vocab_size:].double()
    others = (cache.token_counts(vocab_size)[second] - 1).clamp(min=1).double()
    prior = token_rows[second] - mean
    # Of a token without one of its residuals: the row, and the mean of the others less the mean of all.
    without = prior + ((means.table(vocab_size)[second] - mean) / others[:, None]).float()
    shrinkage = best_shrinkage(sums, squares, n, without, 1 / others)
    rows = (sums + shrinkage * prior) / (n + shrinkage)[:, None]
    return BigramRows(bigrams, rows.float() + mean, counts)


def _frequent(cache: ResidualCache, vocab_size: int) -> Tensor:
    """Ascending keys of the bigrams that have a row."""
    keys, counts = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    for shard in map(cache.shard, cache.sampled):
        found = bigram_keys(shard.tokens.view(-1, cache.n_ctx), vocab_size).flatten()[shard.kept]
        new, times = found[found >= 0].unique(return_counts=True)
        keys, places = torch.cat([keys, new]).unique(return_inverse=True)
        counts = torch.zeros(len(keys), dtype=torch.int64).index_add_(0, places, torch.cat([counts, times]))
    frequent = counts >= LEAST
    keys, counts = keys[frequent], counts[frequent]
    most = counts.argsort(descending=True, stable=True)[:vocab_size]
    return keys[most].sort().values
