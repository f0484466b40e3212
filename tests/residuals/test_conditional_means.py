"""Conditional means by hand, and tables fitted to them."""

from pathlib import Path

import pytest
import torch
from fixtures.training import LAYER, Prepared, write_cache

from tsae.residuals.conditional_means import ConditionalMeans, fit_table, load_conditional_means, shrink
from tsae.residuals.read import open_residuals
from tsae.residuals.write_conditional_means import conditional_means, write_conditional_means


def test_means_by_hand(tmp_path: Path) -> None:
    # Three sequences in two shards; BOS is token 0, and the row of norm 5000 is an outlier.
    tokens = torch.tensor([[0, 1, 2], [0, 1, 4], [0, 2, 1]])
    residuals = torch.tensor([[[9.0, 9], [1, 2], [10, 0]], [[9, 9], [3, 4], [0, 5000]], [[9, 9], [20, 4], [2, 12]]])
    cache = write_cache(tmp_path, residuals, tokens)
    found = conditional_means(cache)
    assert found.tokens.tolist() == [1, 2]
    assert found.means.tolist() == [[2, 6], [15, 2]]
    torch.testing.assert_close(found.mean, torch.tensor([36 / 5, 22 / 5]))
    # Of (1, 2), (10, 0), (3, 4), (20, 4), (2, 12).
    covariance = torch.tensor([[254.8 / 5, -40.4 / 5], [-40.4 / 5, 83.2 / 5]])
    torch.testing.assert_close(found.root @ found.root, covariance, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.root, found.root.T)
    table = found.table(5)
    assert table[[1, 2]].tolist() == [[2, 6], [15, 2]]
    assert table[[0, 3, 4]].isnan().all()


def test_means_of_a_whole_cache(prepared: Prepared, tmp_path: Path) -> None:
    write_conditional_means(prepared.residuals, LAYER, tmp_path / "means.safetensors")
    found = load_conditional_means(tmp_path / "means.safetensors")
    cache = open_residuals(prepared.residuals, "train", LAYER)
    kept = cache.kept_rows()
    assert torch.equal(found.tokens, kept.tokens.long().unique())
    torch.testing.assert_close(found.mean, kept.residuals.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.root @ found.root, kept.residuals.T.cov(correction=0), rtol=1e-3, atol=1e-4)
    for place in (0, len(found.tokens) // 2, -1):
        own = kept.residuals[kept.tokens == found.tokens[place]]
        torch.testing.assert_close(found.means[place], own.mean(0), rtol=1e-4, atol=1e-5)


def test_another_file_is_refused(prepared: Prepared) -> None:
    with pytest.raises(ValueError, match=r"instead of tokens \(n\) int64, means \(n, n\) float32"):
        load_conditional_means(prepared.unigrams)


def test_the_fitted_scale_is_that_of_least_squares_over_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(30, 5, generator=generator) + 4
    tokens = torch.randint(0, 20, (400,), generator=generator)
    x = 3 + 0.7 * table[tokens] + torch.randn(400, 5, generator=generator)
    counts, seen = torch.bincount(tokens, minlength=30), tokens.unique()
    means = ConditionalMeans(seen, torch.stack([x[tokens == t].mean(0) for t in seen]), x.mean(0), torch.eye(5))
    scale, fitted = fit_table(table, means, counts)
    centred = table[tokens] - table[tokens].mean(0)
    expected = ((x - x.mean(0)) * centred).sum() / centred.square().sum()
    assert scale == pytest.approx(expected.item(), rel=1e-5)
    assert scale == pytest.approx(0.7, abs=0.1)
    errors = {a: (x - x.mean(0) - a * centred).square().sum() for a in (scale - 0.01, scale, scale + 0.01)}
    assert min(errors, key=lambda a: errors[a]) == scale
    torch.testing.assert_close(fitted[tokens], x.mean(0) + scale * centred, rtol=1e-4, atol=1e-4)
    # A row that was never seen is scaled and shifted with the others.
    torch.testing.assert_close(fitted[25] - fitted[3], scale * (table[25] - table[3]), rtol=1e-4, atol=1e-4)


def test_conditional_means_fit_themselves() -> None:
    means = ConditionalMeans(
        torch.tensor([0, 2]), torch.tensor([[1.0, 2], [3, 0]]), torch.tensor([1.5, 1.5]), torch.eye(2)
    )
    scale, fitted = fit_table(means.table(3), means, torch.tensor([3, 0, 1]))
    assert scale == pytest.approx(1)
    torch.testing.assert_close(fitted[[0, 2]], means.means)


def observed(spread: float, noise: float) -> tuple[ConditionalMeans, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Residuals about true means, which are about a table: conditional means, the table, counts and the true means."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(500, 8, generator=generator)
    truth = 1 + 2 * table + spread * torch.randn(500, 8, generator=generator)
    tokens = torch.multinomial(1 / torch.arange(1, 401.0), 6000, replacement=True, generator=generator)
    x = truth[tokens] + noise * torch.randn(6000, 8, generator=generator)
    counts, seen = torch.bincount(tokens, minlength=500), tokens.unique()
    deviations = x - x.mean(0)
    values, directions = torch.linalg.eigh(deviations.T @ deviations / len(x))
    means = torch.stack([x[tokens == token].mean(0) for token in seen])
    root = directions * values.sqrt() @ directions.T
    return ConditionalMeans(seen, means, x.mean(0), root), table, counts, truth


def test_shrunk_means_are_nearer_the_truth_than_the_means_and_than_the_table() -> None:
    means, table, counts, truth = observed(spread=0.7, noise=2)
    _, fitted = fit_table(table, means, counts)
    rows = shrink(means, table, counts)
    unseen = counts == 0
    assert torch.equal(rows[unseen], fitted[unseen])

    def error(estimate: torch.Tensor) -> float:
        return (estimate[means.tokens] - truth[means.tokens]).square().mean().item()

    assert error(rows) < 0.85 * min(error(means.table(500)), error(fitted))
    # As far as the two variances say: half of the way where a token was seen noise^2 / spread^2 = 8 times.
    way = ((rows - fitted)[means.tokens] * (means.means - fitted[means.tokens])).sum(1)
    way = way / (means.means - fitted[means.tokens]).square().sum(1)
    n = counts[means.tokens]
    torch.testing.assert_close(way, n / (n + 8.0), rtol=0, atol=0.06)


def test_without_noise_the_means_stay_and_without_spread_the_table_does() -> None:
    means, table, counts, _ = observed(spread=0.7, noise=1e-4)
    torch.testing.assert_close(shrink(means, table, counts)[means.tokens], means.means, rtol=1e-3, atol=1e-3)
    means, table, counts, _ = observed(spread=0, noise=2)
    _, fitted = fit_table(table, means, counts)
    assert (shrink(means, table, counts) - fitted).norm() < 0.1 * (means.table(500) - fitted)[means.tokens].norm()
