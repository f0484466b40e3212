"""Choosing and indexing active features, worked by hand."""

import pytest
import torch

from tsae.compute.kernels import Indices, SelectTopK, encode, select_positive


def test_topk_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0], [-1.0, 0.0]])
    W_enc = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, -3.0]])
    b_enc = torch.tensor([0.0, 0.5, -1.0, 0.0])
    # Pre-activations: 1, 2.5, 2, -7 and -1, 0.5, -2, 1.
    pre, indices = encode(x, W_enc, b_enc, SelectTopK(3))
    assert indices.offsets.tolist() == [0, 3]
    assert torch.zeros(2, 4).scatter(1, indices.features.view(2, 3), pre.view(2, 3)).tolist() == [
        [1.0, 2.5, 2.0, 0.0],
        [-1.0, 0.5, 0.0, 1.0],
    ]


def test_positive_by_hand() -> None:
    pre = torch.tensor([[0.0, -1.0, -0.0], [1.0, 0.0, 1e-30], [-2.0, 5.0, -3.0], [-1.0, -1.0, -1.0]])
    features, offsets = select_positive(pre, torch.zeros(3))
    assert features.tolist() == [0, 2, 1]
    assert offsets.tolist() == [0, 0, 2, 3]
    values, indices = encode(pre, torch.eye(3), torch.zeros(3), select_positive)
    assert values.tolist() == pytest.approx([1.0, 1e-30, 5.0], rel=1e-6)
    assert (indices.features.tolist(), indices.offsets.tolist()) == ([0, 2, 1], [0, 0, 2, 3])


def test_rows_and_places_by_hand() -> None:
    indices = Indices(torch.tensor([5, 1, 0, 2, 5]), torch.tensor([0, 2, 2, 3]), 6)
    assert indices.rows.tolist() == [0, 0, 2, 3, 3]
    assert indices.places.tolist() == [5, 1, 12, 20, 23]
    assert Indices(torch.tensor([3]), torch.tensor([0, 0, 1]), 6).rows.tolist() == [1]
    assert Indices(torch.tensor([], dtype=torch.int64), torch.tensor([0, 0]), 6).rows.tolist() == []


def test_groups_by_hand() -> None:
    groups = Indices(torch.tensor([2, 0, 2, 1, 0, 4]), torch.tensor([0, 2, 5]), 6).groups
    # Feature 0 is active at slots 1 and 4, 1 at 3, 2 at 0 and 2, 4 at 5; 3 and 5 are silent.
    assert groups.slots.tolist() == [1, 4, 3, 0, 2, 5]
    assert groups.offsets.tolist() == [0, 2, 3, 5, 5, 6]
    assert groups.rows.tolist() == [0, 1, 1, 0, 1, 2]
