"""The sparse products of an SAE, without a dense (N, F) gradient and without an (M, d) intermediate.

A batch of N tokens has M active features: `features` (M,) by token, where token i's start at `offsets[i]`.

In a training step only the encoder's product is dense. The others touch only active features. Each is a sum of
weighted rows, as an embedding bag computes it: the decode sums rows of W_dec per token; both weight gradients sum rows
of a (N, d) matrix per feature, after activations are grouped by feature. If many features are active, as in a ReLU's
first steps, a dense product is faster and used instead.

On a CPU `loops.py` chooses and groups active features, elsewhere PyTorch's operators do. `dense_encode` and
`dense_decode` are the readable twins that tests compare values and gradients with.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tsae.compute import loops, narrow
from tsae.compute.products import product

# Above this share of active features a dense product beats the sum of rows (measured at N = 512, F = 2304, d = 576).
DENSE_SHARE = 0.1
# Most pre-activations that are computed at a time; only an evaluation of many tokens has more.
BLOCK = 2**26

Select = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Chooses active features from a product (N, F) and a bias (F,): returns `features` (M,) and `offsets` (N,).

On a CPU their sum is never written to memory, which would take longer than choosing.
"""


def _looped(x: Tensor) -> bool:
    """Whether `loops` can read a tensor."""
    return x.is_cpu and x.dtype in (torch.int64, torch.float32, torch.float64)


@dataclass(frozen=True)
class SelectTopK:
    """The k largest pre-activations of every token."""

    k: int

    def __call__(self, products: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Choose from a product (N, F)."""
        if _looped(products):
            arrays = products.detach().numpy(), bias.detach().numpy()
            features = torch.from_numpy(loops.largest(*arrays, self.k, torch.get_num_threads()))
        else:
            features = (products + bias).topk(self.k, dim=-1, sorted=False).indices
        return features.flatten(), self._offsets(features)

    def without_product(self, x: Tensor, W_enc: Tensor, b_enc: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Choose from x (N, d) itself, if that is faster: pre-activations (M,), features and offsets."""
        found = narrow.largest(x, W_enc, b_enc, self.k) if narrow.pays(x, W_enc, self.k) else None
        if found is None:
            return None
        features, values = found
        return values.flatten(), features.flatten(), self._offsets(features)

    def _offsets(self, features: Tensor) -> Tensor:
        return torch.arange(0, features.numel(), self.k, device=features.device)


def select_positive(products: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Every pre-activation above zero."""
    if _looped(products):
        arrays = products.detach().numpy(), bias.detach().numpy()
        features, offsets = map(torch.from_numpy, loops.positive(*arrays, torch.get_num_threads()))
        return features, offsets
    rows, features = (products + bias > 0).nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(products))
    # Contiguous: `features` is a column of a matrix, and the gradient of an embedding bag ignores its stride.
    return features.contiguous(), torch.cumsum(counts, 0) - counts


def select_above(threshold: Tensor) -> Select:
    """Every pre-activation above a threshold, of all features () or of each (F,)."""

    def select(products: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return select_positive(products, bias.detach() - threshold.to(bias.dtype))

    return select


def select_batchtopk(k: int) -> Select:
    """The k N largest of the positive pre-activations of N tokens."""

    def select(products: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        pre = (products + bias).detach().flatten()
        best = pre.topk(min(k * len(products), len(pre)), sorted=False)
        places = best.indices[best.values > 0].sort().values
        counts = torch.bincount(places // len(bias), minlength=len(products))
        return places % len(bias), torch.cumsum(counts, 0) - counts

    return select


class Groups(NamedTuple):
    """The active features of a batch, sorted by feature."""

    slots: Tensor  # (M,) int64: place in the order by token
    offsets: Tensor  # (F,) int64: where each feature's activations start
    rows: Tensor  # (M,) int64: the token of each


class Indices:
    """Which M of F features are active at N tokens, by token.

    Properties are computed once, when first used: a training step needs them several times.
    """

    def __init__(self, features: Tensor, offsets: Tensor, n_features: int):
        """Take the features (M,) int64, and the offset of each token in these (N,) int64."""
        self.features, self.offsets, self.n_features = features, offsets, n_features

    def __len__(self) -> int:
        """M."""
        return len(self.features)

    @property
    def n_tokens(self) -> int:
        """N."""
        return len(self.offsets)

    @property
    def dense(self) -> bool:
        """Whether a dense product is faster than sums of rows."""
        return len(self) > DENSE_SHARE * self.n_tokens * self.n_features

    def where(self, chosen: Tensor) -> "Indices":
        """Those of the active features that a mask (M,) chooses."""
        counts = torch.bincount(self.rows[chosen], minlength=self.n_tokens)
        return Indices(self.features[chosen], torch.cumsum(counts, 0) - counts, self.n_features)

    @cached_property
    def rows(self) -> Tensor:
        """(M,) int64: the token of each active feature."""
        counts = torch.diff(self.offsets, append=self.offsets.new_full((1,), len(self)))
        return torch.arange(self.n_tokens, device=self.offsets.device).repeat_interleave(counts)

    @cached_property
    def places(self) -> Tensor:
        """(M,) int64: index of each active feature in a flattened (N, F) matrix."""
        return torch.add(self.features, self.rows, alpha=self.n_features)

    @cached_property
    def groups(self) -> Groups:
        """The active features sorted by feature."""
        if _looped(self.features):
            slots, offsets = map(torch.from_numpy, loops.group(self.features.numpy(), self.n_features))
        else:
            counts = torch.bincount(self.features, minlength=self.n_features)
            slots, offsets = torch.argsort(self.features, stable=True), torch.cumsum(counts, 0) - counts
        return Groups(slots, offsets, self.rows.index_select(0, slots))


def _scatter(values: Tensor, indices: Indices) -> Tensor:
    shape = indices.n_tokens, indices.n_features
    return values.new_zeros(math.prod(shape)).index_add_(0, indices.places, values).view(shape)


def _sum_tokens_by_feature(matrix: Tensor, weights: Tensor, indices: Indices) -> Tensor:
    """(F, d): per feature, the sum over its activations of weight (M,) * the token's row of matrix (N, d)."""
    if indices.dense:
        return product(_scatter(weights, indices).T, matrix.T)
    groups = indices.groups
    per_sample_weights = weights.index_select(0, groups.slots)
    return F.embedding_bag(groups.rows, matrix, groups.offsets, mode="sum", per_sample_weights=per_sample_weights)


def _sum_features_by_token(weights: Tensor, indices: Indices, matrix: Tensor) -> Tensor:
    """(N, d): per token, the sum over its active features of weight (M,) * the feature's row of matrix (F, d)."""
    if indices.dense:
        return product(_scatter(weights, indices), matrix.T)
    return F.embedding_bag(indices.features, matrix, indices.offsets, mode="sum", per_sample_weights=weights)


def _choose(x: Tensor, W_enc: Tensor, b_enc: Tensor, select: Select) -> tuple[Tensor, Indices]:
    """The active pre-activations (M,), and which they are."""
    if isinstance(select, SelectTopK) and (found := select.without_product(x, W_enc, b_enc)) is not None:
        pre, features, offsets = found
        return pre, Indices(features, offsets, len(W_enc))
    parts, of_parts, offsets_of_parts, n_active = [], [], [], 0
    for block in x.split(max(1, BLOCK // len(W_enc))):
        products = product(block, W_enc)
        chosen = Indices(*select(products, b_enc), len(W_enc))
        pre = products.flatten().index_select(0, chosen.places) + b_enc.index_select(0, chosen.features)
        parts.append(pre)
        of_parts.append(chosen.features)
        offsets_of_parts.append(chosen.offsets + n_active)
        n_active += len(chosen)
    if len(parts) == 1:
        return pre, chosen
    return torch.cat(parts), Indices(torch.cat(of_parts), torch.cat(offsets_of_parts), len(W_enc))


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor | None, select: Select, chosen: list[Indices]
    ) -> Tensor:
        centred = x if b_dec is None else x - b_dec
        pre, ctx.indices = _choose(centred, W_enc, b_enc, select)
        chosen.append(ctx.indices)
        ctx.save_for_backward(centred, W_enc)
        return pre

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        centred, W_enc = ctx.saved_tensors
        for_x, for_W_enc, for_b_enc, for_b_dec, *_ = ctx.needs_input_grad
        grad = grad.contiguous()
        grad_x = grad_W_enc = grad_b_enc = grad_b_dec = None
        if for_x:
            grad_x = _sum_features_by_token(grad, ctx.indices, W_enc)
        if for_W_enc:
            grad_W_enc = _sum_tokens_by_feature(centred, grad, ctx.indices)
        if for_b_enc or for_b_dec:
            grad_b_enc = torch.zeros_like(W_enc[:, 0]).index_add_(0, ctx.indices.features, grad)
        if for_b_dec:
            # b_dec needs only the sum of all tokens' gradients, a single vector product.
            grad_b_dec = -(grad_b_enc @ W_enc)
        return grad_x, grad_W_enc, grad_b_enc, grad_b_dec, None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Indices, W_dec: Tensor) -> Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.indices = indices
        return _sum_features_by_token(values, indices, W_dec)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (values, W_dec), indices = ctx.saved_tensors, ctx.indices
        grad = grad.contiguous()
        grad_values = grad_W_dec = None
        if ctx.needs_input_grad[0]:
            if indices.dense:
                grad_values = product(grad, W_dec).flatten().index_select(0, indices.places)
            else:
                grad_values = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                    grad, W_dec, indices.features, indices.offsets, indices.rows, 0
                )
        if ctx.needs_input_grad[2]:
            grad_W_dec = _sum_tokens_by_feature(grad, values, indices)
        return grad_values, None, grad_W_dec


def encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, select: Select, b_dec: Tensor | None = None
) -> tuple[Tensor, Indices]:
    """Choose active features by their pre-activations (x - b_dec) W_enc^T + b_enc.

    Args:
        x: (N, d) residuals.
        W_enc: (F, d).
        b_enc: (F,).
        select: which features are active.
        b_dec: (d,); None if x is centred already.

    Returns:
        The active pre-activations (M,), and which they are.
    """
    chosen: list[Indices] = []
    pre: Tensor = _Encode.apply(x, W_enc, b_enc, b_dec, select, chosen)
    return pre, chosen[0]


def decode(values: Tensor, indices: Indices, W_dec: Tensor) -> Tensor:
    """Sum the decoder rows of the active features: activations (M,) and W_dec (F, d) give (N, d)."""
    out: Tensor = _Decode.apply(values, indices, W_dec)
    return out


def dense_encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, select: Select, b_dec: Tensor | None = None
) -> tuple[Tensor, Indices]:
    """Twin of `encode` whose gradients PyTorch derives through dense tensors."""
    products = (x if b_dec is None else x - b_dec) @ W_enc.T
    indices = Indices(*select(products.detach(), b_enc.detach()), len(W_enc))
    return (products + b_enc)[indices.rows, indices.features], indices


def dense_decode(values: Tensor, indices: Indices, W_dec: Tensor) -> Tensor:
    """Twin of `decode` through a dense (N, F) matrix of activations."""
    acts = values.new_zeros(indices.n_tokens, len(W_dec))
    return acts.index_put((indices.rows, indices.features), values, accumulate=True) @ W_dec
