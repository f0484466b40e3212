"""What a page tells of tokens, by hand."""

import numpy as np
import pytest
import torch

from tsae.explore.tokens import compare_with_unigrams, features_on_tokens, fvu_by_token, neighbours
from tsae.sae.firings import Firings


def test_a_token_bias_against_its_unigram_residual() -> None:
    table = torch.tensor([[3.0, 4.0], [1.0, 0.0], [9.0, 9.0]])
    unigrams = torch.tensor([[4.0, 3.0], [0.0, 1.0], [9.0, 9.0]])
    found = compare_with_unigrams(table, unigrams, torch.tensor([5, 1, 0]))
    assert found["bias_norm"].tolist() == pytest.approx([5, 1, 9 * 2**0.5])
    assert found["cosine"].tolist() == pytest.approx([24 / 25, 0, 1])
    # The means over seen tokens are (2, 2) in both.
    assert found["centred_cosine"].tolist()[:2] == pytest.approx([4 / 5, 4 / 5])


def test_neighbours_are_tokens_that_were_seen() -> None:
    table = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 0.0]])
    found = neighbours(table, torch.tensor([3, 1, 2, 0]))
    assert found["neighbour"][:, :3].tolist() == [[1, 2, -1], [0, 2, -1], [1, 0, -1], [-1, -1, -1]]
    assert found["neighbour_cosine"][0, 1] == 0
    lonely = neighbours(table, torch.tensor([0, 1, 0, 0]))
    assert (lonely["neighbour"] == -1).all()


def test_features_on_a_token_in_descending_order() -> None:
    tokens = np.array([0, 2, 2, 2, 1, 2])
    # Feature 0 fires on places 1 and 4, feature 1 on 1, 2, 3, feature 2 never.
    firings = Firings(np.array([0, 2, 5, 5]), np.array([1, 4, 1, 2, 3]), np.ones(5))
    found = features_on_tokens(firings, tokens, 4)
    assert found["counts"].tolist() == [0, 1, 2, 0]
    assert found["features"].tolist() == [0, 1, 0]
    assert found["occurrences"].tolist() == [1, 3, 1]


def test_fvu_by_token_by_hand() -> None:
    errors, deviations, tokens = np.array([1.0, 2.0, 4.0]), np.array([4.0, 4.0, 4.0]), np.array([3, 0, 3])
    found = fvu_by_token(errors, deviations, tokens, 5)
    assert found[[0, 3]].tolist() == [0.5, 0.625]
    assert np.isnan(found[[1, 2, 4]]).all()
