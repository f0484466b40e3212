"""The start of a training: the table, and the mean of the encoder's input."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tsae.profile.point import Point
from tsae.residuals.conditional_means import ConditionalMeans, shrink
from tsae.residuals.read import ResidualCache
from tsae.residuals.shards import evenly_spaced
from tsae.sae.offset import Offset, offset_of
from tsae.sae.start import Start
from tsae.training.bigrams import bigram_rows

if TYPE_CHECKING:
    from tsae.sae.sae import SAE

OFFSET_SHARDS = 4  # shards of the training split from which the offset of an encoder's input is measured


def start_from(
    point: Point,
    cache: ResidualCache,
    unigrams: Tensor,
    seed: int,
    embedding: Tensor | None = None,
    means: ConditionalMeans | None = None,
) -> Start:
    """The table and the means from which an SAE of this point starts.

    Args:
        point: the point of the sweep.
        cache: training residuals.
        unigrams: (V, d) unigram residuals, raw.
        seed: seed of permuted rows.
        embedding: (V, e) the model's embedding, for a table that is a linear map of it.
        means: conditional means of the layer, for a table that starts from them.

    Raises:
        ValueError: the table needs the embedding or the conditional means, and they are not given.
    """
    counts = cache.token_counts(len(unigrams))
    rows = unigrams
    behind = None
    if point.table != "none" and point.has_means:
        if means is None:
            raise ValueError(f"rows: {point.rows} needs the conditional means of the layer (--conditional-means)")
        rows = shrink(means, unigrams, counts)
        if point.rows == "bigram":
            behind = bigram_rows(cache, means, rows)
            rows = torch.cat([rows, behind.rows])
    unigrams, rows = unigrams / cache.scale, rows / cache.scale
    mean = cache.mean() / cache.scale
    table = None if point.table == "none" else _first_rows(point, rows, counts, seed, embedding)
    of_rows = counts if behind is None else behind.counts
    mean_row = torch.zeros_like(mean) if table is None else of_rows / of_rows.sum() @ table
    directions = None
    match point.encoder_input:
        case "residual":
            mean_input = mean
        case "remainder":
            mean_input = mean - mean_row
        case "without_unigram":
            # Unigram residuals share a large mean, so the raw direction hardly depends on the token.
            centred = point.start == "centred"
            directions = normalize(unigrams - counts / cache.n_kept @ unigrams if centred else unigrams)
            mean_input = mean - _mean_along(cache, directions, mean if centred else torch.zeros_like(mean))
    return Start(mean, mean_row, mean_input, table, directions, None if behind is None else behind.bigrams)


def _first_rows(point: Point, rows: Tensor, counts: Tensor, seed: int, embedding: Tensor | None) -> Tensor:
    if point.rows == "permuted":
        seen = counts.nonzero().flatten()
        order = torch.randperm(len(seen), generator=torch.Generator().manual_seed(seed))
        rows = rows.index_copy(0, seen, rows[seen[order]])
    rows = point.lookup_scale * rows
    if point.table != "embedding":
        return rows
    if embedding is None:
        raise ValueError("table: embedding needs the model's embedding (--embedding)")
    return embedding @ fit_map(embedding, rows)


def fit_map(embedding: Tensor, rows: Tensor) -> Tensor:
    """The matrix M (e, d) with the least squared error of embedding (V, e) @ M as rows (V, d).

    In float64: in float32 the last bits depend on where the tensors lie in memory, so they differ from run to run.
    """
    return torch.linalg.lstsq(embedding.double(), rows.double()).solution.float()


def _mean_along(cache: ResidualCache, directions: Tensor, mean: Tensor) -> Tensor:
    """(d,) mean over training tokens of the part of x - `mean` along the token's direction, in scaled units."""
    total, n = torch.zeros(directions.shape[1], dtype=torch.float64), 0
    for index in cache.sampled:
        shard = cache.shard(index)
        along = directions[shard.tokens[shard.kept].long()]
        x = shard.residuals[shard.kept].float() / cache.scale - mean
        part = (x * along).sum(1, keepdim=True) * along
        total += part.sum(0, dtype=torch.float64)
        n += len(along)
    return (total / n).float()


def offset_at_start(sae: "SAE", cache: ResidualCache) -> Offset:
    """The offset of the encoder's input on a few shards of training residuals, for an SAE in scaled units."""

    def inputs() -> Iterator[Tensor]:
        for place in evenly_spaced(len(cache.sampled), OFFSET_SHARDS).tolist():
            shard = cache.shard(cache.sampled[place])
            x = shard.residuals[shard.kept].float() / cache.scale
            rows = cache.table_rows(shard, sae.rows_of)
            yield sae.encoder_input(x.to(sae.device), rows[shard.kept].to(sae.device))

    with torch.no_grad():
        return offset_of(inputs())
