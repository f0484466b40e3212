"""Bins of context lengths, by hand."""

import torch

from tsae.measure.positions import add_by_position
from tsae.measure.sums import DocumentSums


def test_bins_are_by_their_upper_edges() -> None:
    positions = torch.tensor([0, 1, 2, 3, 4, 5, 8, 9])
    values, documents = torch.tensor([99.0, 1, 2, 3, 5, 7, 9, 11]), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    sums = DocumentSums(documents)
    add_by_position(sums, "nmse_by_position", values, positions, documents)
    found = {at: ratio for _, at, ratio in sums}
    # A BOS has no context.
    assert {at: ratio.value for at, ratio in found.items()} == {1: 1, 2: 2, 4: 4, 8: 8, 16: 11}
    assert found[4].numerator.tolist() == [3, 5]
