"""Matryoshka: a BatchTopK SAE whose first features reconstruct by themselves too."""

import torch
from torch import Tensor, nn

from tsae.compute import kernels
from tsae.profile.point import Point
from tsae.sae.architectures.base import Active, Explained
from tsae.sae.architectures.batchtopk import BatchTopK

ABOUT = {
    "class": "Matryoshka",
    "order": 5,
    "sparsity": "k",
    "label": "Matryoshka",
    "description": "batchtopk whose first 1/16, 1/8, 1/4 and 1/2 of the features must reconstruct too",
    "saelens": {"architecture": "jumprelu"},
}
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)


class Matryoshka(nn.Module):
    """BatchTopK with nested reconstructions (Bussmann et al., 2025).

    The loss is the sum of the squared errors of all features, and of the first features up to each of four widths.
    """

    def __init__(self, point: Point, n_features: int):
        """Take k from the point."""
        super().__init__()
        self.batchtopk = BatchTopK(point, n_features)
        self.widths = sorted({max(1, round(share * n_features)) for share in SHARES} - {n_features})

    def forward(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor | None = None) -> Active:
        """Active features of residuals x (N, d) minus b_dec."""
        active: Active = self.batchtopk(x, W_enc, b_enc, b_dec)
        return active

    def extra_loss(self, active: Active, W_dec: Tensor, explained: Explained, penalty: float) -> Tensor:
        """Squared errors of the nested reconstructions, with gradients for all that these use."""
        target, errors = explained.target(), []
        for width in self.widths:
            chosen = active.features < width
            x_hat = kernels.decode(active.values[chosen], active.indices.where(chosen), W_dec)
            errors.append((x_hat - target).square().sum(1).mean())
        return torch.stack(errors).sum()

    def rescale_(self, scale: float) -> None:
        """As of BatchTopK."""
        self.batchtopk.rescale_(scale)

    def shift_(self, offset: Tensor) -> None:
        """There is nothing to shift: pre-activations stay."""

    def saelens_weights(self, n_features: int) -> dict[str, Tensor]:
        """As of BatchTopK."""
        return self.batchtopk.saelens_weights(n_features)
