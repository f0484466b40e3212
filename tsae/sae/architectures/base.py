"""What an SAE asks of its architecture, and what architectures share.

Each takes residuals x (N, d), less b_dec where that is given, and says which features are active, and how much; `extra_loss` is what
its training adds to the squared error.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from tsae.compute import kernels


class Active(NamedTuple):
    """The M active features of N tokens, token after token."""

    values: Tensor  # (M,) activations; a feature that was chosen may still be zero
    indices: kernels.Indices  # which they are
    pre: Tensor  # (M,) pre-activations by which the features were chosen

    @property
    def features(self) -> Tensor:
        """(M,) int64: the feature of each activation."""
        return self.indices.features

    @property
    def rows(self) -> Tensor:
        """(M,) int64: the token of each activation."""
        return self.indices.rows


class Architecture(Protocol):
    """What an SAE asks of its architecture."""

    def __call__(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor | None = None) -> Active:
        """Active features of residuals x (N, d) less b_dec (d,); without b_dec, x is centred already."""

    def extra_loss(self, active: Active, W_dec: Tensor, target: Callable[[], Tensor], penalty: float) -> Tensor | None:
        """What training adds to the squared error, a mean over tokens.

        Args:
            active: the active features of the batch.
            W_dec: (F, d).
            target: gives (N, d), what the features are to reconstruct: the residual less b_dec and token-bias, without
                gradient.
            penalty: coefficient of sparsity at this step.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """The parameters of its own by name, none of them for most."""

    def rescale_(self, scale: float) -> None:
        """Make the parameters those of an SAE whose residuals are `scale` times as long."""

    def shift_(self, offset: Tensor) -> None:
        """Keep activations as they are when b_enc grows by an offset (F,) that the encoder's products lose."""


def weighted_l1(values: Tensor, features: Tensor, W_dec: Tensor) -> Tensor:
    """Sum of activations (M,) of features (M,), each times the length of its row of W_dec (F, d): a number."""
    return values @ W_dec.norm(dim=1).index_select(0, features)
