"""Probes in closed form, their thresholds and rates, against cases worked by hand."""

import pytest
import torch

from tsae.measure.intervals import Bootstrap
from tsae.measure.probes import (
    Rates,
    Sample,
    balanced,
    best_thresholds,
    covariance,
    f1_scores,
    fit_probes,
    mean_over_classes,
)

SAMPLE = Sample.of(torch.tensor([7, 7, 3, 9, 9, 9]), torch.tensor([1, 1, 0, -1, -1, -1]), 2)


def test_every_type_weighs_the_same() -> None:
    assert SAMPLE.n_types == 3
    assert SAMPLE.types.tolist() == [1, 1, 0, 2, 2, 2]
    assert SAMPLE.weights.tolist() == pytest.approx([1 / 2, 1 / 2, 1, 1 / 3, 1 / 3, 1 / 3])
    assert SAMPLE.positive.tolist() == [[False, False, True, False, False, False], [True, True] + 4 * [False]]
    mean, spread = covariance(torch.tensor([[1.0], [3.0], [5.0], [5.0], [5.0], [5.0]]), SAMPLE)
    assert mean.item() == pytest.approx((2 + 5 + 5) / 3)
    assert spread.item() == pytest.approx((0.5 * 9 + 0.5 * 1 + 1 + 1) / 3)


def test_differences_are_of_weighted_means() -> None:
    values = torch.tensor([2.0, 4.0, 6.0, 9.0, 9.0, 9.0], dtype=torch.float64)
    sums = (SAMPLE.positive * SAMPLE.weights) @ values[:, None]
    total = (SAMPLE.weights @ values)[None]
    assert SAMPLE.differences(sums, total).flatten().tolist() == pytest.approx([6 - (3 + 9) / 2, 3 - (6 + 9) / 2])


def test_the_threshold_has_the_highest_balanced_accuracy() -> None:
    sample = Sample.of(torch.arange(5), torch.tensor([-1, -1, 0, -1, 0]), 1)
    # Above 2.5: both positives and one of three negatives; above 4.5: one positive and no negative.
    assert best_thresholds(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]), sample).tolist() == [2.5]
    # No threshold lies between the equal scores of a positive and a negative.
    assert best_thresholds(torch.tensor([[1.0, 2.0, 2.0, 2.0, 5.0]]), sample).tolist() in ([3.5], [1.5])
    assert best_thresholds(torch.zeros(1, 5), sample).tolist() == [0]


def test_rates_by_hand() -> None:
    says = torch.tensor([[False, False, True, True, False, False], [True, False, False, False, False, False]])
    recall, specificity = balanced(says, SAMPLE)
    assert (recall.numerator.sum(0) / recall.denominator.sum(0)).tolist() == pytest.approx([1, 0.5])
    assert (specificity.numerator.sum(0) / specificity.denominator.sum(0)).tolist() == pytest.approx(
        [(2 - 1 / 3) / 2, 1]
    )
    # Of class 0: precision 1 / (4/3) and recall 1; of class 1: precision 1 and recall 1/2.
    assert f1_scores(says, SAMPLE).tolist() == pytest.approx([2 / (4 / 3 + 1), 2 * 0.5 / (0.5 + 1)])


def test_the_mean_over_classes_leaves_out_classes_without_tokens() -> None:
    numerator = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.25, 0.0]], dtype=torch.float64)
    denominator = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
    found = mean_over_classes("first_letter_absorption", (Rates(numerator, denominator),), Bootstrap(2, 200, 0))
    assert found.value == pytest.approx((0.5 + 0.25) / 2)
    assert (found.n, found.over) == (2, "tokens")
    assert found.low == 0.125 and found.high == 1


def test_a_probe_finds_classes_of_tokens_that_it_was_not_fitted_to() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(600) % 3
    x = 3 * torch.eye(8)[classes] + torch.randn(600, 8, generator=generator) * 0.3 + 10
    train, test = (Sample.of(torch.arange(300), part, 3) for part in (classes[:300], classes[300:]))
    says = fit_probes(x[:300], train).says(x[300:])
    assert torch.equal(says, test.positive)
