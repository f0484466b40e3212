"""The most similar of many rows, by cosine similarity."""

from collections.abc import Iterable

import torch
from torch import Tensor

from tsae.compute.products import product


def max_cosine_similarity(queries: Tensor, keys: Tensor, rows: int = 1024) -> tuple[Tensor, Tensor]:
    """Cosine similarity of each query to its most similar key.

    Args:
        queries: (Q, d).
        keys: (K, d); rows of zeros or NaN are never chosen.
        rows: queries per block, which bounds the memory.

    Returns:
        (Q,) similarities and (Q,) int64 indices of the chosen keys.
    """
    usable = keys.isfinite().all(1) & (keys.norm(dim=1) > 0)
    directions = torch.nn.functional.normalize(keys.nan_to_num(), dim=1)
    best, chosen = [], []
    for block in queries.split(rows):
        products = product(torch.nn.functional.normalize(block, dim=1), directions)
        products[:, ~usable] = -torch.inf
        values, indices = products.max(1)
        best.append(values)
        chosen.append(indices)
    return torch.cat(best), torch.cat(chosen)


def max_cosine_similarity_by_count(
    queries: Tensor, keys: Tensor, counts: Tensor, min_counts: Iterable[int], rows: int = 1024
) -> dict[int, tuple[Tensor, Tensor]]:
    """Cosine similarity of each query to its most similar key among keys with at least `min_count` counts.

    One product serves all `min_counts`: in the order of counts, the keys of each are a prefix.

    Args:
        queries: (Q, d).
        keys: (K, d), none of them zero.
        counts: (K,) int64.
        min_counts: one that no key reaches has no entry in the result.
        rows: queries per block, which bounds the memory.

    Returns:
        min_count -> (Q,) similarities and (Q,) int64 indices of the chosen keys.
    """
    order = torch.argsort(counts, descending=True, stable=True)
    directions = torch.nn.functional.normalize(keys, dim=1)[order]
    ends = {at: int((counts >= at).sum()) for at in sorted(set(min_counts), reverse=True)}
    found: dict[int, list[tuple[Tensor, Tensor]]] = {at: [] for at, end in ends.items() if end}
    for block in queries.split(rows):
        products = product(torch.nn.functional.normalize(block, dim=1), directions)
        best = products.new_full((len(block),), -torch.inf)
        chosen = order.new_zeros(len(block))
        start = 0
        for at in found:
            if ends[at] > start:
                values, indices = products[:, start : ends[at]].max(1)
                chosen = torch.where(values > best, order[indices + start], chosen)
                best = torch.maximum(values, best)
                start = ends[at]
            found[at].append((best, chosen))
    return {
        at: (torch.cat([values for values, _ in parts]), torch.cat([indices for _, indices in parts]))
        for at, parts in found.items()
    }
