"""The stream of training batches, read from cached residuals."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from tsae.profile.training import Training
from tsae.residuals.read import ResidualCache, RowsOf
from tsae.residuals.shards import evenly_spaced

AHEAD = 2  # batches prepared in advance


class Batch(NamedTuple):
    """A training batch."""

    residuals: Tensor  # (N, d) float32, divided by the scale
    tokens: Tensor  # (N,) int64, the rows of the table

    def pin(self) -> "Batch":
        """The same batch in page-locked memory, from which a GPU copies asynchronously."""
        return Batch(*(part.pin_memory() for part in self))

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device. Operators on the device wait for the copy of a pinned batch."""
        return Batch(*(part.to(device, non_blocking=True) for part in self))


def training_batches(
    cache: ResidualCache,
    settings: Training,
    seed: int,
    skip: int = 0,
    pin: bool = False,
    distinct: float = 1.0,
    rows_of: RowsOf = lambda tokens: tokens,
) -> Iterator[Batch]:
    """Yield whole batches for `settings.tokens` tokens, over as many epochs as that takes.

    Shards are visited in random order, and their kept rows are shuffled in a buffer of `settings.buffer_tokens` rows.
    Rows that do not fill a batch move to the next buffer. A thread reads shards and makes batches.

    Args:
        cache: training residuals.
        settings: number of tokens, sizes of batch and buffer.
        seed: seed of the order.
        skip: number of batches to leave out at the start; buffers of skipped batches alone are not read.
        pin: whether to pin the batches, for a GPU.
        distinct: share of the sequences that batches are made of, evenly spaced; at least one.
        rows_of: the rows of the table for the tokens (n_seq, n_ctx) of whole sequences; by default their ids.
    """
    batches = _shuffled(cache, settings, seed, skip, distinct, rows_of)
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


def _shuffled(
    cache: ResidualCache, settings: Training, seed: int, skip: int, distinct: float, rows_of: RowsOf
) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    n_batches = settings.tokens // settings.batch_size
    shard_rows = cache.shard_sequences * cache.n_ctx
    # Shards are read whole, so the last one may exceed the buffer; the rest of the last buffer comes on top.
    size = min(settings.buffer_tokens, cache.n_kept) + shard_rows + settings.batch_size
    residuals = torch.empty(size, cache.d_model, dtype=torch.float16)
    tokens = torch.empty(size, dtype=torch.int32)
    places = torch.empty(size, dtype=torch.int64)  # shard x shard_rows + row in the shard
    is_chosen = torch.zeros(cache.n_sequences, dtype=torch.bool)
    is_chosen[evenly_spaced(cache.n_sequences, max(1, round(distinct * cache.n_sequences)))] = True
    filled = fetched = 0  # rows chosen for the buffer, and how many of them are in memory
    done = 0
    while True:
        order = torch.randperm(len(cache.shards), generator=generator).tolist()
        for place, index in enumerate(order):
            kept = index * shard_rows + cache.kept(index).nonzero().squeeze(1)
            kept = kept[is_chosen[kept // cache.n_ctx]]
            places[filled : filled + len(kept)] = kept
            filled += len(kept)
            if place < len(order) - 1 and filled < settings.buffer_tokens:
                continue
            permutation = torch.randperm(filled, generator=generator)
            whole = filled - filled % settings.batch_size
            batches = permutation[:whole].split(settings.batch_size) if whole else ()
            if skip < min(done + len(batches), n_batches):
                part = slice(fetched, filled)
                _fetch(cache, places[part], rows_of, residuals[part], tokens[part])
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


def _fetch(cache: ResidualCache, places: Tensor, rows_of: RowsOf, residuals: Tensor, tokens: Tensor) -> None:
    """Read the rows at these places, shard by shard."""
    shards, rows = places // (cache.shard_sequences * cache.n_ctx), places % (cache.shard_sequences * cache.n_ctx)
    for index in shards.unique().tolist():
        shard = cache.shard(index)
        slots = (shards == index).nonzero().squeeze(1)
        residuals.index_copy_(0, slots, shard.residuals.index_select(0, rows[slots]))
        of_table = cache.table_rows(shard, rows_of).int()
        tokens.index_copy_(0, slots, of_table.index_select(0, rows[slots]))
