"""JumpReLU: a learned threshold for every feature."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tsae.compute import kernels
from tsae.profile.point import Point
from tsae.sae.architectures.base import Active, Explained

ABOUT = {
    "class": "JumpReLU",
    "order": 7,
    "sparsity": "l0_penalty",
    "label": "JumpReLU",
    "description": "zero below a learned threshold for each feature, with an L0 penalty",
    "saelens": {"architecture": "jumprelu"},
}
BANDWIDTH = 0.05  # SAELens' value, in units where the mean residual norm is sqrt(d_model)
# Initial thresholds / initial length of W_dec's rows, which is about the spread of pre-activations. SAELens' 0.1 leaves 1000 of
# 2304 features active after the 1093 steps of the embedded budget, whatever the penalty.
THRESHOLD = 2.5


class _Jump(torch.autograd.Function):
    """Activations (M,), and whether each is active (M,), from pre-activations and thresholds (M,).

    Thresholds have the gradient of the expected loss if pre-activations were spread evenly over BANDWIDTH around them.
    """

    @staticmethod
    def forward(ctx: Any, pre: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
        active = (pre > thresholds).to(pre.dtype)
        ctx.save_for_backward(pre, thresholds, active)
        return pre * active, active

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_values: Tensor, grad_active: Tensor) -> tuple[Tensor, Tensor]:
        pre, thresholds, active = ctx.saved_tensors
        near = ((pre - thresholds).abs() < BANDWIDTH / 2).to(pre.dtype) / BANDWIDTH
        return grad_values * active, -near * (thresholds * grad_values + grad_active)


class JumpReLU(nn.Module):
    """a = z 1[z > threshold] with z = x W_enc^T + b_enc (Rajamanoharan et al., 2024).

    The penalty is on the number of active features. Features just below their threshold are chosen in training too, with an
    activation of zero, because they move it.
    """

    def __init__(self, point: Point, n_features: int):
        """Start with one threshold for all features."""
        super().__init__()
        threshold = THRESHOLD * point.initial_decoder_norm
        self.log_threshold = nn.Parameter(torch.full((n_features,), math.log(threshold)))

    def forward(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor | None = None) -> Active:
        """Active features of residuals x (N, d) minus b_dec."""
        lowest = self.log_threshold.detach().exp() - (BANDWIDTH / 2 if self.training else 0)
        pre, indices = kernels.encode(x, W_enc, b_enc, kernels.select_above(lowest), b_dec)
        return Active(self._jump(pre, indices.features)[0], indices, pre)

    def _jump(self, pre: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        values, active = _Jump.apply(pre, self.log_threshold.exp().index_select(0, features))
        return values, active

    def extra_loss(self, active: Active, W_dec: Tensor, explained: Explained, penalty: float) -> Tensor:
        """The L0 penalty."""
        return penalty * self._jump(active.pre, active.features)[1].sum() / active.indices.n_tokens

    def rescale_(self, scale: float) -> None:
        """Thresholds have the units of activations."""
        self.log_threshold.data.add_(math.log(scale))

    def shift_(self, offset: Tensor) -> None:
        """There is nothing to shift: pre-activations stay."""

    def saelens_weights(self, n_features: int) -> dict[str, Tensor]:
        """The thresholds themselves."""
        return {"threshold": self.log_threshold.detach().exp()}
