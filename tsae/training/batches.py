"""The stream of training batches, read from cached residuals."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from tsae.profile.training import Training
from tsae.residuals.read import ResidualCache

AHEAD = 2  # batches that are made while earlier ones are trained on


class Batch(NamedTuple):
    """A training batch."""

    residuals: Tensor  # (N, d) float32, divided by the scale
    tokens: Tensor  # (N,) int64

    def pin(self) -> "Batch":
        """The same batch in memory that a GPU copies from by itself."""
        return Batch(*(part.pin_memory() for part in self))

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device. The copy of a pinned one is still under way, which operators on the device wait for."""
        return Batch(*(part.to(device, non_blocking=True) for part in self))


def training_batches(
    cache: ResidualCache, settings: Training, seed: int, skip: int = 0, pin: bool = False
) -> Iterator[Batch]:
    """Yield whole batches for `settings.tokens` tokens, in as many epochs as that takes.

    Shards are visited in random order, and their kept rows are shuffled in a buffer of `settings.buffer_tokens` rows;
    rows that do not fill a batch go on to the next buffer. Shards are read, and batches made, in a thread of their own.

    Args:
        cache: training residuals.
        settings: how many tokens, in what batches, from what buffer.
        seed: seed of the order.
        skip: batches at the start that are left out, without making the buffers that hold nothing else.
        pin: whether they are for a GPU.
    """
    batches = _shuffled(cache, settings, seed, skip)
    if pin:
        batches = map(Batch.pin, batches)
    thread = ThreadPoolExecutor(1, "batches")
    try:
        ahead = deque(thread.submit(next, batches, None) for _ in range(AHEAD))
        while (batch := ahead.popleft().result()) is not None:
            ahead.append(thread.submit(next, batches, None))
            yield batch
    finally:
        thread.shutdown(cancel_futures=True)


def _shuffled(cache: ResidualCache, settings: Training, seed: int, skip: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    n_batches = settings.tokens // settings.batch_size
    shard_rows = cache.shard_sequences * cache.n_ctx
    # A shard more than the buffer needs, since shards are read whole, and what was left of the last one.
    size = min(settings.buffer_tokens, cache.n_kept) + shard_rows + settings.batch_size
    residuals = torch.empty(size, cache.d_model, dtype=torch.float16)
    tokens = torch.empty(size, dtype=torch.int32)
    places = torch.empty(size, dtype=torch.int64)  # shard x shard_rows + row in the shard
    filled = fetched = 0  # rows of the buffer that are chosen, and those of them that are in memory
    done = 0
    while True:
        order = torch.randperm(len(cache.shards), generator=generator).tolist()
        for place, index in enumerate(order):
            kept = cache.kept(index).nonzero().squeeze(1)
            places[filled : filled + len(kept)] = index * shard_rows + kept
            filled += len(kept)
            if place < len(order) - 1 and filled < settings.buffer_tokens:
                continue
            permutation = torch.randperm(filled, generator=generator)
            whole = filled - filled % settings.batch_size
            batches = permutation[:whole].split(settings.batch_size)
            if skip < min(done + len(batches), n_batches):
                _fetch(cache, places[fetched:filled], residuals[fetched:filled], tokens[fetched:filled])
                fetched = filled
            for chosen in batches:
                if done >= skip:
                    yield Batch(residuals[chosen].float().div_(cache.scale), tokens[chosen].long())
                done += 1
                if done == n_batches:
                    return
            rest = permutation[whole:]
            if fetched == filled:
                residuals[: len(rest)], tokens[: len(rest)] = residuals[rest], tokens[rest]
                fetched = len(rest)
            else:
                fetched = 0
            places[: len(rest)] = places[rest]
            filled = len(rest)


def _fetch(cache: ResidualCache, places: Tensor, residuals: Tensor, tokens: Tensor) -> None:
    """Read the rows at some places, shard by shard."""
    shards, rows = places // (cache.shard_sequences * cache.n_ctx), places % (cache.shard_sequences * cache.n_ctx)
    for index in shards.unique().tolist():
        shard = cache.shard(index)
        slots = (shards == index).nonzero().squeeze(1)
        residuals.index_copy_(0, slots, shard.residuals.index_select(0, rows[slots]))
        tokens.index_copy_(0, slots, shard.tokens.index_select(0, rows[slots]))
