"""Controls for the similarity of features to a table."""

import pytest
import torch
from fixtures.evaluation import SETTINGS

from tsae.measure.controls import Control, compare_with_controls
from tsae.residuals.conditional_means import ConditionalMeans

MEANS = ConditionalMeans(
    torch.tensor([1, 3, 4]),
    torch.tensor([[2.0, 0, 0], [0, 3, 0], [0, 1, 1]]),
    torch.tensor([0.0, 0, 0]),
    torch.eye(3),
)
COUNTS = torch.tensor([0, 1, 0, 30, 20])


def compare(W_dec: torch.Tensor, means: ConditionalMeans = MEANS, **changes: object) -> dict[str, Control]:
    alive = torch.arange(len(W_dec)) % 2 == 0
    settings = SETTINGS.model_copy(update=changes)
    return {control.name: control for control in compare_with_controls(W_dec, alive, means, COUNTS, settings)}


def test_conditional_means_by_hand() -> None:
    found = compare(torch.tensor([[5.0, 0, 0], [0, 0.6, 0.8]]))["conditional_mean"]
    # Rows of tokens seen at least once, and at least 20 times; those never seen have no mean.
    assert set(found.similar) == {1, 20}
    assert found.similar[1][0].tolist() == pytest.approx([1, 0.7 * 2**0.5])
    assert found.similar[20][0].tolist() == pytest.approx([0, 0.7 * 2**0.5])
    assert found.similar[1][1].tolist() == [0, 2]
    assert found.alive.tolist() == [True, False]


def test_random_rows_are_as_many_as_the_tables_and_the_same_for_every_sae() -> None:
    W_dec = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    first, again = compare(W_dec), compare(W_dec)
    generator = torch.Generator().manual_seed(SETTINGS.seed)
    z = torch.nn.functional.normalize(torch.randn(3, 3, generator=generator), dim=1)
    cosines = torch.nn.functional.normalize(W_dec, dim=1) @ z.T
    torch.testing.assert_close(first["random"].similar[1][0], cosines.max(1).values)
    torch.testing.assert_close(first["random"].similar[20][0], cosines[:, 1:].max(1).values)
    for name in ("random", "gaussian"):
        assert torch.equal(first[name].similar[1][0], again[name].similar[1][0])


def test_a_sample_of_features_keeps_its_own_marks() -> None:
    W_dec = torch.eye(3).repeat(10, 1)
    found = compare(W_dec, similarity_rows=7)
    assert len(found["conditional_mean"].alive) == 30
    assert len(found["random"].alive) == len(found["random"].similar[1][0]) == 7
    # Every third feature is the same, every second alive: which ones were drawn shows in both.
    generator = torch.Generator().manual_seed(SETTINGS.seed)
    torch.randn(3, 3, generator=generator)
    chosen = torch.randperm(30, generator=generator)[:7].sort().values
    assert found["random"].alive.tolist() == (chosen % 2 == 0).tolist()


def test_gaussian_rows_lie_where_residuals_lie() -> None:
    # Residuals with a mean of length 5 along one axis, that spread along another alone.
    n = 2000
    root = torch.zeros(3, 3)
    root[1, 1] = 2.0
    means = ConditionalMeans(torch.arange(n), torch.ones(n, 3), torch.tensor([5.0, 0, 0]), root)
    counts = torch.ones(n, dtype=torch.int64)
    alive = torch.ones(3, dtype=torch.bool)
    found = {c.name: c for c in compare_with_controls(torch.eye(3), alive, means, counts, SETTINGS)}
    cosine = found["gaussian"].similar[1][0]
    assert cosine[0] == pytest.approx(1, abs=1e-4)
    # The largest of 2000 normal numbers is about 3.4 standard deviations.
    assert 0.7 < cosine[1] < 0.9
    assert cosine[2] == pytest.approx(0, abs=1e-6)
    # Isotropic ones come close to every axis alike.
    assert (found["random"].similar[1][0] > 0.99).all()
