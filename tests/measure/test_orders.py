"""Lookups by the last few tokens, by hand and against a naive twin that leaves every occurrence out in turn."""

import math
from collections import defaultdict

import pytest
import torch
from fixtures.evaluation import Evaluated
from torch import Tensor

from tsae.measure.orders import ORDERS, SuffixRows, table_fvu_by_order
from tsae.measure.sequences import Sequences
from tsae.measure.sums import DocumentSums
from tsae.residuals import shrinkage
from tsae.residuals.read import Shard

BOS, A, B, C = range(4)
V = 4


def heldout(tokens: list[list[int]], residuals: Tensor, kept: Tensor | None = None) -> Sequences:
    ids = torch.tensor(tokens)
    if kept is None:
        kept = torch.ones_like(ids, dtype=torch.bool)
        kept[:, 0] = False
    return Sequences(residuals, ids, kept, torch.arange(len(ids))[:, None].expand_as(ids))


def shard(tokens: list[list[int]], residuals: Tensor, kept: Tensor | None = None) -> Shard:
    """A training shard whose BOS are left out, if `kept` does not say otherwise."""
    ids = torch.tensor(tokens)
    kept = torch.arange(ids.shape[1]).expand(ids.shape) > 0 if kept is None else kept
    positions = torch.arange(ids.shape[1]).expand(ids.shape).int()
    return Shard(
        residuals.flatten(0, 1), *(part.flatten() for part in (ids.int(), positions, residuals.norm(dim=2), kept))
    )


def test_rows_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrinkage, "SHRINKAGES", (1.0,))
    # A follows BOS with 6, B follows A with 2, A follows B with 12 and 4: the mean is 6.
    x = torch.tensor([[[99.0], [6], [2], [12]], [[99], [99], [99], [4]]])
    tokens = [[BOS, A, B, A], [BOS, A, B, A]]
    kept = torch.tensor([[False, True, True, True], [False, False, False, True]])
    sequences = heldout([[BOS, A, C, A], [BOS, B, A, B]], torch.zeros(2, 4, 1))
    found = SuffixRows(sequences, torch.zeros(1), V)
    found.add(shard(tokens, x, kept), n_ctx=4)
    rows = [
        dict(zip(suffixes.keys.tolist(), of, strict=True))
        for suffixes, (_, of) in zip(found.orders, found.rows(), strict=True)
    ]
    # Of A: (22 + 6) / 4, of B: (2 + 6) / 2, and C was never seen: the mean.
    assert {token: row.item() for token, row in rows[0].items()} == {A: 7, B: 4, C: 6}
    # By the place of the last token among A, B and C, and the token before it. BOS A: (6 + 7) / 2. B A: (16 + 7) / 3.
    # A B: (2 + 4) / 2. The others do not occur.
    assert {divmod(key, V): row.item() for key, row in rows[1].items()} == {
        (0, BOS): 6.5,
        (0, B): pytest.approx(23 / 3),
        (0, C): 7,
        (1, BOS): 4,
        (1, A): 3,
        (2, A): 6,
    }
    # Of the longer ones none occurs: A C A has the row of C A, BOS A C that of A C.
    assert sorted(row.item() for row in rows[2].values()) == [3, 6, 7, pytest.approx(23 / 3)]
    assert len(rows[3]) == 2


def naive(sequences: Sequences, tokens: Tensor, x: Tensor, kept: Tensor) -> tuple[list[float], list[Tensor]]:
    """Shrinkages, and predictions (N, d) of kept held-out tokens by order, with loops over all pairs of suffixes."""
    x = x.double()

    def suffixes(ids: Tensor, at: tuple[int, int]) -> list[tuple[int, ...]]:
        row, place = ids[at[0]].tolist(), at[1]
        return [tuple(row[place - n + 1 : place + 1]) for n in range(ORDERS + 1) if n <= place + 1]

    places = [tuple(at) for at in kept.nonzero().tolist()]
    occurrences = defaultdict(list)
    for at in places:
        for suffix in suffixes(tokens, at):
            occurrences[suffix].append(at)
    wanted = {s for at in sequences.kept.nonzero().tolist() for s in suffixes(sequences.tokens, (at[0], at[1]))}

    def row(suffix: tuple[int, ...], shrinkages: list[float], without: tuple[int, ...] | None = None) -> Tensor:
        mine = [x[at] for at in occurrences[suffix] if at != without]
        if not suffix:
            return torch.stack(mine).mean(0)
        prior = row(suffix[1:], shrinkages, without)
        strength = shrinkages[len(suffix) - 1]
        return (sum(mine, torch.zeros_like(prior)) + strength * prior) / (len(mine) + strength)

    chosen: list[float] = []
    for order in range(1, ORDERS + 1):

        def error(candidate: float, order: int = order) -> float:
            trial = [*chosen, candidate]
            return sum(
                (x[at] - row(suffix, trial, without=at)).square().sum().item()
                for suffix in wanted
                if len(suffix) == order
                for at in occurrences[suffix]
            )

        chosen.append(min(shrinkage.SHRINKAGES, key=error))
    predicted = []
    for order in range(1, ORDERS + 1):
        of_tokens = [suffixes(sequences.tokens, (s, p))[: order + 1][-1] for s, p in sequences.kept.nonzero().tolist()]
        predicted.append(torch.stack([row(suffix, chosen) for suffix in of_tokens]))
    return chosen, predicted


def test_lookups_are_those_of_a_naive_twin() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, V, (16, 6), generator=generator)
    tokens[:, 0] = BOS
    # A residual is a sum over its last two tokens and noise.
    parts, noise = torch.randn(2, V, 3, generator=generator), torch.randn(16, 6, 3, generator=generator)
    x = parts[0][tokens] + parts[1][tokens.roll(1, 1)] + 0.7 * noise + 5
    kept = torch.rand(16, 6, generator=generator) < 0.9
    kept[:, 0] = False
    train = slice(4, None)
    sequences = heldout(tokens[:4].tolist(), x[:4], kept[:4])
    chosen, predicted = naive(sequences, tokens[train], x[train], kept[train])

    found = SuffixRows(sequences, torch.full((3,), 4.0), V)
    for few in (slice(4, 9), slice(9, None)):  # two shards
        found.add(shard(tokens[few].tolist(), x[few], kept[few]), n_ctx=6)
    sums = DocumentSums(sequences.documents)
    shrinkages = table_fvu_by_order(sequences, found, sums)
    assert [m.value for m in shrinkages] == chosen
    assert [m.at for m in shrinkages] == [1, 2, 3, 4]
    of_heldout = x[:4][kept[:4]].double()
    spread = (of_heldout - of_heldout.mean(0)).square().sum()
    for order, x_hat in enumerate(predicted, start=1):
        expected = ((of_heldout - x_hat).square().sum() / spread).item()
        assert sums.ratio("table_fvu_by_order", float(order)).value == pytest.approx(expected, rel=1e-5)
    assert sums.ratio("table_fvu_by_order", 2.0).value < sums.ratio("table_fvu_by_order", 1.0).value


def test_suffixes_do_not_go_past_bos() -> None:
    # At position 1 the longest suffix has two tokens, so all higher orders have the row of order 2.
    x = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    sequences = heldout([[BOS, A], [BOS, B]], x)
    found = SuffixRows(sequences, torch.zeros(3), V)
    assert [len(suffixes.keys) for suffixes in found.orders] == [2, 2, 0, 0]
    found.add(shard([[BOS, A], [BOS, B], [BOS, A]], torch.randn(3, 2, 3)), n_ctx=2)
    sums = DocumentSums(sequences.documents)
    table_fvu_by_order(sequences, found, sums)
    second, *higher = (sums.ratio("table_fvu_by_order", float(order)).value for order in (2, 3, 4))
    assert higher == [second] * 2 and math.isfinite(second)


def test_a_lookup_needs_residuals() -> None:
    found = SuffixRows(heldout([[BOS, A]], torch.ones(1, 2, 3)), torch.zeros(3), V)
    found.add(shard([[BOS, A]], torch.ones(1, 2, 3)), n_ctx=2)
    with pytest.raises(ValueError, match="1 kept training tokens, and a lookup needs two or more"):
        list(found.rows())


def test_the_centre_that_sums_are_taken_from_does_not_matter(evaluated: Evaluated) -> None:
    cache, sequences = evaluated.train, evaluated.whole
    values = []
    for centre in (torch.zeros(cache.d_model), cache.mean()):
        found = SuffixRows(sequences, centre, cache.vocab_size)
        for index in range(len(cache.shards)):
            found.add(cache.shard(index), cache.n_ctx)
        sums = DocumentSums(sequences.documents)
        table_fvu_by_order(sequences, found, sums)
        values.append([ratio.value for _, _, ratio in sums])
    assert values[0] == pytest.approx(values[1], rel=1e-5)
