"""Gated: which features are active is separate from how much."""

import torch
from torch import Tensor, nn

from tsae.compute import kernels
from tsae.profile.point import Point
from tsae.sae.architectures.base import Active, Explained, weighted_l1

ABOUT = {
    "class": "Gated",
    "order": 3,
    "sparsity": "l1",
    "label": "gated",
    "description": "one encoder says which features are active, another how much",
    "saelens": {"architecture": "gated", "b_enc": "b_gate"},
}


class Gated(nn.Module):
    """a = 1[g > 0] * ReLU(exp(r_mag) (g - b_enc) + b_mag) with g = x W_enc^T + b_enc (Rajamanoharan et al., 2024).

    The penalty is on g, which only says which features are active, so it does not shrink the activations. The step function has
    no gradient, so a second reconstruction, from ReLU(g) through a frozen decoder, trains the gate.
    """

    def __init__(self, point: Point, n_features: int):
        """Start with two equal encoders."""
        super().__init__()
        self.r_mag = nn.Parameter(torch.zeros(n_features))
        self.b_mag = nn.Parameter(torch.zeros(n_features))

    def forward(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor | None = None) -> Active:
        """Active features of residuals x (N, d) minus b_dec."""
        gate, indices = kernels.encode(x, W_enc, b_enc, kernels.select_positive, b_dec)
        b_gate, r_mag, b_mag = (part.index_select(0, indices.features) for part in (b_enc, self.r_mag, self.b_mag))
        return Active(((gate - b_gate) * r_mag.exp() + b_mag).relu(), indices, gate)

    def extra_loss(self, active: Active, W_dec: Tensor, explained: Explained, penalty: float) -> Tensor:
        """The L1 penalty on the gate, and the reconstruction from the gate alone."""
        frozen = W_dec.detach()
        from_gate = kernels.decode(active.pre, active.indices, frozen)
        # If the decoder were trained here, its rows could shrink to escape the penalty while r_mag makes up for it.
        sparsity = penalty * weighted_l1(active.pre, active.features, frozen) / active.indices.n_tokens
        return sparsity + (from_gate - explained.target().detach()).square().sum(1).mean()

    def rescale_(self, scale: float) -> None:
        """b_mag has the units of residuals."""
        self.b_mag.data.mul_(scale)

    def shift_(self, offset: Tensor) -> None:
        """Magnitudes use the products without b_enc, so b_mag makes up for the offset."""
        self.b_mag.data.add_(self.r_mag.data.exp() * offset)

    def saelens_weights(self, n_features: int) -> dict[str, Tensor]:
        """Under the same names."""
        return self.state_dict()
