"""Rows of a matrix written as 8-bit integers, so that the error of their inner products has a bound.

A row r of x or W_enc is written as s (q - u) with integers q, a scale s and a dither u, which is the same for all rows of a matrix: q is
s^-1 r + u, rounded. Then the error of each coordinate is uniform within s/2, independent of the row and of the other coordinates
(Schuchman, 1964). So x . w - x_hat . w_hat = (x - x_hat) . w + x_hat . (w - w_hat) is sub-Gaussian: the first term has variance
s_x^2 |w|^2 / 12, the second, for whatever x_hat the first dither made, at most s_w^2 N_x^2 / 12, where N_x = |x| + s_x sqrt(d) / 2 is the
longest that x_hat can be. Hence

    |x . w - x_hat . w_hat| < RADIUS sqrt(s_x^2 |w|^2 + s_w^2 N_x^2)

but for one pair in 10^17.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from tsae.compute.loops import OPTIONS, Array, over_rows

# 9 standard deviations of a uniform error: 2 exp(-81/2) is 5e-18. A hundredth more is for rounding of float32 itself.
RADIUS = np.float32(1.01 * 9 / math.sqrt(12))
# Largest quotient of a row and its scale: with the dither it stays in 8 bits.
TOP = np.float32(126.5)
ZERO, ONE, SMALLEST = np.float32(0), np.float32(1), np.float32(1e-18)
# The order of sums is free, so that the compiler can vectorise them. It is the same in every run.
SUMS: dict[str, Any] = OPTIONS | {"fastmath": {"contract", "reassoc"}}


class Rows(NamedTuple):
    """The rows of a matrix (n, d) as scales times integers less a dither."""

    integers: Array  # (n, d) int8
    scales: Array  # (n,)
    norms: Array  # (n,) the longest that what is written of each row can be
    dithered: Array  # (n,) inner product of the integers with the dither of the other matrix


def columns_of(x: Tensor, W: Tensor) -> Tensor:
    """Factors (d,) to divide the columns of x and multiply those of W by, after which fewer features are near the k-th largest.

    Of the factors tried on residuals of a model, the root of the mean square of x over the largest of W did best.
    """
    some_x, some_W = (matrix[:: max(1, len(matrix) // 256)] for matrix in (x, W))
    sizes = [size.clamp(1e-15, 1e15) for size in (some_x.square().mean(0).sqrt(), some_W.abs().amax(0))]
    return torch.nan_to_num(sizes[0] / sizes[1], 1.0).sqrt()


def bounds_of(tokens: Rows, features: Rows) -> tuple[Array, Array]:
    """Bounds on errors, as three numbers of each token (N, 3) and two of each feature (F, 2): see `narrow`.

    For any p > 0 a root sqrt(q) is at most (q / p + p) / 2. Here p is that root at a feature of typical length and scale.
    """
    typical = [
        max(float(np.sqrt(np.mean(of_rows.astype(float) ** 2))), float(SMALLEST))
        for of_rows in (features.norms, features.scales)
    ]
    of_features = np.stack([(features.norms / typical[0]) ** 2, (features.scales / typical[1]) ** 2])
    by_length, by_scale = tokens.scales.astype(float) * typical[0], tokens.norms.astype(float) * typical[1]
    root = np.hypot(by_length, by_scale)
    of_tokens = RADIUS / 2 * np.stack([by_length**2 / root, by_scale**2 / root, root], axis=1)
    return of_tokens.astype(np.float32), of_features.astype(np.float32)


def rounded(matrix: Tensor, columns: Array, dither: Array, other: Array, n_threads: int) -> Rows:
    """Write the rows of a matrix (n, d), times a factor for each column, as integers.

    Args:
        matrix: (n, d).
        columns: (d,) the factors.
        dither: (d,) of this matrix.
        other: (d,) of the matrix that this one is multiplied by.
        n_threads: how many.
    """
    rows = Rows(np.empty(matrix.shape, np.int8), *(np.empty(len(matrix), np.float32) for _ in range(3)))
    over_rows(_round_rows, len(matrix), n_threads, matrix.numpy(), columns, dither, other, *rows)
    return rows


@njit(**SUMS)
def _round_rows(
    first: int,
    last: int,
    matrix: Any,
    columns: Any,
    dither: Any,
    other: Any,
    integers: Any,
    scales: Any,
    norms: Any,
    dithered: Any,
) -> None:
    width = matrix.shape[1]
    sizes, largest_size = np.empty(width, np.float32), np.empty(1, np.float32)
    # Bits of positive floats are ordered like the floats, those of NaN last, and their maximum is faster to find.
    bits, largest_bits = sizes.view(np.int32), largest_size.view(np.int32)
    for i in range(first, last):
        for j in range(width):
            sizes[j] = abs(matrix[i, j] * columns[j])
        top = np.int32(0)
        for j in range(width):
            top = np.int32(max(top, bits[j]))
        largest_bits[0] = top
        if not np.isfinite(largest_size[0]):
            norms[i] = np.inf
            continue
        scale = max(largest_size[0] / TOP, SMALLEST)
        inverse, product, square = ONE / scale, ZERO, ZERO
        for j in range(width):
            value = matrix[i, j] * columns[j]
            integer = np.rint(value * inverse + dither[j])
            square += value * value
            product += integer * other[j]
            integers[i, j] = np.int8(integer)
        scales[i], norms[i], dithered[i] = scale, math.sqrt(square) + scale * math.sqrt(width) / 2, product
