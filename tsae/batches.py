"""The stream of training batches, read from cached residuals."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from tsae.config import Training
from tsae.residuals import ResidualCache

AHEAD = 2  # batches that are made while earlier ones are trained on


class Batch(NamedTuple):
    """A training batch."""

    residuals: Tensor  # (N, d) float32, divided by the scale
    tokens: Tensor  # (N,) int64


def training_batches(cache: ResidualCache, settings: Training, seed: int) -> Iterator[Batch]:
    """Yield whole batches for `settings.tokens` tokens, in as many epochs as that takes.

    Shards are visited in random order, and their kept rows are shuffled in a buffer of `settings.buffer_tokens` rows;
    rows that do not fill a batch go on to the next buffer. Shards are read, and batches made, in a thread of their own.
    """
    batches = _shuffled(cache, settings, seed)
    thread = ThreadPoolExecutor(1, "batches")
    try:
        ahead = deque(thread.submit(next, batches, None) for _ in range(AHEAD))
        while (batch := ahead.popleft().result()) is not None:
            ahead.append(thread.submit(next, batches, None))
            yield batch
    finally:
        thread.shutdown(cancel_futures=True)


def _shuffled(cache: ResidualCache, settings: Training, seed: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    n_batches = settings.tokens // settings.batch_size
    # A shard more than the buffer needs, since shards are read whole, and what was left of the last one.
    size = min(settings.buffer_tokens, cache.n_kept) + cache.shard_sequences * cache.n_ctx + settings.batch_size
    residuals = torch.empty(size, cache.d_model, dtype=torch.float16)
    tokens = torch.empty(size, dtype=torch.int32)
    filled = 0
    while True:
        order = torch.randperm(len(cache.shards), generator=generator).tolist()
        for place, index in enumerate(order):
            shard = cache.shard(index)
            kept = shard.kept.nonzero().squeeze(1)
            to = slice(filled, filled + len(kept))
            torch.index_select(shard.residuals, 0, kept, out=residuals[to])
            torch.index_select(shard.tokens, 0, kept, out=tokens[to])
            filled = to.stop
            if place < len(order) - 1 and filled < settings.buffer_tokens:
                continue
            permutation = torch.randperm(filled, generator=generator)
            whole = filled - filled % settings.batch_size
            for chosen in permutation[:whole].split(settings.batch_size):
                yield Batch(residuals[chosen].float().div_(cache.scale), tokens[chosen].long())
                n_batches -= 1
                if n_batches == 0:
                    return
            rest = permutation[whole:]
            filled = len(rest)
            residuals[:filled], tokens[:filled] = residuals[rest], tokens[rest]
