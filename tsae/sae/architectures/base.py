"""What an SAE asks of its architecture, and what architectures share."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from tsae.compute import kernels


class Active(NamedTuple):
    """The M active features of N tokens, token after token."""

    values: Tensor  # (M,) activations; that of a chosen feature may still be zero
    indices: kernels.Indices  # their tokens and features
    pre: Tensor  # (M,) pre-activations, by which the features were chosen

    @property
    def features(self) -> Tensor:
        """The feature of each activation, (M,) int64."""
        return self.indices.features

    @property
    def rows(self) -> Tensor:
        """The token of each activation, (M,) int64."""
        return self.indices.rows


class Architecture(Protocol):
    """What an SAE asks of its architecture."""

    def __call__(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor | None = None) -> Active:
        """Active features of residuals x (N, d) minus b_dec (d,); without b_dec, x is already centred."""

    def extra_loss(self, active: Active, W_dec: Tensor, target: Callable[[], Tensor], penalty: float) -> Tensor | None:
        """What training adds to the squared error, a mean over tokens.

        Args:
            active: the active features of the batch.
            W_dec: (F, d).
            target: returns (N, d), the residual minus b_dec and token-bias, without gradient: what features must reconstruct.
            penalty: coefficient of sparsity at this step.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """The architecture's own parameters by name; most have none."""

    def rescale_(self, scale: float) -> None:
        """Fit the parameters to residuals that are `scale` times as long."""

    def shift_(self, offset: Tensor) -> None:
        """Keep activations the same when b_enc grows by an offset (F,) that x W_enc^T loses."""


def weighted_l1(values: Tensor, features: Tensor, W_dec: Tensor) -> Tensor:
    """Sum of activations (M,) of features (M,), each times the length of its row of W_dec (F, d)."""
    return values @ W_dec.norm(dim=1).index_select(0, features)
