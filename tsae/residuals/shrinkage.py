"""How far means of few residuals are shrunk towards a prior that was made from the same residuals."""

import torch
from torch import Tensor

# Candidates for lambda, in occurrences.
SHRINKAGES = tuple(2.0 ** (step / 2) for step in range(-10, 25))


def best_shrinkage(sums: Tensor, squares: Tensor, counts: Tensor, prior: Tensor, share: Tensor) -> float:
    """The lambda of `SHRINKAGES` with the least squared error of training residuals, each left out of its own prediction.

    Residual x of a group is predicted by (S - x + lambda (p - s x)) / (count - 1 + lambda), with the sum S of the
    group and its prior p - s x. So the error of a group depends on its residuals through S and sum |x|^2 alone.

    Args:
        sums: (U, d) S of each group.
        squares: (U,) sum |x|^2 of each.
        counts: (U,) residuals of each.
        prior: (U, d) p of each.
        share: (U,) s of each.

    Returns:
        1 if there are no residuals.
    """
    seen = counts > 0
    if not seen.any():
        return 1.0
    sums, prior = sums[seen], prior[seen]
    squares, counts, share = squares[seen], counts[seen], share[seen]
    of_sums, of_both, of_prior = (
        (a * b).sum(1, dtype=torch.float64) for a, b in ((sums, sums), (sums, prior), (prior, prior))
    )

    def error(shrinkage: float) -> float:
        others = counts - 1 + shrinkage
        own = 1 + (1 + shrinkage * share) / others
        product = (of_sums + shrinkage * of_both) / others
        square = (of_sums + 2 * shrinkage * of_both + shrinkage**2 * of_prior) / others.square()
        return (own.square() * squares - 2 * own * product + counts * square).sum().item()

    return min(SHRINKAGES, key=error)
