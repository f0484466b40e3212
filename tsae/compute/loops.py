"""Three loops, compiled by numba, that are faster on a CPU than PyTorch's operators.

`torch.topk` sorts parts of every row, `nonzero` makes several passes, and `argsort` sorts where grouping is enough.
kernels.py runs these loops on a CPU, and PyTorch's operators elsewhere. Arrays are float32 or float64.
"""

import functools
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy", "nogil": True}
# A fold of a row has WIDTH lanes of DEPTH elements each.
WIDTH, DEPTH = 16, 8
# Counts have 32 bits, like the elements; otherwise the compiler does not vectorise the loops.
ZERO, ONE = np.int32(0), np.int32(1)

Array = npt.NDArray[Any]


@njit(**OPTIONS)
def n_folds_of(n_features: int, k: int) -> int:
    """In how many folds to search a row: with 4 k lanes or more, few hold more than one of the k largest.

    In a shorter row every feature is a lane.
    """
    return n_features // (WIDTH * DEPTH) if n_features >= 4 * k * DEPTH else 0


@njit(**OPTIONS)
def first_of_lane(lane: int, n_folds: int) -> Any:
    """The first feature of a lane, and how many it has, WIDTH apart."""
    fold = lane // WIDTH
    if fold < n_folds:
        return lane + fold * WIDTH * (DEPTH - 1), DEPTH
    return lane + n_folds * WIDTH * (DEPTH - 1), 1


@njit(**OPTIONS)
def _maxima(row: Any, bias: Any, n_folds: int, maxima: Any) -> Any:
    """Largest element of row + bias in each lane, NaN if one is.

    A lane of a fold has DEPTH elements, WIDTH apart. Each element after the last fold is a lane of its own.
    Returns the number of lanes with NaN.
    """
    for fold in range(n_folds):
        for lane in range(WIDTH):
            feature = fold * WIDTH * DEPTH + lane
            largest = row[feature] + bias[feature]
            for step in range(1, DEPTH):
                value = row[feature + step * WIDTH] + bias[feature + step * WIDTH]
                largest = value if (value > largest) | (value != value) else largest
            maxima[fold * WIDTH + lane] = largest
    maxima[n_folds * WIDTH :] = row[n_folds * WIDTH * DEPTH :] + bias[n_folds * WIDTH * DEPTH :]
    n_nan = np.int32(0)
    for j in range(len(maxima)):
        n_nan = np.int32(n_nan + (ONE if maxima[j] != maxima[j] else ZERO))
    return n_nan


@njit(**OPTIONS)
def _count(values: Any, bound: Any) -> Any:
    n = np.int32(0)
    for j in range(len(values)):
        n = np.int32(n + (ONE if values[j] >= bound else ZERO))
    return n


@njit(**OPTIONS)
def bound_of_largest(values: Any, k: int, n_more: int, largest_number: Any) -> Any:
    """A number that k to k + n_more of the values reach, found by bisection; no value is NaN.

    If equal values prevent that, it is the k-th largest value, which more may reach.
    """
    low = high = min(max(values[0], -largest_number), largest_number)
    step = values.dtype.type(1)
    while _count(values, low) < k:
        if low == -largest_number:
            return values.dtype.type(-np.inf)
        low, high, step = max(low - step, -largest_number), low, 2 * step
    while _count(values, high) >= k:
        if high == largest_number:
            return high
        low, high, step = high, min(high + step, largest_number), 2 * step
    half = values.dtype.type(0.5)
    while True:
        middle = half * low + half * high
        if not low < middle < high:
            return low
        n = _count(values, middle)
        if n >= k:
            low = middle
            if n <= k + n_more:
                return low
        else:
            high = middle


@njit(**OPTIONS)
def keep_above(values: Any, found: Any, n: int, bound: Any, n_equal: int) -> int:
    """Move those of the first n values above the bound to the front, in order, and the first n_equal that equal it."""
    kept = 0
    for j in range(n):
        equal = values[j] == bound
        if values[j] > bound or (equal and n_equal > 0):
            n_equal -= equal
            values[kept], found[kept] = values[j], found[j]
            kept += 1
    return kept


@njit(**OPTIONS)
def keep_largest(values: Any, found: Any, n: int, k: int, largest_number: Any) -> None:
    """Move the k largest of the first n values, and what was found of each, to the front; among equals the first."""
    bound = bound_of_largest(values[:n], k, 0, largest_number)
    n_above = 0
    for j in range(n):
        n_above += values[j] > bound
    keep_above(values, found, n, bound, k - n_above)


@njit(**OPTIONS)
def _largest(first: int, last: int, products: Any, bias: Any, n_folds: int, largest_number: Any, features: Any) -> None:
    n_features, k = products.shape[1], features.shape[1]
    maxima = np.empty(n_features - n_folds * WIDTH * (DEPTH - 1), products.dtype)
    values, found = np.empty(n_features, products.dtype), np.empty(n_features, np.int64)
    for i in range(first, last):
        row = products[i]
        if _maxima(row, bias, n_folds, maxima):  # choose NaN first, so that the loss shows it
            n = 0
            for wanted in (True, False):
                for feature in range(n_features):
                    if n < k and np.isnan(row[feature] + bias[feature]) == wanted:
                        features[i, n] = feature
                        n += 1
            continue
        # k lanes reach the bound, so at least k elements do, and all of these are in those lanes.
        bound = bound_of_largest(maxima, k, k // 8, largest_number)
        n = 0
        for lane in range(len(maxima)):
            if maxima[lane] >= bound:
                feature, n_steps = first_of_lane(lane, n_folds)
                for _ in range(n_steps):
                    value = row[feature] + bias[feature]
                    if value >= bound:
                        values[n], found[n] = value, feature
                        n += 1
                    feature += WIDTH
        keep_largest(values, found, n, k, largest_number)
        features[i] = found[:k]


def largest(products: Array, bias: Array, k: int, n_threads: int) -> Array:
    """The features (N, k) int64 of the k largest elements of each row of products (N, F) + bias (F,), unordered.

    Features that are NaN come first. Among equal elements the choice is deterministic.

    Raises:
        ValueError: there are fewer than k features.
    """
    n_rows, n_features = products.shape
    if k > n_features:
        raise ValueError(f"k = {k} of {n_features} features")
    features = np.empty((n_rows, k), np.int64)
    n_folds = n_folds_of(n_features, k)
    over_rows(_largest, n_rows, n_threads, products, bias, n_folds, np.finfo(products.dtype).max, features)
    return features


@njit(**OPTIONS)
def _count_positive(first: int, last: int, products: Any, bias: Any, counts: Any) -> None:
    for i in range(first, last):
        row, n = products[i], np.int32(0)
        for feature in range(len(row)):
            n = np.int32(n + (ONE if row[feature] + bias[feature] > 0 else ZERO))
        counts[i] = n


@njit(**OPTIONS)
def _find_positive(first: int, last: int, products: Any, bias: Any, offsets: Any, features: Any) -> None:
    for i in range(first, last):
        row, slot = products[i], offsets[i]
        for feature in range(len(row)):
            if row[feature] + bias[feature] > 0:
                features[slot] = feature
                slot += 1


def positive(products: Array, bias: Array, n_threads: int) -> tuple[Array, Array]:
    """The elements of products (N, F) + bias (F,) above zero.

    Returns their features (M,) int64 by row, and the offset of each row in these (N,) int64.
    """
    counts = np.empty(len(products), np.int64)
    over_rows(_count_positive, len(products), n_threads, products, bias, counts)
    offsets = np.cumsum(counts) - counts
    features = np.empty(counts.sum(), np.int64)
    over_rows(_find_positive, len(products), n_threads, products, bias, offsets, features)
    return features, offsets


@njit(**OPTIONS)
def group(features: Any, n_features: int) -> Any:
    """Stable counting sort of features (M,): slots (M,) by feature, and the offset of each feature in these (F,)."""
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


def over_rows(loop: Callable[..., None], n_rows: int, n_threads: int, *arguments: Any) -> None:
    """Run a loop over rows in one part per thread, from `first` to before `last`."""
    if n_threads == 1 or n_rows < 2:
        loop(0, n_rows, *arguments)
        return
    edges = [part * n_rows // n_threads for part in range(n_threads + 1)]
    parts = [_threads(n_threads).submit(loop, *ends, *arguments) for ends in itertools.pairwise(edges)]
    for part in parts:
        part.result()


@functools.cache
def _threads(n_threads: int) -> ThreadPoolExecutor:
    """Threads that wait for work: to start them for every loop takes longer than short loops do."""
    return ThreadPoolExecutor(n_threads)
