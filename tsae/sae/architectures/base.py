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


class Explained(NamedTuple):
    """What the features of a batch explain, in training."""

    x: Tensor  # (N, d) residuals
    x_hat: Tensor  # (N, d) reconstructions
    b_dec: Tensor  # (d,)
    token_biases: Tensor | None  # (N, d) the tokens' rows of the table; None of a baseline
    pre_activations: Callable[[Tensor], Tensor]  # of chosen features (n,): (N, n)

    def target(self) -> Tensor:
        """What features must reconstruct (N, d): the residual minus b_dec and token-bias."""
        to_explain = self.x - self.b_dec
        return to_explain if self.token_biases is None else to_explain - self.token_biases


class Architecture(Protocol):
    """What an SAE asks of its architecture."""

    training: bool
    """Whether a training step is under way. BatchTopK chooses features otherwise then."""

    def __call__(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor | None = None) -> Active:
        """Active features of residuals x (N, d) minus b_dec (d,); without b_dec, x is already centred."""

    def extra_loss(self, active: Active, W_dec: Tensor, explained: Explained, penalty: float) -> Tensor | None:
        """What training adds to the squared error, a mean over tokens.

        Args:
            active: the active features of the batch.
            W_dec: (F, d).
            explained: what they explain.
            penalty: coefficient of sparsity at this step.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """The architecture's own parameters by name; most have none."""

    def saelens_weights(self, n_features: int) -> dict[str, Tensor]:
        """Its parameters as SAELens names them."""

    def rescale_(self, scale: float) -> None:
        """Fit the parameters to residuals that are `scale` times as long."""

    def shift_(self, offset: Tensor) -> None:
        """Keep activations the same when b_enc grows by an offset (F,) that x W_enc^T loses."""


def weighted_l1(values: Tensor, features: Tensor, W_dec: Tensor) -> Tensor:
    """Sum of activations (M,) of features (M,), each times the length of its row of W_dec (F, d)."""
    return values @ W_dec.norm(dim=1).index_select(0, features)
