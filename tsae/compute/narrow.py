"""The k largest pre-activations of each token, found by a product of 8-bit integers and settled in float32.

Processors with 8-bit dot products (VNNI) multiply integers about four times as fast as float32. A row r of x or W_enc is
written as s (q - u) with integers q, a scale s and a dither u, which is the same for all rows of a matrix: q is s^-1 r + u,
rounded. Then the error of each coordinate is uniform within s/2, independent of the row and of the other coordinates (Schuchman,
1964). So x . w - x_hat . w_hat = (x - x_hat) . w + x_hat . (w - w_hat) is sub-Gaussian: the first term has variance s_x^2 |w|^2 / 12,
the second, for whatever x_hat the first dither made, at most s_w^2 N_x^2 / 12, where N_x = |x| + s_x sqrt(d) / 2 is the longest that
x_hat can be. Hence

    |x . w - x_hat . w_hat| < RADIUS sqrt(s_x^2 |w|^2 + s_w^2 N_x^2)

but for one pair in 10^17. Every feature that could be among the k largest by that bound gets its inner product in
float32, typically 1.5 k of them, and the k largest of these are chosen. Choice and values are those of a float32 product, up to
the order of its sums.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite.binding import get_host_cpu_features
from numba import njit
from torch import Tensor

from tsae.compute.loops import (
    DEPTH,
    OPTIONS,
    WIDTH,
    Array,
    bound_of_largest,
    first_of_lane,
    keep_above,
    keep_largest,
    n_folds_of,
    over_rows,
)

AVAILABLE = torch.backends.mkldnn.is_available() and bool(get_host_cpu_features().get("avx512vnni"))
# Below these sizes a float32 product is as fast (measured at d = 576).
MIN_TOKENS, MIN_FEATURES, MIN_FEATURES_PER_K = 256, 1024, 32
# 9 standard deviations of a uniform error: 2 exp(-81/2) is 5e-18. A hundredth more is for rounding of float32 itself.
RADIUS = np.float32(1.01 * 9 / math.sqrt(12))
# Largest quotient of a row and its scale: with the dither it stays in 8 bits.
TOP = np.float32(126.5)
# Tokens that each thread multiplies at a time: few, so that products are still in the cache when they are read, but threads wait for
# each other after every block.
BLOCK = 512
ZERO, ONE, SMALLEST = np.float32(0), np.float32(1), np.float32(1e-18)
LARGEST = np.finfo(np.float32).max
# The order of sums is free, so that the compiler can vectorise them. It is the same in every run.
SUMS: dict[str, Any] = OPTIONS | {"fastmath": {"contract", "reassoc"}}


class Rows(NamedTuple):
    """The rows of a matrix (n, d) as scales times integers less a dither."""

    integers: Array  # (n, d) int8
    scales: Array  # (n,)
    norms: Array  # (n,) the longest that what is written of each row can be
    dithered: Array  # (n,) inner product of the integers with the dither of the other matrix


def pays(x: Tensor, W: Tensor, k: int) -> bool:
    """Whether `largest` can be used, and is faster than a product in float32."""
    floats = x.is_cpu and x.dtype == W.dtype == torch.float32
    return AVAILABLE and floats and len(x) >= MIN_TOKENS and len(W) >= max(MIN_FEATURES, MIN_FEATURES_PER_K * k)


def largest(x: Tensor, W: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    """The k largest elements of each row of x W^T + bias.

    Args:
        x: (N, d) float32, at least one row.
        W: (F, d) float32.
        bias: (F,) float32.
        k: how many of a row.

    Returns:
        Their features (N, k) int64 and values (N, k), unordered; None if a number is not finite.

    Raises:
        ValueError: there are fewer than k features.
    """
    if k > len(W):
        raise ValueError(f"k = {k} of {len(W)} features")
    n_threads = torch.get_num_threads()
    x, W, bias = (tensor.detach().contiguous() for tensor in (x, W, bias))
    of_x, of_W = np.random.default_rng(0).uniform(-0.5, 0.5, (2, x.shape[1])).astype(np.float32)
    columns = _columns(x, W)
    tokens = _round(x, (1 / columns).numpy(), of_x, of_W, n_threads)
    features = _round(W, columns.numpy(), of_W, of_x, n_threads)
    if not all(np.isfinite(numbers).all() for numbers in (tokens.norms, features.norms, bias.numpy())):
        return None
    # s_x s_w (q_x . q_w - q_x . u_w - q_w . u_x + u_x . u_w), of which the last term is counted with the tokens.
    tokens.dithered[:] = np.dot(of_x, of_W) - tokens.dithered
    of_tokens, of_features = _bounds(tokens, features)
    found, values = torch.empty(len(x), k, dtype=torch.int64), torch.empty(len(x), k)
    at_a_time = BLOCK * n_threads
    products = torch.empty(min(at_a_time, len(x)), len(W), dtype=torch.int32)
    by_feature = torch.from_numpy(features.integers).T
    for start in range(0, len(x), at_a_time):
        block = slice(start, start + at_a_time)
        part = products[: len(x) - start]
        torch._int_mm(torch.from_numpy(tokens.integers[block]), by_feature, out=part)
        arrays = (part.numpy(), x[block].numpy(), W.numpy(), bias.numpy())
        outputs = (found[block].numpy(), values[block].numpy())
        numbers = (tokens.scales[block], tokens.dithered[block], of_tokens[block])
        over_rows(
            _settle, len(part), n_threads, *arrays, *numbers, features.scales, features.dithered, of_features, *outputs
        )
    return found, values


def _columns(x: Tensor, W: Tensor) -> Tensor:
    """Factors (d,) to divide the columns of x and multiply those of W by, after which fewer features are near the k-th largest.

    Of the factors tried on residuals of a model, the root of the mean square of x over the largest of W did best.
    """
    some_x, some_W = (matrix[:: max(1, len(matrix) // 256)] for matrix in (x, W))
    sizes = [size.clamp(1e-15, 1e15) for size in (some_x.square().mean(0).sqrt(), some_W.abs().amax(0))]
    return torch.nan_to_num(sizes[0] / sizes[1], 1.0).sqrt()


def _bounds(tokens: Rows, features: Rows) -> tuple[Array, Array]:
    """Bounds on errors, as three numbers of each token (N, 3) and two of each feature (F, 2): see `_approximate`.

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


def _round(matrix: Tensor, columns: Array, dither: Array, other: Array, n_threads: int) -> Rows:
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


@njit(**OPTIONS)
def _approximate(
    products: Any, token: Any, features: Any, bias: Any, n_folds: int, values: Any, uppers: Any, maxima: Any, top: Any
) -> None:
    """Approximate pre-activations of a token, the largest that the true ones can be, and the maxima of both in each lane.

    Args:
        products: (F,) of integers.
        token: its scale, its product with the dither, and the three numbers of its bounds.
        features: scales (F,), products with the dither (F,) and numbers of their bounds (2, F).
        bias: (F,).
        n_folds: how many folds of lanes there are: see `loops`.
        values: (F,) the pre-activations, written.
        uppers: (F,) their upper bounds, written.
        maxima: (lanes,) of the values, written.
        top: (lanes,) of the bounds, written.
    """
    scale, dithered, (by_length, by_scale, least) = token
    scales, all_dithered, (lengths, coarseness) = features
    for j in range(len(products)):
        product = np.float32(products[j]) + (dithered - all_dithered[j])
        values[j] = product * (scale * scales[j]) + bias[j]
        uppers[j] = values[j] + (by_length * lengths[j] + by_scale * coarseness[j] + least)
    for fold in range(n_folds):
        for lane in range(WIDTH):
            first = fold * WIDTH * DEPTH + lane
            value, upper = values[first], uppers[first]
            for j in range(first + WIDTH, first + WIDTH * DEPTH, WIDTH):
                value = values[j] if values[j] > value else value
                upper = uppers[j] if uppers[j] > upper else upper
            maxima[fold * WIDTH + lane], top[fold * WIDTH + lane] = value, upper
    maxima[n_folds * WIDTH :] = values[n_folds * WIDTH * DEPTH :]
    top[n_folds * WIDTH :] = uppers[n_folds * WIDTH * DEPTH :]


@njit(**OPTIONS)
def _reaching(values: Any, bound: Any, places: Any) -> int:
    """Write the places of the values that reach a bound, without branches; returns their number.

    There has to be room for one place more.
    """
    n, end = 0, len(values) - len(values) % WIDTH
    for start in range(0, end, WIDTH):
        found = np.int32(0)
        for j in range(start, start + WIDTH):
            found = np.int32(found + (np.int32(1) if values[j] >= bound else np.int32(0)))
        if found:
            for j in range(start, start + WIDTH):
                places[n] = j
                n += values[j] >= bound
    for j in range(end, len(values)):
        places[n] = j
        n += values[j] >= bound
    return n


@njit(**SUMS)
def _settle_some(first: int, last: int, x: Any, W: Any, bias: Any, found: Any, values: Any) -> None:
    """Pre-activations in float32 of those of the features found from `first` to before `last`, two at a time."""
    for slot in range(first, last, 2):
        one, other = found[slot], found[min(slot + 1, last - 1)]
        row, other_row = W[one], W[other]
        total, other_total = ZERO, ZERO
        for j in range(len(x)):
            total += x[j] * row[j]
            other_total += x[j] * other_row[j]
        values[slot] = total + bias[one]
        values[min(slot + 1, last - 1)] = other_total + bias[other]


@njit(**OPTIONS)
def _settle(
    first: int,
    last: int,
    products: Any,
    x: Any,
    W: Any,
    bias: Any,
    scales: Any,
    dithered: Any,
    bounds: Any,
    feature_scales: Any,
    feature_dithered: Any,
    feature_bounds: Any,
    chosen: Any,
    chosen_values: Any,
) -> None:
    n_features, k = products.shape[1], chosen.shape[1]
    n_folds = n_folds_of(n_features, k)
    features = feature_scales, feature_dithered, (feature_bounds[0], feature_bounds[1])
    approximate, uppers = np.empty(n_features, np.float32), np.empty(n_features, np.float32)
    maxima = np.empty(n_features - n_folds * WIDTH * (DEPTH - 1), np.float32)
    top, lanes = np.empty_like(maxima), np.empty(len(maxima) + 1, np.int32)
    found, values = np.empty(n_features + 1, np.int64), np.empty(n_features + 1, np.float32)
    for i in range(first, last):
        token = scales[i], dithered[i], (bounds[i, 0], bounds[i, 1], bounds[i, 2])
        _approximate(products[i], token, features, bias, n_folds, approximate, uppers, maxima, top)
        # Those that look largest come first. The k-th largest of these is a lower bound of the k-th largest of all.
        bound, n = bound_of_largest(maxima, k, k // 8, LARGEST), 0
        for lane in lanes[: _reaching(maxima, bound, lanes)]:
            feature, n_steps = first_of_lane(lane, n_folds)
            for j in range(feature, feature + n_steps * WIDTH, WIDTH):
                found[n] = j
                n += approximate[j] >= bound
        _settle_some(0, n, x[i], W, bias, found, values)
        keep_largest(values, found, n, k, LARGEST)
        least, n = values[:k].min(), k
        for lane in lanes[: _reaching(top, least, lanes)]:
            feature, n_steps = first_of_lane(lane, n_folds)
            for j in range(feature, feature + n_steps * WIDTH, WIDTH):
                found[n] = j
                n += (uppers[j] >= least) & (approximate[j] < bound)
        _settle_some(k, n, x[i], W, bias, found, values)
        keep_largest(values, found, keep_above(values, found, n, least, k), k, LARGEST)
        chosen[i], chosen_values[i] = found[:k], values[:k]
