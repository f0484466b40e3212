"""The sparse products of a TopK SAE, without a dense (N, F) gradient and without an (N*k, d) intermediate.

Of a training step only the encoder's product is dense. Everything else touches k features per token, and each of those
products is a sum of weighted rows, which is what an embedding bag computes: the decode sums rows of W_dec per token;
both weight gradients sum rows of a (N, d) matrix per feature, once activations are grouped by feature.
`dense_encode_topk` and `dense_decode` are the readable twins that the tests compare values and gradients with.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Groups(NamedTuple):
    """The N*k activations of a batch in the order of their features."""

    slots: Tensor  # (N*k,) int64: place of the activation in the flattened (N, k)
    tokens: Tensor  # (N*k,) int64: row of the batch it belongs to
    offsets: Tensor  # (F,) int64: where each feature's activations start


def group_by_feature(indices: Tensor, n_features: int) -> Groups:
    """Sort the activations of a batch by feature.

    Args:
        indices: (N, k) int64, the active features of each token.
        n_features: F.
    """
    flat = indices.flatten()
    slots = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat, minlength=n_features)
    return Groups(slots, slots // indices.shape[1], torch.cumsum(counts, 0) - counts)


def _sum_rows_by_feature(rows: Tensor, weights: Tensor, groups: Groups) -> Tensor:
    """(F, d): for each feature the sum over its activations of weight * row of the token; rows (N, d), weights (N, k)."""
    ordered = weights.flatten().index_select(0, groups.slots)
    return F.embedding_bag(groups.tokens, rows, groups.offsets, mode="sum", per_sample_weights=ordered)


class _EncodeTopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, relu: bool) -> tuple[Tensor, Tensor]:
        values, indices = torch.addmm(b_enc, x, W_enc.t()).topk(k, dim=-1, sorted=False)
        if relu:
            values.relu_()
        ctx.relu = relu
        ctx.save_for_backward(x, W_enc, values, indices)
        ctx.mark_non_differentiable(indices)
        return values, indices

    @staticmethod
    def backward(ctx: Any, grad_values: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, W_enc, values, indices = ctx.saved_tensors
        grad = grad_values * (values > 0) if ctx.relu else grad_values.contiguous()
        groups = group_by_feature(indices, W_enc.shape[0])
        grad_x = (
            F.embedding_bag(indices, W_enc, mode="sum", per_sample_weights=grad) if ctx.needs_input_grad[0] else None
        )
        grad_W_enc = _sum_rows_by_feature(x, grad, groups)
        grad_b_enc = torch.zeros_like(W_enc[:, 0]).index_add_(0, indices.flatten(), grad.flatten())
        return grad_x, grad_W_enc, grad_b_enc, None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, W_dec: Tensor) -> Tensor:
        ctx.save_for_backward(values, indices, W_dec)
        return F.embedding_bag(indices, W_dec, mode="sum", per_sample_weights=values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, indices, W_dec = ctx.saved_tensors
        n, k = indices.shape
        grad = grad.contiguous()
        starts = torch.arange(0, n * k, k, device=indices.device)
        token_of_slot = torch.arange(n, device=indices.device).repeat_interleave(k)
        grad_values = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            grad, W_dec, indices.flatten(), starts, token_of_slot, 0
        ).view(n, k)
        grad_W_dec = _sum_rows_by_feature(grad, values, group_by_feature(indices, W_dec.shape[0]))
        return grad_values, None, grad_W_dec


def encode_topk(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, relu: bool = True) -> tuple[Tensor, Tensor]:
    """Keep the k largest pre-activations x W_enc^T + b_enc of every token.

    Args:
        x: (N, d) centred residuals.
        W_enc: (F, d).
        b_enc: (F,).
        k: active features per token.
        relu: set kept pre-activations below zero to zero.

    Returns:
        values (N, k) and the features they belong to (N, k) int64, in no particular order.
    """
    values, indices = _EncodeTopK.apply(x, W_enc, b_enc, k, relu)
    return values, indices


def decode(values: Tensor, indices: Tensor, W_dec: Tensor) -> Tensor:
    """Sum the decoder rows of the active features: (N, k), (N, k) and (F, d) give (N, d)."""
    out: Tensor = _Decode.apply(values, indices, W_dec)
    return out


def dense_encode_topk(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, relu: bool = True) -> tuple[Tensor, Tensor]:
    """Twin of `encode_topk` whose gradients PyTorch derives through dense tensors."""
    values, indices = (x @ W_enc.T + b_enc).topk(k, dim=-1, sorted=False)
    return (values.relu() if relu else values), indices


def dense_decode(values: Tensor, indices: Tensor, W_dec: Tensor) -> Tensor:
    """Twin of `decode` through a dense (N, F) matrix of activations."""
    return torch.zeros(len(values), len(W_dec), dtype=values.dtype).scatter_add(1, indices, values) @ W_dec
