"""Conditional means: the mean training residual of every token, and how residuals spread around their common mean.

They are what a table could know of a token, beside unigram residuals, which the model makes of a token that it sees almost alone.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tsae.store.tensors import load_as


class ConditionalMeans(NamedTuple):
    """Means over the kept training tokens of a layer."""

    tokens: Tensor
    """(n,) int64, the tokens seen in training, in ascending order."""
    means: Tensor
    """(n, d_model) float32, the mean residual of each."""
    mean: Tensor
    """(d_model,) float32, the mean residual of all."""
    root: Tensor
    """(d_model, d_model) float32, the symmetric root of the residuals' covariance; of many, of a sample."""

    def table(self, vocab_size: int) -> Tensor:
        """A row per token (vocab_size, d_model), NaN where the token was not seen."""
        rows = self.means.new_full((vocab_size, self.means.shape[1]), torch.nan)
        rows[self.tokens] = self.means
        return rows


def load_conditional_means(path: Path) -> ConditionalMeans:
    """Read what `write_conditional_means` wrote.

    Raises:
        ValueError: the file is missing, damaged, or holds something else.
    """
    shapes: dict[str, tuple[int | None, ...]] = {
        "tokens": (None,),
        "means": (None, None),
        "mean": (None,),
        "root": (None, None),
    }
    dtypes = {"tokens": torch.int64}
    return ConditionalMeans(
        **load_as(path, {name: (shape, dtypes.get(name, torch.float32)) for name, shape in shapes.items()})
    )


def fit_table(table: Tensor, means: ConditionalMeans, counts: Tensor) -> tuple[float, Tensor]:
    """The scale and shift of a table that explain most of the training residuals.

    Of all x_hat = mean + a (table[t] - mean table), a is that of least squares over the training tokens. Since the error depends on
    the residuals of a token by their mean alone, conditional means, weighted by counts, give the same a.

    Args:
        table: (V, d), a row per token, finite for those seen in training.
        means: conditional means of the layer.
        counts: (V,) how often each token was seen in training.

    Returns:
        a, 0 for a table whose rows are all the same, and the fitted table (V, d).
    """
    weights = counts[means.tokens].double()
    rows = table[means.tokens]
    mean_row = (weights / weights.sum()).float() @ rows
    centred = rows - mean_row
    explained = weights @ (centred * (means.means - means.mean)).sum(1, dtype=torch.float64)
    spread = weights @ centred.square().sum(1, dtype=torch.float64)
    scale = (explained / spread).item() if spread > 0 else 0.0
    return scale, means.mean + scale * (table - mean_row)
