"""The most similar row, against naive loops."""

import math

import pytest
import torch
from torch import Tensor

from tsae.measure.nearest import max_cosine_similarity, max_cosine_similarity_by_count


def naive_max_cosine(queries: Tensor, keys: Tensor) -> tuple[list[float], list[int]]:
    best, chosen = [], []
    for query in queries.double():
        similarities = {
            j: (query @ key / (query.norm() * key.norm())).item()
            for j, key in enumerate(keys.double())
            if key.isfinite().all() and key.any()
        }
        chosen.append(max(similarities, key=lambda j: similarities[j]))
        best.append(similarities[chosen[-1]])
    return best, chosen


@pytest.mark.parametrize("rows", [1024, 7, 1])
def test_max_cosine_similarity_is_the_naive_loops(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(25, 5, generator=generator) * torch.logspace(-3, 3, 25)[:, None]
    queries = keys[torch.arange(20)] + 0.01
    keys[3], keys[4, 2], keys[5, 0] = 0.0, torch.nan, torch.inf
    best, chosen = max_cosine_similarity(queries, keys, rows)
    expected_best, expected_chosen = naive_max_cosine(queries, keys)
    assert chosen.tolist() == expected_chosen
    assert best.tolist() == pytest.approx(expected_best, rel=1e-5)
    assert not set(chosen.tolist()) & {3, 4, 5}


def test_a_zero_key_is_not_chosen_before_an_opposite_one() -> None:
    keys = torch.tensor([[0.0, 0.0], [-2.0, 0.0], [torch.nan, 1.0]])
    best, chosen = max_cosine_similarity(torch.tensor([[3.0, 0.0]]), keys)
    assert (best.item(), chosen.item()) == (-1.0, 1)


def test_max_cosine_similarity_leaves_its_inputs_alone() -> None:
    keys = torch.tensor([[1.0, torch.nan], [1.0, 1.0]])
    queries = torch.tensor([[2.0, 0.0]])
    before = keys.clone(), queries.clone()
    max_cosine_similarity(queries, keys)
    assert torch.equal(keys.nan_to_num(), before[0].nan_to_num())
    assert torch.equal(queries, before[1])


@pytest.mark.parametrize("rows", [1024, 7, 1])
@pytest.mark.parametrize("min_counts", [(0, 1, 20), (20, 1, 20), (3,), (0,)])
def test_similarity_by_count_is_that_to_each_subset(min_counts: tuple[int, ...], rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(40, 5, generator=generator) * torch.logspace(-3, 3, 40)[:, None]
    queries = torch.randn(30, 5, generator=generator)
    counts = torch.randint(0, 30, (40,), generator=generator) * (torch.arange(40) % 3 > 0)
    found = max_cosine_similarity_by_count(queries, keys, counts, min_counts, rows)
    assert set(found) == set(min_counts)
    for at, (best, chosen) in found.items():
        subset = (counts >= at).nonzero().flatten()
        expected, place = max_cosine_similarity(queries, keys[subset])
        assert 1 < len(subset) <= 40
        torch.testing.assert_close(best, expected)
        assert torch.equal(chosen, subset[place])
    if 0 in found and 20 in found:
        assert (found[0][1] != found[20][1]).any()
        assert (found[0][0] >= found[20][0]).all()


def test_similarity_by_count_does_not_depend_on_the_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    keys, queries = torch.randn(40, 5, generator=generator), torch.randn(30, 5, generator=generator)
    counts = torch.randint(0, 30, (40,), generator=generator)
    whole = max_cosine_similarity_by_count(queries, keys, counts, (0, 1, 20))
    for at, (best, chosen) in max_cosine_similarity_by_count(queries, keys, counts, (0, 1, 20), rows=7).items():
        torch.testing.assert_close(best, whole[at][0])
        assert torch.equal(chosen, whole[at][1])


def test_counts_that_no_key_reaches_have_no_entry() -> None:
    keys, queries = torch.eye(3), torch.tensor([[0.0, 0.0, 2.0]])
    found = max_cosine_similarity_by_count(queries, keys, torch.tensor([4, 5, 2]), (0, 5, 6))
    assert {at: (best.item(), chosen.item()) for at, (best, chosen) in found.items()} == {0: (1.0, 2), 5: (0.0, 1)}
    assert max_cosine_similarity_by_count(queries, keys, torch.zeros(3), (1,)) == {}


def test_of_equal_keys_counted_alike_the_first_is_chosen_for_every_count() -> None:
    e = torch.eye(2)
    keys = torch.stack([e[1], 2 * e[0], e[0], e[0], e[1], -e[0]])
    counts = torch.tensor([0, 7, 7, 7, 30, 30])
    found = max_cosine_similarity_by_count(e[:1], keys, counts, (0, 1, 7, 20))
    assert {at: chosen.item() for at, (_, chosen) in found.items()} == {0: 1, 1: 1, 7: 1, 20: 4}
    for at, (_, chosen) in found.items():
        subset = (counts >= at).nonzero().flatten()
        assert chosen.item() == subset[max_cosine_similarity(e[:1], keys[subset])[1]].item()


def test_similarities_below_zero_are_found_by_count() -> None:
    keys = torch.tensor([[-1.0, 0.0], [-1.0, 1.0], [-1.0, 0.1]])
    found = max_cosine_similarity_by_count(torch.tensor([[3.0, 0.0]]), keys, torch.tensor([9, 0, 9]), (0, 9))
    assert {at: chosen.item() for at, (_, chosen) in found.items()} == {0: 1, 9: 2}
    assert found[9][0].item() == pytest.approx(-1 / math.sqrt(1.01))
