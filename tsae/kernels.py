"""The sparse products of an SAE, without a dense (N, F) gradient and without an (M, d) intermediate.

A batch of N tokens has M active features: `features` (M,), token after token, those of token i starting at `offsets[i]`.
Of a training step only the encoder's product is dense. Everything else touches the active features alone, and each of those
products is a sum of weighted rows, which is what an embedding bag computes: the decode sums rows of W_dec per token;
both weight gradients sum rows of a (N, d) matrix per feature, once activations are grouped by feature. Where many features
are active, as in the first steps of a ReLU, one dense product is faster, and is taken.
What chooses and groups active features are loops of `loops.py` on a CPU, and PyTorch's operators elsewhere.
`dense_encode` and `dense_decode` are the readable twins that the tests compare values and gradients with.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tsae import loops

# Above this share of active features a dense product beats the sum of rows (measured at N = 512, F = 2304, d = 576).
DENSE_SHARE = 0.1
# So many pre-activations are computed at a time; only an evaluation of many tokens at once has more.
BLOCK = 2**26

Select = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Chooses active features from pre-activations, given as a product (N, F) and a bias (F,): `features` (M,), `offsets` (N,).

The sum of both is never written to memory on a CPU, where that takes longer than choosing.
"""


def _looped(x: Tensor) -> bool:
    """Whether the loops can read a tensor."""
    return x.is_cpu and x.dtype in (torch.int64, torch.float32, torch.float64)


def select_topk(k: int) -> Select:
    """The k largest pre-activations of every token."""

    def select(products: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        if _looped(products):
            arrays = products.detach().numpy(), bias.detach().numpy()
            features = torch.from_numpy(loops.largest(*arrays, k, torch.get_num_threads()))
        else:
            features = (products + bias).topk(k, dim=-1, sorted=False).indices
        return features.flatten(), torch.arange(0, features.numel(), k, device=products.device)

    return select


def select_positive(products: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Every pre-activation above zero."""
    if _looped(products):
        arrays = products.detach().numpy(), bias.detach().numpy()
        features, offsets = map(torch.from_numpy, loops.positive(*arrays, torch.get_num_threads()))
        return features, offsets
    rows, features = (products + bias > 0).nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(products))
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
    if _looped(features):
        return Groups(*map(torch.from_numpy, loops.group(features.numpy(), n_features)))
    counts = torch.bincount(features, minlength=n_features)
    return Groups(torch.argsort(features, stable=True), torch.cumsum(counts, 0) - counts)


def _is_dense(features: Tensor, n_tokens: int, n_features: int) -> bool:
    return len(features) > DENSE_SHARE * n_tokens * n_features


def _places(features: Tensor, rows: Tensor, n_features: int) -> Tensor:
    """(M,) int64: where active features lie in a flattened (N, F) matrix."""
    return torch.add(features, rows, alpha=n_features)


def _scatter(values: Tensor, features: Tensor, rows: Tensor, n_tokens: int, n_features: int) -> Tensor:
    places = _places(features, rows, n_features)
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


def _encode_block(centred: Tensor, W_enc: Tensor, b_enc: Tensor, select: Select) -> tuple[Tensor, Tensor, Tensor]:
    products = centred @ W_enc.t()
    features, offsets = select(products, b_enc)
    places = _places(features, rows_of(offsets, len(features)), len(W_enc))
    return products.flatten().index_select(0, places) + b_enc.index_select(0, features), features, offsets


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor | None, select: Select
    ) -> tuple[Tensor, Tensor, Tensor]:
        centred = x if b_dec is None else x - b_dec
        blocks = [_encode_block(part, W_enc, b_enc, select) for part in centred.split(max(1, BLOCK // len(W_enc)))]
        pre, features, offsets = blocks[0]
        for block in blocks[1:]:
            offsets = torch.cat([offsets, block[2] + len(features)])
            pre, features = torch.cat([pre, block[0]]), torch.cat([features, block[1]])
        ctx.save_for_backward(centred, W_enc, features, offsets)
        ctx.mark_non_differentiable(features, offsets)
        return pre, features, offsets

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        centred, W_enc, features, offsets = ctx.saved_tensors
        for_x, for_W_enc, for_b_enc, for_b_dec, _ = ctx.needs_input_grad
        grad = grad.contiguous()
        grad_x = grad_W_enc = grad_b_enc = grad_b_dec = None
        if for_x:
            grad_x = _sum_features_by_token(grad, features, offsets, W_enc)
        if for_W_enc:
            grad_W_enc = _sum_tokens_by_feature(centred, grad, features, rows_of(offsets, len(features)), len(W_enc))
        if for_b_enc or for_b_dec:
            grad_b_enc = torch.zeros_like(W_enc[:, 0]).index_add_(0, features, grad)
        if for_b_dec:
            # Of the gradients of all tokens b_dec needs the sum alone, which is one product of a vector.
            grad_b_dec = -(grad_b_enc @ W_enc)
        return grad_x, grad_W_enc, grad_b_enc, grad_b_dec, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, features: Tensor, offsets: Tensor, W_dec: Tensor) -> Tensor:
        ctx.save_for_backward(values, features, offsets, W_dec)
        return _sum_features_by_token(values, features, offsets, W_dec)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, features, offsets, W_dec = ctx.saved_tensors
        grad = grad.contiguous()
        rows = rows_of(offsets, len(features))
        grad_values = grad_W_dec = None
        if ctx.needs_input_grad[0]:
            if _is_dense(features, len(grad), len(W_dec)):
                products = grad @ W_dec.T
                grad_values = products.flatten().index_select(0, _places(features, rows, len(W_dec)))
            else:
                grad_values = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                    grad, W_dec, features, offsets, rows, 0
                )
        if ctx.needs_input_grad[3]:
            grad_W_dec = _sum_tokens_by_feature(grad, values, features, rows, len(W_dec))
        return grad_values, None, None, grad_W_dec


def encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, select: Select, b_dec: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose active features by their pre-activations (x - b_dec) W_enc^T + b_enc.

    Args:
        x: (N, d) residuals.
        W_enc: (F, d).
        b_enc: (F,).
        select: which features are active.
        b_dec: (d,); None if x is centred already.

    Returns:
        The active pre-activations (M,), their features (M,) int64, and where each token's start (N,) int64.
    """
    pre, features, offsets = _Encode.apply(x, W_enc, b_enc, b_dec, select)
    return pre, features, offsets


def decode(values: Tensor, features: Tensor, offsets: Tensor, W_dec: Tensor) -> Tensor:
    """Sum the decoder rows of the active features: (M,), (M,), (N,) and (F, d) give (N, d)."""
    out: Tensor = _Decode.apply(values, features, offsets, W_dec)
    return out


def dense_encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, select: Select, b_dec: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Twin of `encode` whose gradients PyTorch derives through dense tensors."""
    products = (x if b_dec is None else x - b_dec) @ W_enc.T
    features, offsets = select(products.detach(), b_enc.detach())
    return (products + b_enc)[rows_of(offsets, len(features)), features], features, offsets


def dense_decode(values: Tensor, features: Tensor, offsets: Tensor, W_dec: Tensor) -> Tensor:
    """Twin of `decode` through a dense (N, F) matrix of activations."""
    acts = values.new_zeros(len(offsets), len(W_dec))
    return acts.index_put((rows_of(offsets, len(features)), features), values, accumulate=True) @ W_dec
