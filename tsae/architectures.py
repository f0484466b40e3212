"""Architectures: how pre-activations become activations, and what their training adds to the loss.

An architecture is one class and one row of `ARCHITECTURES`, under the name that `sweep` gives it. All share the rest of an
SAE: W_enc, b_enc, W_dec, b_dec and the table. Each takes residuals x (N, d), less b_dec where that is given, and says which
features are active, and how much; `extra_loss` is what its training adds to the squared error.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from tsae import kernels
from tsae.sweep import ArchitectureName, Point


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

    def rescale_(self, scale: float) -> None:
        """Make the parameters those of an SAE whose residuals are `scale` times as long."""

    def shift_(self, offset: Tensor) -> None:
        """Keep activations as they are when b_enc grows by an offset (F,) that the encoder's products lose."""


class TopK(nn.Module):
    """a = ReLU(TopK(x W_enc^T + b_enc)): k features per token; nothing else has to make them sparse."""

    def __init__(self, point: Point, n_features: int):
        """Take k, and whether a ReLU follows, from the point."""
        super().__init__()
        assert point.k is not None
        self.select = kernels.select_topk(point.k)
        self.relu = point.topk_relu

    def forward(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor | None = None) -> Active:
        """Active features of residuals x (N, d) less b_dec."""
        pre, indices = kernels.encode(x, W_enc, b_enc, self.select, b_dec)
        return Active(pre.relu() if self.relu else pre, indices, pre)

    def extra_loss(self, active: Active, W_dec: Tensor, target: Callable[[], Tensor], penalty: float) -> None:
        """Nothing."""

    def rescale_(self, scale: float) -> None:
        """There is nothing to rescale."""

    def shift_(self, offset: Tensor) -> None:
        """There is nothing to shift: pre-activations stay."""


class ReLU(nn.Module):
    """a = ReLU(x W_enc^T + b_enc), with an L1 penalty: the vanilla SAE.

    Activations are weighted with the length of their decoder row. Otherwise, rows being free to grow, the penalty would be
    escaped by shrinking activations.
    """

    def __init__(self, point: Point, n_features: int):
        """A ReLU has no parameters of its own."""
        super().__init__()

    def forward(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor | None = None) -> Active:
        """Active features of residuals x (N, d) less b_dec."""
        pre, indices = kernels.encode(x, W_enc, b_enc, kernels.select_positive, b_dec)
        return Active(pre, indices, pre)

    def extra_loss(self, active: Active, W_dec: Tensor, target: Callable[[], Tensor], penalty: float) -> Tensor:
        """The L1 penalty."""
        return penalty * _weighted_l1(active.values, active.features, W_dec) / active.indices.n_tokens

    def rescale_(self, scale: float) -> None:
        """There is nothing to rescale."""

    def shift_(self, offset: Tensor) -> None:
        """There is nothing to shift: pre-activations stay."""


class Gated(nn.Module):
    """a = 1[g > 0] * ReLU(exp(r_mag) (g - b_enc) + b_mag) with g = x W_enc^T + b_enc (Rajamanoharan et al., 2024).

    Which features are active is apart from how much, so that the penalty, which is on g, does not shrink the activations. A
    step function has no gradient, so a second reconstruction, from ReLU(g) through a frozen decoder, trains the gate.
    """

    def __init__(self, point: Point, n_features: int):
        """Start with both encoders alike."""
        super().__init__()
        self.r_mag = nn.Parameter(torch.zeros(n_features))
        self.b_mag = nn.Parameter(torch.zeros(n_features))

    def forward(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor | None = None) -> Active:
        """Active features of residuals x (N, d) less b_dec."""
        gate, indices = kernels.encode(x, W_enc, b_enc, kernels.select_positive, b_dec)
        b_gate, r_mag, b_mag = (part.index_select(0, indices.features) for part in (b_enc, self.r_mag, self.b_mag))
        return Active(((gate - b_gate) * r_mag.exp() + b_mag).relu(), indices, gate)

    def extra_loss(self, active: Active, W_dec: Tensor, target: Callable[[], Tensor], penalty: float) -> Tensor:
        """The L1 penalty on the gate, and the reconstruction from the gate alone."""
        frozen = W_dec.detach()
        from_gate = kernels.decode(active.pre, active.indices, frozen)
        # Were the decoder's rows free here, shrinking them would escape the penalty, and r_mag make up for it.
        sparsity = penalty * _weighted_l1(active.pre, active.features, frozen) / active.indices.n_tokens
        return sparsity + (from_gate - target()).square().sum(1).mean()

    def rescale_(self, scale: float) -> None:
        """b_mag has the units of residuals."""
        self.b_mag.data.mul_(scale)

    def shift_(self, offset: Tensor) -> None:
        """Magnitudes are made of the products alone, without b_enc."""
        self.b_mag.data.add_(self.r_mag.data.exp() * offset)


def _weighted_l1(values: Tensor, features: Tensor, W_dec: Tensor) -> Tensor:
    return values @ W_dec.norm(dim=1).index_select(0, features)


ARCHITECTURES: dict[ArchitectureName, type[TopK] | type[ReLU] | type[Gated]] = {
    "topk": TopK,
    "relu": ReLU,
    "gated": Gated,
}
