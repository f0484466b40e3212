"""BatchTopK: k features per token, on average over a batch."""

import torch
from torch import Tensor, nn

from tsae.compute import kernels
from tsae.profile.point import Point
from tsae.sae.architectures.base import Active, Explained

ABOUT = {
    "class": "BatchTopK",
    "order": 4,
    "sparsity": "k",
    "label": "BatchTopK",
    "description": "keep the k N largest positive pre-activations of a batch of N tokens",
    "saelens": {"architecture": "jumprelu"},
}
# The threshold is a mean over so many batches, at most, as in SAELens.
BATCHES = 100


class BatchTopK(nn.Module):
    """In training, the k N largest positive pre-activations of N tokens (Bussmann et al., 2024).

    Otherwise a feature is active above a threshold, the same for all: the mean over training batches of the smallest activation kept.
    """

    threshold: Tensor
    n_batches: Tensor

    def __init__(self, point: Point, n_features: int):
        """Take k from the point."""
        super().__init__()
        assert point.k is not None
        self.select = kernels.select_batchtopk(point.k)
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("n_batches", torch.zeros(()))

    def forward(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor | None = None) -> Active:
        """Active features of residuals x (N, d) minus b_dec."""
        select = self.select if self.training else kernels.select_above(self.threshold)
        pre, indices = kernels.encode(x, W_enc, b_enc, select, b_dec)
        if self.training and len(pre):
            self.n_batches.add_(1)
            self.threshold.lerp_(pre.detach().min().to(self.threshold.dtype), 1 / self.n_batches.clamp(max=BATCHES))
        return Active(pre, indices, pre)

    def extra_loss(self, active: Active, W_dec: Tensor, explained: Explained, penalty: float) -> None:
        """Nothing."""

    def rescale_(self, scale: float) -> None:
        """The threshold has the units of activations."""
        self.threshold.mul_(scale)

    def shift_(self, offset: Tensor) -> None:
        """There is nothing to shift: pre-activations stay."""

    def saelens_weights(self, n_features: int) -> dict[str, Tensor]:
        """A threshold for each feature."""
        return {"threshold": self.threshold.repeat(n_features)}
