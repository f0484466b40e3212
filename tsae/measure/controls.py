"""Controls for the similarity of features to token-biases (C4, C5).

A feature may resemble a token-bias because the table learned the feature, or because tens of thousands of rows near the
residuals come close to any direction. Three sets of as many rows tell these apart:

    conditional_mean   the mean training residual of each token: rows of tokens without a trained table
    random             isotropic Gaussian directions: the effect of the number of rows and the width alone
    gaussian           Gaussian vectors with the mean and the covariance of training residuals: rows without tokens
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tsae.measure.similarity import Similar, most_similar_rows
from tsae.profile.evaluation import Evaluation
from tsae.residuals.conditional_means import ConditionalMeans

CONTROLS = ("conditional_mean", "random", "gaussian")
METRICS = {
    "feature_{rows}_similar{of}": "share of {of} whose most similar {rows} has a cosine similarity of 0.4 to 0.9 (C5)",
    "feature_{rows}_similarity{of}": "share of {of} whose most similar {rows} has a cosine similarity of `at` or more",
}
METRIC_WORDS = {
    "rows": {
        "conditional_mean": "mean training residual of a token",
        "random": "isotropic random direction",
        "gaussian": "random vector with the residuals' mean and covariance",
    },
    "of": {"": "features", "_alive": "alive features"},
}


class Control(NamedTuple):
    """The most similar rows of one control."""

    name: str
    """The control, of `CONTROLS`."""
    similar: dict[int, Similar]
    """min_count -> the most similar row of each of n features, by its index among the tokens seen."""
    alive: Tensor
    """(n,) whether the features fire on held-out tokens."""


def compare_with_controls(
    W_dec: Tensor, alive: Tensor, means: ConditionalMeans, counts: Tensor, settings: Evaluation
) -> Iterator[Control]:
    """Compare features with the rows of each control.

    Row i of a control stands for the i-th token seen in training and has its count, so a control has as many rows as
    the tables at every `min_count`. Random rows are compared with a seeded sample of `settings.similarity_rows`
    features.

    Args:
        W_dec: (F, d) decoder rows.
        alive: (F,) whether they fire on held-out tokens.
        means: conditional means of the layer.
        counts: (V,) training occurrences of each token.
        settings: the `min_counts` without 0, the size of the sample and the seed.
    """
    of_rows = counts[means.tokens]
    min_counts = [at for at in settings.min_counts if at > 0]
    generator = torch.Generator().manual_seed(settings.seed)
    z = torch.randn(means.means.shape, generator=generator)
    chosen = torch.randperm(len(W_dec), generator=generator)[: settings.similarity_rows].sort().values
    everything = torch.arange(len(W_dec))
    for name, rows, features in zip(
        CONTROLS, (means.means, z, means.mean + z @ means.root), (everything, chosen, chosen), strict=True
    ):
        chosen_rows = W_dec[features.to(W_dec.device)]
        yield Control(name, most_similar_rows(chosen_rows, rows, of_rows, min_counts), alive[features])
