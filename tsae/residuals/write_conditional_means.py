"""The stage that averages the training residuals of every token."""

from pathlib import Path

import torch
from tqdm import tqdm

from tsae.compute.devices import Device
from tsae.compute.products import product
from tsae.residuals.conditional_means import ConditionalMeans
from tsae.residuals.read import ResidualCache, open_residuals
from tsae.store.arguments import Folder
from tsae.store.tensors import save_tensors


def conditional_means(cache: ResidualCache) -> ConditionalMeans:
    """Average the kept training residuals of a layer in one pass; the covariance is over the cache's sampled shards."""
    counts, mean = cache.token_counts(cache.vocab_size), cache.mean()
    sums = torch.zeros(len(counts), cache.d_model)
    spread, n_sampled = torch.zeros(cache.d_model, cache.d_model, dtype=torch.float64), 0
    for index in tqdm(range(len(cache.shards)), desc="conditional means", unit="shard", disable=None):
        shard = cache.shard(index)
        x = shard.residuals[shard.kept].float()
        sums.index_add_(0, shard.tokens[shard.kept], x)
        if index in cache.sampled:
            # Subtract the mean first: it is most of a residual, and its square would drown the rest in rounding.
            deviations = (x - mean).T.contiguous()
            spread += product(deviations, deviations).double()
            n_sampled += len(x)
    seen = counts.nonzero().flatten()
    eigenvalues, directions = torch.linalg.eigh(spread / n_sampled)
    root = (directions * eigenvalues.clamp(min=0).sqrt()) @ directions.T
    whole_mean = sums.double().sum(0) / counts.sum()
    return ConditionalMeans(seen, sums[seen] / counts[seen, None], whole_mean.float(), root.float())


def write_conditional_means(
    residuals: Path, layer: int, output: Path, model: Folder | None = None, device: Device = "cpu"
) -> None:
    """Write the mean residual of every token at a layer.

    The file also holds the root of the residuals' covariance.

    Args:
        residuals: index of the residual cache.
        layer: the layer.
        output: file for the `ConditionalMeans`.
        model: the model, for residuals that are not on disk.
        device: where the model computes.

    Raises:
        ValueError: the cache is missing or damaged, or lacks the layer.
    """
    cache = open_residuals(residuals, "train", layer, model, device)
    save_tensors(output, conditional_means(cache)._asdict())
