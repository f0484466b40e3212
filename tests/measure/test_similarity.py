"""Features that resemble the rows of a table."""

import pytest
import torch
from fixtures.evaluation import SETTINGS

from tsae.measure.similarity import Similar, measure_feature_similarity, most_similar_rows


def test_feature_similarity_by_hand() -> None:
    # Features whose most similar rows have cosines 1, 0.6, 0 and 0.
    similar = {1: Similar(torch.tensor([1, 0.6, 0, 0]), torch.tensor([1, 1, 0, 0]))}
    alive = torch.tensor([True, True, False, True])
    measured = measure_feature_similarity("token_bias", similar, alive, SETTINGS)
    value = {(m.metric, m.at): m.value for m in measured}
    assert len(value) == len(measured) == 2 * 22
    assert {m.min_count for m in measured} == {1}
    for at, count in {0.0: 4, 0.05: 2, 0.55: 2, 0.65: 1, 1.0: 1}.items():
        assert value["feature_token_bias_similarity", at] == count / 4
        assert value["feature_token_bias_similarity_alive", at] == pytest.approx((count - (at == 0)) / 3)
    assert value["feature_token_bias_similar", None] == 1 / 4
    assert value["feature_token_bias_similar_alive", None] == pytest.approx(1 / 3)
    # Both ends are in the authors' band.
    ends = {1: Similar(torch.tensor([0.39, 0.4, 0.9, 0.91]), torch.zeros(4, dtype=torch.int64))}
    in_band = measure_feature_similarity("unigram", ends, alive, SETTINGS)
    assert in_band[0].metric == "feature_unigram_similar"
    assert in_band[0].value == 2 / 4
    dead = measure_feature_similarity("token_bias", similar, torch.zeros(4, dtype=torch.bool), SETTINGS)
    assert len(dead) == 22
    assert not any(m.metric.endswith("_alive") for m in dead)


def test_most_similar_rows_by_hand() -> None:
    e = torch.eye(4)
    W_dec = torch.stack([2 * e[0], 0.6 * e[0] + 0.8 * e[3], -e[3], e[2]])
    table = torch.stack([e[1], 5 * e[0], -3 * e[3], 0.5 * e[3]])
    similar = most_similar_rows(W_dec, table, torch.tensor([30, 30, 2, 0]), (20, 0, 1, 1))
    assert set(similar) == {0, 1, 20}
    assert similar[0].token.tolist()[:3] == [1, 3, 2]
    assert similar[0].cosine.tolist() == pytest.approx([1, 0.8, 1, 0])
    assert similar[1].token.tolist()[:3] == [1, 1, 2]
    assert similar[1].cosine.tolist() == pytest.approx([1, 0.6, 1, 0])
    assert similar[20].cosine.tolist() == pytest.approx([1, 0.6, 0, 0])


def test_features_are_compared_with_rows_of_tokens_seen_often_enough() -> None:
    e = torch.eye(4)
    alive = torch.ones(4, dtype=torch.bool)
    similar = most_similar_rows(e, e, torch.tensor([0, 1, 2, 30]), SETTINGS.min_counts)
    measured = measure_feature_similarity("unigram", similar, alive, SETTINGS)
    value = {(m.metric, m.min_count): m.value for m in measured if m.at == 1.0}
    for min_count, share in ((0, 4 / 4), (1, 3 / 4), (20, 1 / 4)):
        assert value["feature_unigram_similarity", min_count] == share
        assert value["feature_unigram_similarity_alive", min_count] == share
    # Where no token was seen that often there is nothing to compare with; counts beyond the settings are not reported.
    rare = most_similar_rows(e, e, torch.tensor([0, 1, 2, 3]), {*SETTINGS.min_counts, 2})
    measured = measure_feature_similarity("unigram", rare, alive, SETTINGS)
    assert {m.min_count for m in measured} == {0, 1}
