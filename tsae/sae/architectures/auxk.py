"""AuxK: a TopK SAE whose dead features learn to explain what the others leave."""

import torch
from torch import Tensor, nn

from tsae.profile.point import Point
from tsae.sae.architectures.base import Active, Explained
from tsae.sae.architectures.topk import TopK

ABOUT = {
    "class": "AuxK",
    "order": 6,
    "sparsity": "k",
    "label": "TopK, AuxK",
    "description": "topk with a loss that lets features that have not fired for 50 000 tokens explain the error",
    "saelens": {"architecture": "topk", "settings": {"rescale_acts_by_decoder_norm": False}},
}
# The authors' coefficient. Theirs are dead after 10 million tokens, more than a small budget has.
COEFFICIENT, DEAD_AFTER = 1 / 32, 50_000


class AuxK(nn.Module):
    """TopK with the auxiliary loss of Gao et al., 2024.

    The d/2 dead features with the largest pre-activations at a token reconstruct its error. With fewer dead features than that
    the loss is as much smaller.
    """

    silent: Tensor

    def __init__(self, point: Point, n_features: int):
        """Take k from the point."""
        super().__init__()
        self.topk = TopK(point, n_features)
        self.register_buffer("silent", torch.zeros(n_features))  # tokens since each feature fired

    def forward(self, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor | None = None) -> Active:
        """Active features of residuals x (N, d) minus b_dec."""
        active: Active = self.topk(x, W_enc, b_enc, b_dec)
        return active

    def extra_loss(self, active: Active, W_dec: Tensor, explained: Explained, penalty: float) -> Tensor | None:
        """Squared error of the dead features' reconstruction of the error; none if no feature is dead."""
        self.silent.add_(active.indices.n_tokens)
        self.silent[active.features[active.values.detach() != 0]] = 0
        dead = (self.silent >= DEAD_AFTER).nonzero().flatten()
        if not len(dead):
            return None
        most = max(1, W_dec.shape[1] // 2)
        best = explained.pre_activations(dead).topk(min(most, len(dead)), dim=-1)
        acts = best.values.new_zeros(active.indices.n_tokens, len(dead)).scatter(-1, best.indices, best.values.relu())
        error = (explained.x - explained.x_hat).detach()
        missed = (acts @ W_dec[dead] - error).square().sum(1).mean()
        return COEFFICIENT * min(1.0, len(dead) / most) * missed

    def rescale_(self, scale: float) -> None:
        """There is nothing to rescale."""

    def shift_(self, offset: Tensor) -> None:
        """There is nothing to shift: pre-activations stay."""

    def saelens_weights(self, n_features: int) -> dict[str, Tensor]:
        """There are none."""
        return {}
