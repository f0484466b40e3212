"""Conditional means: the mean training residual of every token, and the spread of residuals around their common mean.

They are an alternative to unigram residuals as the rows of a token-bias table.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tsae.store.tensors import load_as


class ConditionalMeans(NamedTuple):
    """Means over the kept training tokens of a layer."""

    tokens: Tensor
    """(n,) int64, the tokens seen in training, ascending."""
    means: Tensor
    """(n, d_model) float32, the mean residual of each."""
    mean: Tensor
    """(d_model,) float32, the mean residual of all."""
    root: Tensor
    """(d_model, d_model) float32, symmetric square root of the residuals' covariance; of a large cache, of a sample."""

    def table(self, vocab_size: int) -> Tensor:
        """One row per token (vocab_size, d_model), NaN for tokens not seen."""
        rows = self.means.new_full((vocab_size, self.means.shape[1]), torch.nan)
        rows[self.tokens] = self.means
        return rows


def load_conditional_means(path: Path) -> ConditionalMeans:
    """Read what `write_conditional_means` wrote.

    Raises:
        ValueError: the file is missing, damaged, or holds something else.
    """
    vector, matrix = ((None,), torch.float32), ((None, None), torch.float32)
    expected = {"tokens": ((None,), torch.int64), "means": matrix, "mean": vector, "root": matrix}
    return ConditionalMeans(**load_as(path, expected))


def fit_table(table: Tensor, means: ConditionalMeans, counts: Tensor) -> tuple[float, Tensor]:
    """The scale and shift of a table that explain most of the training residuals.

    In x_hat = mean + a (table[t] - mean table), a minimises the squared error over the training tokens. The minimum depends on the
    residuals of a token only through their mean, so it is found from the conditional means, weighted by counts.

    Args:
        table: (V, d), one row per token, finite for those seen in training.
        means: conditional means of the layer.
        counts: (V,) how often each token was seen in training.

    Returns:
        a, 0 if all rows of the table are equal, and the fitted table (V, d).
    """
    weights = counts[means.tokens].double()
    rows = table[means.tokens]
    mean_row = (weights / weights.sum()).float() @ rows
    centred = rows - mean_row
    explained = weights @ (centred * (means.means - means.mean)).sum(1, dtype=torch.float64)
    spread = weights @ centred.square().sum(1, dtype=torch.float64)
    scale = (explained / spread).item() if spread > 0 else 0.0
    return scale, means.mean + scale * (table - mean_row)


def shrink(means: ConditionalMeans, table: Tensor, counts: Tensor) -> Tensor:
    """A row for every token: its conditional mean, shrunk towards the row of a fitted table where the token is rare.

    The empirical Bayes estimate (Efron and Morris, 1973), where residuals of a token have a variance about their true mean,
    true means have one about the fitted rows, and neither depends on the token. Both variances come from the means by moments.

    Args:
        means: conditional means of the layer.
        table: (V, d), such as unigram residuals, to be fitted to the means; rows of tokens not seen stay at the fit.
        counts: (V,) how often each token was seen in training.

    Returns:
        (V, d).
    """
    _, fitted = fit_table(table, means, counts)
    n = counts[means.tokens].double()
    n_tokens, n_seen = n.sum(), len(n)
    between = (n @ (means.means - means.mean).square().sum(1, dtype=torch.float64)) / n_tokens
    total = means.root.square().sum(dtype=torch.float64)
    within = (total - between).clamp(min=0) * n_tokens / (n_tokens - n_seen).clamp(min=1)
    misfit = n @ (means.means - fitted[means.tokens]).square().sum(1, dtype=torch.float64)
    about_fit = ((misfit - n_seen * within) / n_tokens).clamp(min=0)
    weights = n * about_fit / (n * about_fit + within) if about_fit + within > 0 else torch.ones_like(n)
    rows = torch.lerp(fitted[means.tokens], means.means, weights.float()[:, None])
    return fitted.index_copy(0, means.tokens, rows)
