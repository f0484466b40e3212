"""Errors of reconstructions."""

from typing import NamedTuple

from torch import Tensor


class ReconstructionErrors(NamedTuple):
    """Errors of N tokens, each (N,)."""

    squared_error: Tensor  # |x - x_hat|^2
    squared_norm: Tensor  # |x|^2
    squared_deviation: Tensor  # |x - mean x|^2
    squared_norm_hat: Tensor  # |x_hat|^2

    @property
    def nmse(self) -> Tensor:
        """|x - x_hat|^2 / |x|^2 of every token."""
        return self.squared_error / self.squared_norm

    @property
    def nmse_original(self) -> Tensor:
        """The authors' variant, with 1e-4 in the denominator."""
        return self.squared_error / (self.squared_norm + 1e-4)

    @property
    def product(self) -> Tensor:
        """The product x . x_hat of every token."""
        return (self.squared_norm + self.squared_norm_hat - self.squared_error) / 2

    @property
    def cosine(self) -> Tensor:
        """Cosine similarity of x and x_hat of every token; 0 where x_hat is zero."""
        cosine: Tensor = self.product / (self.squared_norm * self.squared_norm_hat).sqrt()
        return cosine.nan_to_num(0.0)

    @property
    def l2_ratio(self) -> Tensor:
        """|x_hat| / |x| of every token."""
        return (self.squared_norm_hat / self.squared_norm).sqrt()


def reconstruction_errors(x: Tensor, x_hat: Tensor, mean: Tensor | None = None) -> ReconstructionErrors:
    """Errors of reconstructions x_hat of residuals x, both (N, d), in float64 because their sums are compared.

    `mean` (d,) is the mean residual; None: the mean of x.
    """
    mean = x.double().mean(0) if mean is None else mean.double()
    return ReconstructionErrors(
        (x - x_hat).double().square().sum(-1),
        x.double().square().sum(-1),
        (x.double() - mean).square().sum(-1),
        x_hat.double().square().sum(-1),
    )
