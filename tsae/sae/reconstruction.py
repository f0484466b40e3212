"""Errors of reconstructions."""

from typing import NamedTuple

from torch import Tensor


class ReconstructionErrors(NamedTuple):
    """Errors of N tokens, each (N,)."""

    squared_error: Tensor  # |x - x_hat|^2
    squared_norm: Tensor  # |x|^2
    squared_deviation: Tensor  # |x - mean x|^2

    @property
    def nmse(self) -> Tensor:
        """|x - x_hat|^2 / |x|^2 of every token."""
        return self.squared_error / self.squared_norm

    @property
    def nmse_original(self) -> Tensor:
        """The authors' variant, with 1e-4 in the denominator."""
        return self.squared_error / (self.squared_norm + 1e-4)


def reconstruction_errors(x: Tensor, x_hat: Tensor, mean: Tensor | None = None) -> ReconstructionErrors:
    """Errors of reconstructions x_hat of residuals x, both (N, d), in float64 because their sums are compared.

    `mean` (d,) is the mean residual; None: the mean of x.
    """
    mean = x.double().mean(0) if mean is None else mean.double()
    return ReconstructionErrors(
        (x - x_hat).double().square().sum(-1), x.double().square().sum(-1), (x.double() - mean).square().sum(-1)
    )
