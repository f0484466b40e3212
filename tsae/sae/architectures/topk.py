"""TopK: k features per token."""

from torch import Tensor, nn

from tsae.compute import kernels
from tsae.profile.point import Point
from tsae.sae.architectures.base import Active, Explained

ABOUT = {
    "class": "TopK",
    "order": 1,
    "sparsity": "k",
    "label": "TopK",
    "description": "keep the k largest pre-activations of a token",
    "saelens": {"architecture": "topk", "settings": {"rescale_acts_by_decoder_norm": False}},
}


class TopK(nn.Module):
    """a = ReLU(TopK(x W_enc^T + b_enc)): k features per token, without a penalty."""

    def __init__(self, point: Point, n_features: int):
        """Take k and whether a ReLU follows from the point."""
        super().__init__()
        assert point.k is not None
        self.select = kernels.SelectTopK(point.k)
        self.relu = point.topk_relu

    def forward(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor | None = None) -> Active:
        """Active features of residuals x (N, d) minus b_dec."""
        pre, indices = kernels.encode(x, W_enc, b_enc, self.select, b_dec)
        return Active(pre.relu() if self.relu else pre, indices, pre)

    def extra_loss(self, active: Active, W_dec: Tensor, explained: Explained, penalty: float) -> None:
        """Nothing."""

    def rescale_(self, scale: float) -> None:
        """There is nothing to rescale."""

    def shift_(self, offset: Tensor) -> None:
        """There is nothing to shift: pre-activations stay."""

    def saelens_weights(self, n_features: int) -> dict[str, Tensor]:
        """There are none."""
        return {}
