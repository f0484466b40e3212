"""Three loops over memory for which PyTorch has no operator of their cost, compiled by numba.

`torch.topk` sorts parts of every row, `nonzero` writes two indices per element, `argsort` orders what only needs grouping.
kernels.py runs these on a CPU, and PyTorch's operators elsewhere.
"""

from typing import Any

import numba
import numpy as np
from numba import njit, prange

OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy", "nogil": True}


@njit(**OPTIONS)
def _lane_maxima(row: Any, bias: Any, maxima: Any) -> None:
    """Largest element of row + bias in each lane; lane j of L holds the elements j, j + L, j + 2 L, ..."""
    lanes = len(maxima)
    maxima[:] = row[:lanes] + bias[:lanes]
    for start in range(lanes, len(row), lanes):
        part, part_bias = row[start : start + lanes], bias[start : start + lanes]
        for lane in range(len(part)):
            value = part[lane] + part_bias[lane]
            maxima[lane] = value if value > maxima[lane] else maxima[lane]


@njit(**OPTIONS)
def _bound(values: Any, k: int) -> Any:
    """A number that k or a few more of the values reach, found by halving their range."""
    low, high = values[0], values[0]
    for value in values:
        low, high = min(low, value), max(high, value)
    half = values.dtype.type(0.5)
    for _ in range(12):
        middle = half * low + half * high
        n = np.int32(0)
        for value in values:
            n += np.int32(value >= middle)
        if n >= k:
            low = middle
            if n <= k + k // 8:
                break
        else:
            high = middle
    return low


@njit(parallel=True, **OPTIONS)
def _largest(products: Any, bias: Any, k: int, lanes: int, n_threads: int, features: Any) -> None:
    n_rows, n_features = products.shape
    for thread in prange(n_threads):
        maxima = np.empty(lanes, products.dtype)
        values, found = np.empty(n_features, products.dtype), np.empty(n_features, np.int64)
        for i in range(thread * n_rows // n_threads, (thread + 1) * n_rows // n_threads):
            row = products[i]
            _lane_maxima(row, bias, maxima)
            # k lanes reach the bound, so k elements do, and all that do are in those lanes.
            bound = _bound(maxima, k)
            n = 0
            for lane in range(lanes):
                if maxima[lane] >= bound:
                    for feature in range(lane, n_features, lanes):
                        value = row[feature] + bias[feature]
                        if value >= bound:
                            values[n], found[n] = value, feature
                            n += 1
            while n > k:
                smallest = 0
                for j in range(1, n):
                    if values[j] <= values[smallest]:
                        smallest = j
                n -= 1
                values[smallest], found[smallest] = values[n], found[n]
            if n < k:  # NaN compares with nothing: let it through, so that the loss shows it
                n = 0
                for wanted in (True, False):
                    for feature in range(n_features):
                        if n < k and np.isnan(row[feature] + bias[feature]) == wanted:
                            found[n] = feature
                            n += 1
            features[i] = found[:k]


def largest(products: Any, bias: Any, k: int, n_threads: int) -> Any:
    """The features (N, k) int64 of the k largest elements of each row of products (N, F) + bias (F,), in no order.

    A row with NaN gives the features that are NaN first. Among equals the choice is the same every time.
    """
    features = np.empty((len(products), k), np.int64)
    # With many times k lanes, few lanes hold more than one of the k largest, and their maxima still fit the fastest cache.
    lanes = min(products.shape[1], max(256, 4 * k))
    _largest(products, bias, k, lanes, _limit(n_threads), features)
    return features


@njit(parallel=True, **OPTIONS)
def _count_positive(products: Any, bias: Any, n_threads: int, counts: Any) -> None:
    for thread in prange(n_threads):
        for i in range(thread * len(products) // n_threads, (thread + 1) * len(products) // n_threads):
            row, n = products[i], np.int32(0)
            for feature in range(len(row)):
                n += np.int32(row[feature] + bias[feature] > 0)
            counts[i] = n


@njit(parallel=True, **OPTIONS)
def _find_positive(products: Any, bias: Any, n_threads: int, offsets: Any, features: Any) -> None:
    for thread in prange(n_threads):
        for i in range(thread * len(products) // n_threads, (thread + 1) * len(products) // n_threads):
            row, slot = products[i], offsets[i]
            for feature in range(len(row)):
                if row[feature] + bias[feature] > 0:
                    features[slot] = feature
                    slot += 1


def positive(products: Any, bias: Any, n_threads: int) -> tuple[Any, Any]:
    """The elements of products (N, F) + bias (F,) above zero.

    Gives their features (M,) int64, row after row, and where each row's start (N,) int64.
    """
    n_threads = _limit(n_threads)
    counts = np.empty(len(products), np.int64)
    _count_positive(products, bias, n_threads, counts)
    offsets = np.cumsum(counts) - counts
    features = np.empty(counts.sum(), np.int64)
    _find_positive(products, bias, n_threads, offsets, features)
    return features, offsets


@njit(**OPTIONS)
def group(features: Any, n_features: int) -> tuple[Any, Any]:
    """A stable counting sort of features (M,): the slots (M,) in order of feature, and where each feature's start (F,)."""
    offsets = np.zeros(n_features + 1, np.int64)
    for feature in features:
        offsets[feature + 1] += 1
    for feature in range(n_features):
        offsets[feature + 1] += offsets[feature]
    slots, free = np.empty(len(features), np.int64), offsets[:-1].copy()
    for slot in range(len(features)):
        feature = features[slot]
        slots[free[feature]] = slot
        free[feature] += 1
    return slots, offsets[:-1]


def _limit(n_threads: int) -> int:
    """Let the next loops run on so many threads, or on as many as there are."""
    n_threads = min(n_threads, numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    numba.set_num_threads(n_threads)
    return n_threads
