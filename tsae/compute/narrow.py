"""The k largest pre-activations of each token, found by a product of 8-bit integers and settled in float32.

Processors with 8-bit dot products (VNNI) multiply integers about four times as fast as float32. So x and W_enc are written as
integers with a bound on the error of every inner product (see `rounding`). Every feature that could be among the k largest by that
bound gets its inner product in float32, typically 1.5 k of them, and the k largest of these are chosen. Choice and values are those of
a float32 product, up to the order of its sums.
"""

from typing import Any

import numpy as np
import torch
from llvmlite.binding import get_host_cpu_features
from numba import njit
from torch import Tensor

from tsae.compute.loops import (
    DEPTH,
    OPTIONS,
    WIDTH,
    bound_of_largest,
    first_of_lane,
    keep_above,
    keep_largest,
    n_folds_of,
    over_rows,
)
from tsae.compute.rounding import SUMS, ZERO, bounds_of, columns_of, rounded

AVAILABLE = torch.backends.mkldnn.is_available() and bool(get_host_cpu_features().get("avx512vnni"))
# Below these sizes a float32 product is as fast (measured at d = 576).
MIN_TOKENS, MIN_FEATURES, MIN_FEATURES_PER_K = 256, 1024, 32
# Tokens that each thread multiplies at a time: few, so that products are still in the cache when they are read, but threads wait for
# each other after every block.
BLOCK = 512
LARGEST = np.finfo(np.float32).max


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
    columns = columns_of(x, W)
    tokens = rounded(x, (1 / columns).numpy(), of_x, of_W, n_threads)
    features = rounded(W, columns.numpy(), of_W, of_x, n_threads)
    if not all(np.isfinite(numbers).all() for numbers in (tokens.norms, features.norms, bias.numpy())):
        return None
    # s_x s_w (q_x . q_w - q_x . u_w - q_w . u_x + u_x . u_w), of which the last term is counted with the tokens.
    tokens.dithered[:] = np.dot(of_x, of_W) - tokens.dithered
    of_tokens, of_features = bounds_of(tokens, features)
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
