"""The sparse products of an SAE, without a dense (N, F) gradient and without an (M, d) intermediate.

A batch of N tokens has M active features: `features` (M,), token after token, those of token i starting at `offsets[i]`.
Of a training step only the encoder's product is dense. Everything else touches the active features alone, and each of those
products is a sum of weighted rows, which is what an embedding bag computes: the decode sums rows of W_dec per token;
both weight gradients sum rows of a (N, d) matrix per feature, once activations are grouped by feature. Where many features
are active, as in the first steps of a ReLU, one dense product is faster, and is taken.
`dense_encode` and `dense_decode` are the readable twins that the tests compare values and gradients with.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Above this share of active features a dense product beats the sum of rows (measured at N = 512, F = 2304, d = 576).
DENSE_SHARE = 0.1

Select = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Chooses active features from pre-activations (N, F): gives `features` (M,) and `offsets` (N,)."""


def select_topk(k: int) -> Select:
    """The k largest pre-activations of every token."""

    def select(pre: Tensor) -> tuple[Tensor, Tensor]:
        features = pre.topk(k, dim=-1, sorted=False).indices.flatten()
        return features, torch.arange(0, len(features), k, device=pre.device)

    return select


def select_positive(pre: Tensor) -> tuple[Tensor, Tensor]:
    """Every pre-activation above zero."""
    positive = pre > 0
    counts = positive.sum(1)
    # `nonzero` of one dimension and a remainder are several times faster than `nonzero` of two.
    features = positive.flatten().nonzero().squeeze(1).remainder_(pre.shape[1])
    return features, torch.cumsum(counts, 0) - counts


def rows_of(offsets: Tensor, n_active: int) -> Tensor:
    """(M,) int64: the token that each active feature belongs to."""
    counts = torch.diff(offsets, append=offsets.new_tensor([n_active]))
    return torch.arange(len(offsets), device=offsets.device).repeat_interleave(counts)


class Groups(NamedTuple):
    """The active features of a batch in the order of their feature."""

    slots: Tensor  # (M,) int64: place in the order by token
    offsets: Tensor  # (F,) int64: where each feature's activations start


def group_by_feature(features: Tensor, n_features: int) -> Groups:
    """Sort the active features (M,) of a batch by feature."""
    counts = torch.bincount(features, minlength=n_features)
    return Groups(torch.argsort(features, stable=True), torch.cumsum(counts, 0) - counts)


def _is_dense(features: Tensor, n_tokens: int, n_features: int) -> bool:
    return len(features) > DENSE_SHARE * n_tokens * n_features


def _scatter(values: Tensor, features: Tensor, rows: Tensor, n_tokens: int, n_features: int) -> Tensor:
    places = torch.add(features, rows, alpha=n_features)
    return values.new_zeros(n_tokens * n_features).index_add_(0, places, values).view(n_tokens, n_features)


def _sum_tokens_by_feature(matrix: Tensor, weights: Tensor, features: Tensor, rows: Tensor, n_features: int) -> Tensor:
    """(F, d): for each feature the sum over its activations of weight (M,) * row of the token in matrix (N, d)."""
    if _is_dense(features, len(matrix), n_features):
        return _scatter(weights, features, rows, len(matrix), n_features).T @ matrix
    groups = group_by_feature(features, n_features)
    return F.embedding_bag(
        rows.index_select(0, groups.slots),
        matrix,
        groups.offsets,
        mode="sum",
        per_sample_weights=weights.index_select(0, groups.slots),
    )


def _sum_features_by_token(weights: Tensor, features: Tensor, offsets: Tensor, matrix: Tensor) -> Tensor:
    """(N, d): for each token the sum over its active features of weight (M,) * row of the feature in matrix (F, d)."""
    if _is_dense(features, len(offsets), len(matrix)):
        rows = rows_of(offsets, len(features))
        return _scatter(weights, features, rows, len(offsets), len(matrix)) @ matrix
    return F.embedding_bag(features, matrix, offsets, mode="sum", per_sample_weights=weights)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, select: Select) -> tuple[Tensor, Tensor, Tensor]:
        dense = torch.addmm(b_enc, x, W_enc.t())
        features, offsets = select(dense)
        rows = rows_of(offsets, len(features))
        pre = dense.flatten().index_select(0, torch.add(features, rows, alpha=dense.shape[1]))
        ctx.save_for_backward(x, W_enc, features, offsets, rows)
        ctx.mark_non_differentiable(features, offsets)
        return pre, features, offsets

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, W_enc, features, offsets, rows = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = _sum_features_by_token(grad, features, offsets, W_enc) if ctx.needs_input_grad[0] else None
        grad_W_enc = _sum_tokens_by_feature(x, grad, features, rows, len(W_enc))
        grad_b_enc = torch.zeros_like(W_enc[:, 0]).index_add_(0, features, grad)
        return grad_x, grad_W_enc, grad_b_enc, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, features: Tensor, offsets: Tensor, W_dec: Tensor) -> Tensor:
        ctx.save_for_backward(values, features, offsets, W_dec)
        return _sum_features_by_token(values, features, offsets, W_dec)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, features, offsets, W_dec = ctx.saved_tensors
        grad = grad.contiguous()
        rows = rows_of(offsets, len(features))
        grad_values = grad_W_dec = None
        if ctx.needs_input_grad[0]:
            if _is_dense(features, len(grad), len(W_dec)):
                products = grad @ W_dec.T
                grad_values = products.flatten().index_select(0, torch.add(features, rows, alpha=len(W_dec)))
            else:
                grad_values = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                    grad, W_dec, features, offsets, rows, 0
                )
        if ctx.needs_input_grad[3]:
            grad_W_dec = _sum_tokens_by_feature(grad, values, features, rows, len(W_dec))
        return grad_values, None, None, grad_W_dec


def encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, select: Select) -> tuple[Tensor, Tensor, Tensor]:
    """Choose active features by their pre-activations x W_enc^T + b_enc.

    Args:
        x: (N, d) centred residuals.
        W_enc: (F, d).
        b_enc: (F,).
        select: which features are active.

    Returns:
        The active pre-activations (M,), their features (M,) int64, and where each token's start (N,) int64.
    """
    pre, features, offsets = _Encode.apply(x, W_enc, b_enc, select)
    return pre, features, offsets


def decode(values: Tensor, features: Tensor, offsets: Tensor, W_dec: Tensor) -> Tensor:
    """Sum the decoder rows of the active features: (M,), (M,), (N,) and (F, d) give (N, d)."""
    out: Tensor = _Decode.apply(values, features, offsets, W_dec)
    return out


def dense_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, select: Select) -> tuple[Tensor, Tensor, Tensor]:
    """Twin of `encode` whose gradients PyTorch derives through dense tensors."""
    pre = x @ W_enc.T + b_enc
    features, offsets = select(pre.detach())
    return pre[rows_of(offsets, len(features)), features], features, offsets


def dense_decode(values: Tensor, features: Tensor, offsets: Tensor, W_dec: Tensor) -> Tensor:
    """Twin of `decode` through a dense (N, F) matrix of activations."""
    acts = values.new_zeros(len(offsets), len(W_dec))
    return acts.index_put((rows_of(offsets, len(features)), features), values, accumulate=True) @ W_dec
