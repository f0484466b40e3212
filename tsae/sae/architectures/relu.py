"""ReLU with an L1 penalty."""

from torch import Tensor, nn

from tsae.compute import kernels
from tsae.profile.point import Point
from tsae.sae.architectures.base import Active, Explained, weighted_l1

ABOUT = {
    "class": "ReLU",
    "order": 2,
    "sparsity": "l1",
    "label": "ReLU",
    "description": "ReLU with an L1 penalty",
    "saelens": {"architecture": "standard"},
}


class ReLU(nn.Module):
    """a = ReLU(x W_enc^T + b_enc), with an L1 penalty: the vanilla SAE.

    Activations are weighted by the length of their decoder row. Otherwise rows would grow and activations shrink to escape it.
    """

    def __init__(self, point: Point, n_features: int):
        """A ReLU has no parameters of its own."""
        super().__init__()

    def forward(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor | None = None) -> Active:
        """Active features of residuals x (N, d) minus b_dec."""
        pre, indices = kernels.encode(x, W_enc, b_enc, kernels.select_positive, b_dec)
        return Active(pre, indices, pre)

    def extra_loss(self, active: Active, W_dec: Tensor, explained: Explained, penalty: float) -> Tensor:
        """The L1 penalty."""
        return penalty * weighted_l1(active.values, active.features, W_dec) / active.indices.n_tokens

    def rescale_(self, scale: float) -> None:
        """There is nothing to rescale."""

    def shift_(self, offset: Tensor) -> None:
        """There is nothing to shift: pre-activations stay."""

    def saelens_weights(self, n_features: int) -> dict[str, Tensor]:
        """There are none."""
        return {}
