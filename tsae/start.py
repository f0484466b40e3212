"""What an SAE starts from: its table, and what is taken away from the encoder's input."""

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tsae.residuals import ResidualCache
from tsae.shards import evenly_spaced
from tsae.sweep import Point

if TYPE_CHECKING:
    import pandas as pd

    from tsae.sae import SAE

OFFSET_SHARDS = 4  # of the training split, on which the offset of an encoder's input is taken
MOST_OFFSET = 0.1  # of the spread: an encoder's input that is further off its mean is off centre


class Start(NamedTuple):
    """What an SAE starts from at a layer, in the units that it will be trained in."""

    mean: Tensor
    """(d,) mean training residual."""
    mean_row: Tensor
    """(d,) mean token-bias over the training tokens; zero without a table."""
    mean_input: Tensor
    """(d,) mean of what the encoder sees over the training tokens, before a centre is taken away."""
    W_lookup: Tensor | None
    """(V, d) token-biases; None without a table."""
    unigram_directions: Tensor | None
    """(V, d) unit rows, the direction that is taken out of the encoder's input at each token; None if it stays. Centred, it is the
    direction of the token's unigram residual less the mean one, and is taken out of the residual less its mean."""


def start_from(
    point: Point, cache: ResidualCache, unigrams: Tensor, seed: int, embedding: Tensor | None = None
) -> Start:
    """What an SAE of this point starts from.

    Args:
        point: the point of the sweep.
        cache: training residuals.
        unigrams: (V, d) unigram residuals, raw.
        seed: seed of permuted rows.
        embedding: (V, e) the model's embedding, for a table that is a linear map of it.

    Raises:
        ValueError: the table is a map of an embedding, and none is given.
    """
    unigrams = unigrams / cache.scale
    counts = cache.token_counts(len(unigrams))
    mean = cache.mean() / cache.scale
    table = None if point.table == "none" else _first_rows(point, unigrams, counts, seed, embedding)
    mean_row = torch.zeros_like(mean) if table is None else counts / cache.n_kept @ table
    directions = None
    match point.encoder_input:
        case "residual":
            mean_input = mean
        case "remainder":
            mean_input = mean - mean_row
        case "without_unigram":
            # Most of two unigram residuals is what all have in common, so the raw direction is hardly the token's own, and a
            # residual's part along it still tells which token it is.
            centred = point.start == "centred"
            directions = normalize(unigrams - counts / cache.n_kept @ unigrams if centred else unigrams)
            mean_input = mean - _mean_along(cache, directions, mean if centred else torch.zeros_like(mean))
    return Start(mean, mean_row, mean_input, table, directions)


def _first_rows(point: Point, unigrams: Tensor, counts: Tensor, seed: int, embedding: Tensor | None) -> Tensor:
    rows = unigrams
    if point.rows == "permuted":
        seen = counts.nonzero().flatten()
        order = torch.randperm(len(seen), generator=torch.Generator().manual_seed(seed))
        rows = unigrams.index_copy(0, seen, unigrams[seen[order]])
    rows = point.lookup_scale * rows
    if point.table != "embedding":
        return rows
    if embedding is None:
        raise ValueError("table: embedding needs the model's embedding (--embedding)")
    return embedding @ torch.linalg.lstsq(embedding, rows).solution


def _mean_along(cache: ResidualCache, directions: Tensor, mean: Tensor) -> Tensor:
    """(d,) mean over training tokens of the part of a residual less `mean` along its token's direction, in scaled units."""
    total, n = torch.zeros(directions.shape[1], dtype=torch.float64), 0
    for index in cache.sampled:
        shard = cache.shard(index)
        along = directions[shard.tokens[shard.kept].long()]
        x = shard.residuals[shard.kept].float() / cache.scale - mean
        part = (x * along).sum(1, keepdim=True) * along
        total += part.sum(0, dtype=torch.float64)
        n += len(along)
    return (total / n).float()


class Offset(NamedTuple):
    """How far the mean of an encoder's input is from zero, and how far inputs are from their mean."""

    norm: float
    """Length of the mean input."""
    spread: float
    """Root mean squared distance of the inputs to their mean."""

    @property
    def share(self) -> float:
        """The offset as a share of the spread: above `MOST_OFFSET` the input is off centre."""
        return self.norm / self.spread


def offset_of(inputs: Iterable[Tensor]) -> Offset:
    """The offset of an encoder's inputs, given in parts of (n, d) each."""
    total, squares, n = torch.zeros(()), 0.0, 0
    for part in inputs:
        total = total + part.sum(0, dtype=torch.float64).cpu()
        squares += part.double().square().sum().item()
        n += len(part)
    norm = (total / n).norm().item()
    return Offset(norm, math.sqrt(max(squares / n - norm**2, 0.0)))


def off_centre(table: "pd.DataFrame") -> "pd.DataFrame":
    """Rows of a table of metrics: SAEs that should start on centre, and did not."""
    rows = table[(table["metric"] == "encoder_offset_at_start") & (table["start"] == "centred")]
    return rows[rows["centre"].fillna(1).eq(1) & (rows["value"] > MOST_OFFSET)]


def offset_at_start(sae: "SAE", cache: ResidualCache) -> Offset:
    """The offset of what an SAE's encoder sees of training residuals, those of a few shards; the SAE is in scaled units."""

    def inputs() -> Iterator[Tensor]:
        for place in evenly_spaced(len(cache.sampled), OFFSET_SHARDS).tolist():
            shard = cache.shard(cache.sampled[place])
            x = shard.residuals[shard.kept].float() / cache.scale
            yield sae.encoder_input(x.to(sae.device), shard.tokens[shard.kept].to(sae.device))

    with torch.no_grad():
        return offset_of(inputs())
