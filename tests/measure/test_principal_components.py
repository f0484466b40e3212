"""Principal components of training residuals as reconstructions of held-out ones."""

import pytest
import torch

from tsae.measure.principal_components import pca_fvu, ranks
from tsae.measure.sequences import Sequences
from tsae.measure.sums import DocumentSums
from tsae.residuals.conditional_means import ConditionalMeans


def means(mean: torch.Tensor, root: torch.Tensor) -> ConditionalMeans:
    return ConditionalMeans(torch.tensor([0]), mean[None], mean, root)


def test_ranks_are_the_powers_of_two_below_the_width() -> None:
    assert [list(ranks(d)) for d in (1, 2, 5, 8)] == [[], [1], [1, 2, 4], [1, 2, 4]]


def test_pca_fvu_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsae.measure.principal_components.PART", 2)
    # Training residuals have the mean (1, 1, 1) and vary most along the third axis, then the first.
    known = means(torch.ones(3), torch.diag(torch.tensor([2.0, 1.0, 3.0])))
    x = torch.tensor([[[9.0, 9, 9], [2, 3, 5], [0, 1, -3], [1, -1, 1]]], dtype=torch.float16)
    kept = torch.tensor([[False, True, True, True]])
    sequences = Sequences(x, torch.zeros(1, 4, dtype=torch.int64), kept, torch.zeros(1, 4, dtype=torch.int64))
    sums = DocumentSums(sequences.documents)
    pca_fvu(sequences, known, sums)
    # Less the mean: (1, 2, 4), (-1, 0, -4), (0, -2, 0). Rank 1 leaves 5 + 1 + 4, rank 2 leaves 4 + 0 + 4.
    # The held-out mean is (1, 1, 1) too, and squares around it sum to 21 + 17 + 4.
    assert {at: ratio.value for _, at, ratio in sums} == pytest.approx({1.0: 10 / 42, 2.0: 8 / 42})


def test_leading_components_explain_as_much_as_their_eigenvalues() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 8, generator=generator, dtype=torch.float64) @ torch.randn(8, 8, dtype=torch.float64)
    x = x.float()
    mean, covariance = x.mean(0), torch.cov(x.T, correction=0).double()
    eigenvalues, directions = torch.linalg.eigh(covariance)
    root = (directions * eigenvalues.clamp(min=0).sqrt()) @ directions.T
    shape = (40, 100)
    where = torch.arange(40)[:, None].expand(shape)
    sequences = Sequences(x.view(*shape, 8), where, torch.ones(shape, dtype=torch.bool), where)
    sums = DocumentSums(where)
    pca_fvu(sequences, means(mean, root.float()), sums)
    for rank in (1, 2, 4):
        left = (eigenvalues[: 8 - rank].sum() / eigenvalues.sum()).item()
        assert sums.ratio("pca_fvu", float(rank)).value == pytest.approx(left, rel=1e-4)
