"""The geometry of a table: rows against unigram residuals and one another, and the neighbours that tokens inherit."""

import math

import pytest
import torch
from fixtures.evaluation import SETTINGS
from torch.nn.functional import cosine_similarity

from tsae.measure.geometry import (
    FEWEST,
    NEIGHBOURS,
    measure_inheritance,
    measure_neighbours,
    measure_table,
    nearest_other,
    neighbours,
)


def test_table_by_hand() -> None:
    e, half = torch.eye(4), math.sqrt(0.5)
    table = torch.stack([e[0], 2 * e[0], e[1], e[1] + e[2], e[3], -e[3]])
    unigrams = torch.stack([e[0], e[0], e[1] + e[2], 3 * e[1] + 3 * e[2], e[2], e[3]])
    counts = torch.tensor([5, 0, 1, 30, 20, 0])
    measured = measure_table(table, unigrams, counts, SETTINGS)
    value = {(m.metric, m.min_count, m.at): m.value for m in measured}
    n = {(m.metric, m.min_count): m.n for m in measured if not m.metric.endswith("_by_count")}
    # For three min_counts a median and 21 shares, and medians in the bins of counts 0, 20 and more.
    assert len(value) == len(measured) == 3 * 3 * 22 + 2 * 3
    # To their own unigram residuals: 1, 1, 0.71, 1, 0, -1; to the most similar other row: 1, 1, 0.71, 0.71, 0, 0.
    own, neighbour = "token_bias_unigram_cosine", "token_bias_neighbour_cosine"
    for min_count, rows, own_median, neighbour_median in (
        (0, 6, (half + 1) / 2, half),
        (1, 4, (half + 1) / 2, half),
        (20, 2, 0.5, half / 2),
    ):
        assert value[own, min_count, None] == pytest.approx(own_median, rel=1e-6)
        assert value[neighbour, min_count, None] == pytest.approx(neighbour_median, rel=1e-6)
        assert n[own, min_count] == n[neighbour, min_count] == rows
    assert value[f"{own}_share", 0, 0.7] == pytest.approx(4 / 6)
    assert value[f"{own}_share", 0, 0.75] == pytest.approx(3 / 6)
    assert value[f"{own}_share", 0, 0.0] == pytest.approx(5 / 6)
    assert value[f"{own}_share", 20, 0.05] == 0.5
    assert value[f"{neighbour}_share", 0, 0.95] == pytest.approx(2 / 6)
    assert value[f"{neighbour}_share", 1, 0.7] == 0.75
    assert value[f"{neighbour}_share", 1, 0.95] == 0.25


def test_table_without_frequent_tokens() -> None:
    settings = SETTINGS.model_copy(update={"similarity_rows": 3})
    measured = measure_table(torch.randn(6, 4), torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 5, 9]), settings)
    assert {m.min_count for m in measured if not m.metric.endswith("_by_count")} == {0, 1}
    assert {(m.metric, m.n) for m in measured if m.at is None} == {
        ("token_bias_unigram_cosine", 6),
        ("token_bias_unigram_cosine", 4),
        ("token_bias_neighbour_cosine", 3),
        ("token_bias_other_cosine", 6),
        ("token_bias_other_cosine", 4),
    }


def test_other_cosine_is_never_with_a_tokens_own_unigram_residual() -> None:
    e = torch.eye(5)
    settings = SETTINGS.model_copy(update={"min_counts": (0,)})
    value = {m.metric: m.value for m in measure_table(e, e, torch.ones(5), settings) if m.at is None}
    assert (value["token_bias_unigram_cosine"], value["token_bias_other_cosine"]) == (1, 0)


def to_nearest_other(table: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Cosine similarity of some rows to the most similar other row."""
    cosines = cosine_similarity(table[queries, None], table, dim=2)
    return cosines.scatter(1, queries[:, None], -1).amax(1)


def test_nearest_other_rows_as_they_are_and_centred() -> None:
    generator = torch.Generator().manual_seed(0)
    # The mean is most of a row.
    table = torch.randn(50, 8, generator=generator) + 6
    table[7] = 0
    queries, centre = torch.tensor([3, 0, 49]), table[10:40].mean(0)
    raw, centred = nearest_other(table, table.square().sum(1), queries, centre)
    expected = to_nearest_other(table, queries)
    torch.testing.assert_close(raw, expected, rtol=1e-5, atol=1e-6)
    less = table - centre
    expected = to_nearest_other(less, queries)
    torch.testing.assert_close(centred, expected, rtol=1e-4, atol=1e-5)
    assert (centred < raw).all()


def test_a_row_at_the_centre_is_nobodys_neighbour() -> None:
    table = torch.tensor([[1.0, 0], [2, 1], [0, 2]])
    assert nearest_other(table, table.square().sum(1), torch.tensor([1]), table[0])[1].tolist() == pytest.approx(
        [1 / math.sqrt(10)]
    )


def planted(n: int, d: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Unigram residuals that share a mean of three times their spread, and token-biases that keep them and a part of their own."""
    generator = torch.Generator().manual_seed(0)
    own, learned = (torch.randn(n, d, generator=generator) for _ in range(2))
    return own + 3, 0.5 * (own + 3) + 0.5 * learned


def test_centred_cosines_leave_out_what_all_rows_share() -> None:
    unigrams, table = planted(400)
    counts = torch.full((400,), 30)
    settings = SETTINGS.model_copy(update={"min_counts": (20,)})
    value = {(m.metric, m.at): m.value for m in measure_table(table, unigrams, counts, settings)}
    assert value["token_bias_other_cosine", None] > 0.8
    assert value["token_bias_other_cosine_centred", None] == pytest.approx(0, abs=0.03)
    assert value["token_bias_unigram_cosine_centred", None] == pytest.approx(math.sqrt(0.5), abs=0.02)
    less, own = table - table.mean(0), unigrams - unigrams.mean(0)
    exact = cosine_similarity(less, own, dim=1).quantile(0.5)
    assert value["token_bias_unigram_cosine_centred", None] == pytest.approx(exact.item(), rel=1e-5)
    nearest = to_nearest_other(less, torch.arange(400)).quantile(0.5)
    assert value["token_bias_neighbour_cosine_centred", None] == pytest.approx(nearest.item(), rel=1e-4)
    # All tokens are of one bin, whose queries are a seventh.
    assert value["token_bias_unigram_cosine_by_count", 20] == value["token_bias_unigram_cosine", None]
    of_unigrams = {m.metric: m.value for m in measure_neighbours(unigrams, counts, settings) if m.at is None}
    nearest = to_nearest_other(own, torch.arange(400)).quantile(0.5)
    assert of_unigrams["unigram_neighbour_cosine_centred"] == pytest.approx(nearest.item(), rel=1e-4)
    nearest = to_nearest_other(unigrams, torch.arange(400)).quantile(0.5)
    assert of_unigrams["unigram_neighbour_cosine"] == pytest.approx(nearest.item(), rel=1e-4)


def test_cosines_by_count_are_of_the_tokens_of_a_bin() -> None:
    unigrams, table = planted(60)
    counts = torch.tensor([0, 3, 700]).repeat_interleave(20)
    # Rows never seen are still where they started; of those seen 700 times nothing is left.
    table[:20] = 0.5 * unigrams[:20]
    table[40:] = -table[40:]
    settings = SETTINGS.model_copy(update={"similarity_rows": 35})
    measured = [m for m in measure_table(table, unigrams, counts, settings) if m.metric.endswith("_by_count")]
    value = {(m.metric, m.at): m.value for m in measured}
    assert {m.at for m in measured} == {0, 2, 100}
    assert all(m.min_count is None for m in measured)
    assert {m.n for m in measured} == {20, 5}
    for suffix in ("", "_centred"):
        assert value[f"token_bias_unigram_cosine{suffix}_by_count", 0] == pytest.approx(1, abs=1e-5)
        assert 0.3 < value[f"token_bias_unigram_cosine{suffix}_by_count", 2] < 1
        assert value[f"token_bias_unigram_cosine{suffix}_by_count", 100] < -0.3
    at = {
        m.at for m in measure_neighbours(unigrams, counts, settings) if m.metric == "unigram_neighbour_cosine_by_count"
    }
    assert at == {0, 2, 100}


def test_a_bin_of_few_tokens_is_not_centred() -> None:
    unigrams, table = planted(FEWEST + 2)
    counts = torch.tensor([1] * FEWEST + [5] * 2)
    settings = SETTINGS.model_copy(update={"similarity_rows": 7 * FEWEST})
    at = {(m.metric, m.at) for m in measure_table(table, unigrams, counts, settings)}
    assert ("token_bias_unigram_cosine_centred_by_count", 1) in at
    assert ("token_bias_unigram_cosine_by_count", 5) in at
    assert ("token_bias_unigram_cosine_centred_by_count", 5) not in at


def test_neighbours_by_hand() -> None:
    angles = torch.tensor([0.0, 10, 25, 180, 40]).deg2rad()
    table = torch.stack([angles.cos(), angles.sin()], 1) * torch.arange(1, 6)[:, None]
    tokens = torch.tensor([0, 1, 2, 4])
    assert neighbours(table, tokens, torch.tensor([1, 4]), 2).tolist() == [[0, 2], [2, 1]]


def test_inheritance_by_hand() -> None:
    # 30 tokens on a circle; in the second table every other one has moved to the opposite side.
    n = 30
    angles = 2 * math.pi * torch.arange(n) / n
    first = torch.stack([angles.cos(), angles.sin()], 1)
    counts, spelling = torch.full((n + 5,), 20), torch.arange(n + 5)
    counts[n:] = 19
    first = torch.cat([first, torch.randn(5, 2, generator=torch.Generator().manual_seed(0))])
    # Tokens 4 and 5 are one word, and so are 10 and 20, which are far apart, and 7 and 31, which is too rare to be asked of.
    spelling[5], spelling[20], spelling[31] = 4, 10, 7
    tables = {"unigram": first}
    value = {m.metric: m for m in measure_inheritance("token_bias", 3 * first, tables, spelling, counts, SETTINGS)}
    assert set(value) == {"neighbour_overlap_unigram_token_bias", "token_bias_same_word"}
    assert value["neighbour_overlap_unigram_token_bias"].value == 1
    assert (value["neighbour_overlap_unigram_token_bias"].n, value["token_bias_same_word"].n) == (n, 4)
    # Of tokens 4 and 5 each has two nearest, of which the lower or the higher may come first.
    assert value["token_bias_same_word"].value in (0, 0.25, 0.5)
    assert {(m.min_count, m.over) for m in value.values()} == {(20, "tokens")}

    moved = first.clone()
    moved[5] = 0.99 * first[4] + 0.01 * first[5]
    alone = measure_inheritance("embedding", moved, {}, spelling, counts, SETTINGS)
    assert [(m.metric, m.value) for m in alone] == [("embedding_same_word", 0.5)]

    mirrored = torch.where(torch.arange(n + 5)[:, None] % 2 == 0, first, -first)
    overlap = measure_inheritance("token_bias", mirrored, tables, spelling, counts, SETTINGS)[0]
    # Of the ten nearest, five on each side, those an even number of places away stay, two on each side.
    assert overlap.value == pytest.approx(4 / NEIGHBOURS, abs=0.05)


def test_too_few_tokens_have_no_neighbours_to_compare() -> None:
    table = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(40, dtype=torch.int64)
    counts[:NEIGHBOURS] = 50
    assert measure_inheritance("unigram", table, {"embedding": table}, torch.arange(40), counts, SETTINGS) == []


def test_rows_of_zeros_have_no_direction_and_are_left_out() -> None:
    unigrams = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    counts = torch.arange(40) // 10
    table = torch.where(counts[:, None] > 0, 2 * unigrams, 0)
    settings = SETTINGS.model_copy(update={"min_counts": (0, 1)})
    measured = measure_table(table, unigrams, counts, settings)
    assert all(math.isfinite(row.value) for row in measured)
    own = {row.min_count: row for row in measured if row.metric == "token_bias_unigram_cosine"}
    assert own[0].n == own[1].n == 30 and own[0].value == pytest.approx(1)
    assert 0.0 not in {row.at for row in measured if row.metric.endswith("_by_count")}
