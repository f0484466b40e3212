"""Principal components of residuals as reconstructions: how much a dense bypass of some rank explains.

They answer which rank explains as much as a table does. A bypass with as many parameters as a table is no yardstick: a
map of full rank has d^2 parameters, far fewer than a table of the vocabulary, and can be the identity.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from tsae.measure.sequences import Sequences
from tsae.measure.sums import DocumentSums
from tsae.residuals.conditional_means import ConditionalMeans

METRICS = {
    "pca_fvu": "FVU of the mean training residual and the `at` leading principal components of training residuals, "
    "as of a dense bypass of that rank; full rank is the identity",
}
PART = 4096  # tokens that are projected together


def ranks(d_model: int) -> Iterator[int]:
    """The powers of two below d_model, ascending."""
    rank = 1
    while rank < d_model:
        yield rank
        rank *= 2


def pca_fvu(sequences: Sequences, means: ConditionalMeans, sums: DocumentSums) -> None:
    """Sum the FVU at kept held-out tokens of the mean and the leading principal components of training residuals.

    `at` is the number of components. Their covariance is that of `conditional_means`, which streams the kept training
    residuals, or a sample of a large cache. Its root has the same eigenvectors.

    Args:
        sequences: held-out sequences.
        means: the mean of training residuals and the root of their covariance.
        sums: where the sums go.
    """
    directions = torch.linalg.eigh(means.root.double())[1].flip(1)
    x, documents = sequences.residuals[sequences.kept], sequences.documents[sequences.kept]
    of_heldout = x.double().mean(0)
    for part, of_part in zip(x.split(PART), documents.split(PART), strict=True):
        squares: Tensor = ((part.double() - means.mean.double()) @ directions).square()
        deviations = (part.double() - of_heldout).square().sum(1)
        for rank in ranks(len(directions)):
            sums.add("pca_fvu", squares[:, rank:].sum(1), deviations, of_part, at=float(rank))
