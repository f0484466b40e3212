"""Rows of a table as features: ranks of the own row, and scores relative to those of unigram residuals."""

import pytest
import torch
from fixtures.evaluation import SETTINGS

from tsae.measure.measurement import Measurement
from tsae.measure.ranks import measure_ranks, measure_relative_scores
from tsae.measure.sequences import Sequences
from tsae.measure.sums import DocumentSums

# Rows along three axes, of lengths 1, 2 and 10; what all residuals share lies along the last row.
TABLE = torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, 10]])
MEAN = torch.tensor([0.0, 0, 2])
SEQUENCES = Sequences(
    torch.tensor([[[9.0, 9, 9], [5, 0, 2], [0, 3, 2]], [[9, 9, 9], [1, 1, 3], [7, 0, 2]]]).half(),
    torch.tensor([[0, 0, 1], [0, 2, 1]]),
    torch.tensor([[False, True, True], [False, True, True]]),
    torch.tensor([[4, 4, 4], [4, 9, 9]]),
)


def ranks(n: int = 100) -> tuple[dict[str, Measurement], DocumentSums]:
    sums = DocumentSums(SEQUENCES.documents)
    settings = SETTINGS.model_copy(update={"detection_tokens": 4 * n})
    return {m.metric: m for m in measure_ranks("unigram", TABLE, MEAN, SEQUENCES, settings, sums)}, sums


def test_ranks_by_hand() -> None:
    found, sums = ranks()
    assert set(found) == {"unigram_feature_rank", "unigram_feature_rank_centred"}
    # Products (5, 0, 20), (0, 6, 20), (1, 2, 30), (7, 0, 20): the long row wins, and has its own token once.
    assert found["unigram_feature_rank"].value == 2  # of 2, 2, 1 and 3
    assert sums.ratio("unigram_feature_first").value == 1 / 4
    # Less the mean (5, 0, 0), (0, 6, 0), (1, 2, 10), (7, 0, 0): the last token's row is level with the third.
    assert found["unigram_feature_rank_centred"].value == 1  # of 1, 1, 1 and 2
    assert sums.ratio("unigram_feature_first_centred").value == 3 / 4
    assert sums.ratio("unigram_feature_first_centred").numerator.tolist() == [2, 1]
    assert sums.ratio("unigram_feature_first_centred").denominator.tolist() == [2, 2]
    assert {(m.n, m.over) for m in found.values()} == {(4, "tokens")}


def test_a_quarter_of_the_sample_is_ranked() -> None:
    assert {m.n for m in ranks(2)[0].values()} == {2}


def test_scores_relative_to_unigram_residuals_by_hand() -> None:
    def left(table: torch.Tensor) -> float:
        sums = DocumentSums(SEQUENCES.documents)
        measure_relative_scores(table, TABLE, SEQUENCES, sums)
        return sums.ratio("token_bias_score_fvu").value

    # x . u_t is 5, 6, 30, 0; a table that is a multiple gives a line.
    assert left(0.5 * TABLE) == pytest.approx(0, abs=1e-12)
    # One that changes a row does not: 5, 12, 30 and 0.
    changed = TABLE * torch.tensor([[1.0], [2], [1]])
    x, y = torch.tensor([5.0, 6, 30, 0]), torch.tensor([5.0, 12, 30, 0])
    correlation = torch.corrcoef(torch.stack([x, y]))[0, 1]
    assert left(changed) == pytest.approx(1 - correlation.item() ** 2, rel=1e-4)
