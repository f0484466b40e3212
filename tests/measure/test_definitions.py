"""Metrics as modules declare them."""

import pytest

from tsae.measure.definitions import DEFINITIONS, declared_metrics, gather, is_share


def test_a_name_with_words_stands_for_every_combination() -> None:
    words = {"of": {"": "features", "_alive": "alive features"}, "rows": {"a": "row a", "b": "row b"}}
    found = gather({"one": ({"feature_{rows}{of}": "share of {of} like {rows}", "plain": "a number"}, words)})
    assert found == {
        "feature_a": "share of features like row a",
        "feature_a_alive": "share of alive features like row a",
        "feature_b": "share of features like row b",
        "feature_b_alive": "share of alive features like row b",
        "plain": "a number",
    }


def test_a_name_that_two_modules_declare_is_refused() -> None:
    words = {"of": {"": "all", "_alive": "alive"}}
    with pytest.raises(ValueError, match="metric x_alive: measure/one and measure/two declare it; rename one"):
        gather({"measure/one": ({"x_alive": "a"}, {}), "measure/two": ({"x{of}": "b {of}"}, words)})


def test_a_word_that_is_not_spelled_is_named() -> None:
    with pytest.raises(ValueError, match=r"metric x_\{of\}: METRIC_WORDS says nothing of of"):
        gather({"one": ({"x_{of}": "a"}, {})})


def test_the_modules_declare_every_metric_once() -> None:
    declared = declared_metrics()
    assert {"measure/reconstruction", "measure/loss", "phrases/coverage"} <= declared.keys()
    assert len(DEFINITIONS) > 100
    assert not any("{" in name or "{" in meaning for name, meaning in DEFINITIONS.items())


def test_shares_are_told_from_other_metrics() -> None:
    assert is_share("dead_heldout") and is_share("feature_gaussian_similarity_alive")
    assert not is_share("nmse") and not is_share("phrase_coverage")
