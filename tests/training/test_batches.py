import math
import threading
from collections.abc import Generator
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from fixtures.training import SETTINGS, Prepared
from torch import Tensor

from tsae.profile.training import Training
from tsae.residuals.read import ResidualCache, Shard
from tsae.text.tokens import load_tokens
from tsae.training.batches import training_batches


def batch_settings(tokens: int, batch_size: int, buffer_tokens: int = 10**6) -> Training:
    return SETTINGS.model_copy(
        update={"tokens": tokens, "batch_size": batch_size, "buffer_tokens": buffer_tokens},
    )


def count_rows(rows: Tensor) -> dict[tuple[float, ...], int]:
    found, counts = rows.unique(dim=0, return_counts=True)
    return dict(zip(map(tuple, found.tolist()), counts.tolist(), strict=True))


def read_batches(cache: ResidualCache, settings: Training, seed: int = 0) -> Tensor:
    """(n, d + 1): every row of every batch, its token last."""
    batches = list(training_batches(cache, settings, seed))
    assert {len(batch.residuals) for batch in batches} == {settings.batch_size}
    return torch.cat([torch.cat([batch.residuals, batch.tokens[:, None]], dim=1) for batch in batches])


def kept_rows(cache: ResidualCache) -> Tensor:
    rows = cache.kept_rows()
    return torch.cat([rows.residuals / cache.scale, rows.tokens[:, None]], dim=1)


@pytest.mark.parametrize("buffer_tokens", [10**6, 700, 1])
def test_an_epoch_visits_every_kept_row_once(train_cache: ResidualCache, buffer_tokens: int) -> None:
    assert len(train_cache.shards) > 3
    seen = read_batches(train_cache, batch_settings(train_cache.n_kept, 1, buffer_tokens))
    assert count_rows(seen) == count_rows(kept_rows(train_cache))


@pytest.mark.parametrize("buffer_tokens", [10**6, 700])
def test_fewer_distinct_tokens_are_evenly_spaced_sequences_in_more_epochs(
    train_cache: ResidualCache, buffer_tokens: int
) -> None:
    chosen = torch.linspace(0, train_cache.n_sequences - 1, round(train_cache.n_sequences / 4)).long()
    kept = torch.cat([train_cache.kept(index) for index in range(len(train_cache.shards))])
    sequence = torch.arange(len(kept)) // train_cache.n_ctx
    expected = kept_rows(train_cache)[torch.isin(sequence[kept], chosen)]
    settings = batch_settings(2 * len(expected), 1, buffer_tokens)
    batches = list(training_batches(train_cache, settings, 0, distinct=0.25))
    seen = torch.cat([torch.cat([batch.residuals, batch.tokens[:, None]], dim=1) for batch in batches])
    for epoch in seen.split(len(expected)):
        assert count_rows(epoch) == count_rows(expected)


@pytest.mark.parametrize("buffer_tokens", [10**6, 700, 1])
def test_rows_that_fill_no_batch_go_on_to_the_next_buffer(train_cache: ResidualCache, buffer_tokens: int) -> None:
    expected = count_rows(kept_rows(train_cache))
    batch_size = next(size for size in (7, 11, 13) if train_cache.n_kept % size)
    first = count_rows(read_batches(train_cache, batch_settings(train_cache.n_kept, batch_size, buffer_tokens)))
    assert sum(first.values()) == train_cache.n_kept // batch_size * batch_size
    assert all(count <= expected[row] for row, count in first.items())
    # Whatever is left of each epoch, a whole number of batches holds a whole number of epochs.
    whole = count_rows(
        read_batches(train_cache, batch_settings(batch_size * train_cache.n_kept, batch_size, buffer_tokens))
    )
    assert whole == {row: batch_size * count for row, count in expected.items()}


def test_neither_bos_nor_outliers_nor_heldout_documents(prepared: Prepared, train_cache: ResidualCache) -> None:
    ids = load_tokens(prepared.train_tokens)
    heldout = load_tokens(prepared.heldout_tokens)
    assert not (set(ids.documents[:, 1:].unique().tolist()) & set(heldout.documents[:, 1:].unique().tolist()))
    assert 0 < train_cache.n_outliers < train_cache.n_kept
    norms = torch.cat([train_cache.shard(i).norms for i in range(len(train_cache.shards))]).view(ids.ids.shape)
    kept = norms <= train_cache.max_norm * norms[:, 1:].flatten().median()
    kept[:, 0] = False
    assert train_cache.n_kept == kept.sum() == kept[:, 1:].numel() - train_cache.n_outliers
    tokens = torch.cat(
        [batch.tokens for batch in training_batches(train_cache, batch_settings(train_cache.n_kept, 1), 0)]
    )
    assert torch.equal(tokens.bincount(minlength=512), ids.ids[kept].bincount(minlength=512))


@pytest.mark.parametrize(("tokens", "n_batches"), [(128, 1), (1000, 7), (1024, 8), (9999, 78)])
def test_number_of_batches(train_cache: ResidualCache, tokens: int, n_batches: int) -> None:
    assert len(list(training_batches(train_cache, batch_settings(tokens, 128), 0))) == n_batches


def test_batches_are_scaled_and_typed(train_cache: ResidualCache) -> None:
    batch = next(training_batches(train_cache, batch_settings(3000, 3000), 0))
    assert (batch.residuals.dtype, batch.tokens.dtype) == (torch.float32, torch.int64)
    norm = batch.residuals.norm(dim=1).mean().item()
    assert norm == pytest.approx(math.sqrt(train_cache.d_model), rel=0.02)


def test_batches_are_shuffled_by_the_seed(train_cache: ResidualCache) -> None:
    def first(seed: int) -> Tensor:
        return read_batches(train_cache, batch_settings(512, 128), seed)

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))
    assert not torch.equal(first(0), kept_rows(train_cache)[:512])
    # Of one epoch and the next, in one buffer: the same rows in another order.
    both = read_batches(train_cache, batch_settings(2 * train_cache.n_kept, train_cache.n_kept))
    assert not torch.equal(both[: train_cache.n_kept], both[train_cache.n_kept :])
    assert count_rows(both[: train_cache.n_kept]) == count_rows(both[train_cache.n_kept :])


def test_a_shard_that_cannot_be_read_stops_the_reader(train_cache: ResidualCache, tmp_path: Path) -> None:
    damaged = tmp_path / "shard.safetensors"
    damaged.write_bytes(train_cache.shards[-1].read_bytes()[:-1])
    broken = replace(train_cache, shards=[*train_cache.shards[:-1], damaged])
    with pytest.raises(ValueError, match=str(damaged)):
        list(training_batches(broken, batch_settings(train_cache.n_kept, 128), 0))


def test_a_reader_that_stops_early_leaves_no_thread(train_cache: ResidualCache) -> None:
    before = threading.active_count()
    batches = training_batches(train_cache, batch_settings(10**6, 128), 0)
    assert isinstance(batches, Generator)
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("buffer_tokens", [10**6, 700, 1])
@pytest.mark.parametrize("skip", [1, 3, 40, 200, 10**4])
def test_skipped_batches_change_nothing_of_those_that_follow(
    train_cache: ResidualCache, buffer_tokens: int, skip: int
) -> None:
    settings = batch_settings(2 * train_cache.n_kept + 100, 19, buffer_tokens)
    whole = list(training_batches(train_cache, settings, 3))
    assert 200 < len(whole) < 10**4
    rest = list(training_batches(train_cache, settings, 3, skip))
    assert len(rest) == max(0, len(whole) - skip)
    for found, expected in zip(rest, whole[skip:], strict=True):
        assert torch.equal(found.residuals, expected.residuals)
        assert torch.equal(found.tokens, expected.tokens)


def test_skipped_buffers_are_not_read(train_cache: ResidualCache) -> None:
    opened: list[int] = []

    class Watched(ResidualCache):
        def shard(self, index: int) -> Shard:
            opened.append(index)
            return super().shard(index)

    watched = Watched(**{field.name: getattr(train_cache, field.name) for field in fields(train_cache)})
    settings = batch_settings(train_cache.n_kept, 19, 1)
    n_batches = train_cache.n_kept // 19
    assert len(list(training_batches(watched, settings, 0, skip=n_batches - 1))) == 1
    assert len(opened) <= 2 < len(train_cache.shards)
