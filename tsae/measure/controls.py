"""What else features resemble: controls for the similarity of features to token-biases (C4, C5).

A feature may resemble some token-bias because the table has learned what the feature says, or because tens of thousands of rows
that lie where residuals lie come close to any direction. Three sets of as many rows tell these apart:

    conditional_mean   the mean training residual of each token: what a token's rows look like without any training of a table
    random             isotropic Gaussian directions: what the number of rows and the width alone give
    gaussian           Gaussian vectors with the mean and the covariance of training residuals: what rows give that know
                       where residuals lie, and no token
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
    """The rows of one control that features resemble most."""

    name: str
    """Which control."""
    similar: dict[int, Similar]
    """min_count -> the most similar row of each of n features, by its place among the tokens seen."""
    alive: Tensor
    """(n,) whether the features fire on held-out tokens."""


def compare_with_controls(
    W_dec: Tensor, alive: Tensor, means: ConditionalMeans, counts: Tensor, settings: Evaluation
) -> Iterator[Control]:
    """Compare features with the rows of each control.

    Row i of a control stands for the i-th token seen in training, and has its count, so that with every `min_count` there are as
    many rows as the tables have. With random rows a seeded sample of `settings.similarity_rows` features is compared: the share
    among them is that of all, within its interval.

    Args:
        W_dec: (F, d) decoder rows.
        alive: (F,) whether they fire on held-out tokens.
        means: conditional means of the layer.
        counts: (V,) how often each token was seen in training.
        settings: the `min_counts`, of which 0 is left out, the size of the sample and the seed.
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
