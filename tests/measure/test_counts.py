import torch

from tsae.measure.counts import EDGES, count_bins


def test_bins_by_hand() -> None:
    counts = torch.tensor([[0, 1, 2, 4, 5, 19], [20, 99, 100, 999, 1000, 10**9]])
    assert count_bins(counts).tolist() == [[0, 1, 2, 2, 5, 5], [20, 20, 100, 100, 1000, 1000]]
    assert set(count_bins(torch.arange(2000)).tolist()) == set(EDGES)
