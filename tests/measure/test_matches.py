"""Features that match common unigram and bigram residuals."""

import math

import pytest
import torch
from fixtures.evaluation import SETTINGS

from tsae.measure.matches import SETS, common_directions, measure_matches
from tsae.residuals.ngrams import NgramResiduals

E = torch.eye(5)
# Four common tokens and two common bigrams; what all residuals share lies along axis 4.
UNIGRAMS = torch.stack([E[0] + E[4], E[1] + E[4], -E[0] + E[4], -E[1] + E[4]])
NGRAMS = NgramResiduals(
    torch.tensor([0, 1, 2, 3]),
    {2: torch.tensor([[3, 0], [3, 2]])},
    {2: torch.stack([E[0] + 2 * E[2] + 3 * E[4], -E[0] - 2 * E[2] + 3 * E[4]])},
    per_length=2,
)


def test_directions_by_hand() -> None:
    found = common_directions(NGRAMS, UNIGRAMS)
    assert tuple(found) == SETS
    assert torch.equal(found["unigram"], UNIGRAMS)
    assert torch.equal(found["unigram_centred"], UNIGRAMS - E[4])
    assert torch.equal(found["bigram"], NGRAMS.residuals[2])
    torch.testing.assert_close(found["bigram_centred"], torch.stack([E[0] + 2 * E[2], -E[0] - 2 * E[2]]))
    # The last tokens' unigram residuals lie along axis 0, once the mean is gone.
    torch.testing.assert_close(found["bigram_remainder"], torch.stack([2 * E[2], -2 * E[2]]))
    assert tuple(common_directions(NGRAMS._replace(ids={}), UNIGRAMS)) == ("unigram", "unigram_centred")


def test_matches_by_hand() -> None:
    W_dec = torch.stack([3 * E[0], E[2], E[3], 0.6 * E[0] + 0.8 * E[3]])
    alive = torch.tensor([True, True, False, True])
    measured = measure_matches(W_dec, alive, NGRAMS, UNIGRAMS, SETTINGS)
    value = {(m.metric, m.at): m.value for m in measured}
    assert len(value) == len(measured) == len(SETS) * 2 * 21
    # Similarities: 0.71 as they are, 1 centred; none of the second and third; 0.42 and 0.6.
    half = math.sqrt(0.5)
    for name, cosines in (
        ("unigram", [half, 0, 0, 0.6 * half]),
        ("unigram_centred", [1, 0, 0, 0.6]),
        ("bigram", [1 / math.sqrt(14), 2 / math.sqrt(14), 0, 0.6 / math.sqrt(14)]),
        ("bigram_centred", [1 / math.sqrt(5), 2 / math.sqrt(5), 0, 0.6 / math.sqrt(5)]),
        ("bigram_remainder", [0, 1, 0, 0]),
    ):
        for at in (0.05, 0.25, 0.4, 0.5, 0.55, 0.7, 0.85, 0.95):
            hits = [cosine >= at for cosine in cosines]
            assert value[f"features_match_{name}", at] == sum(hits) / 4, (name, at)
            assert value[f"features_match_{name}_alive", at] == pytest.approx((sum(hits) - hits[2]) / 3)


def test_dead_features_match_nothing_alive() -> None:
    measured = measure_matches(E, torch.zeros(5, dtype=torch.bool), NGRAMS, UNIGRAMS, SETTINGS)
    assert {m.metric for m in measured} == {f"features_match_{name}" for name in SETS}
