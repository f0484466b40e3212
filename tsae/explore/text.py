"""What a page tells of every held-out token: the parts of its residual, and the features that are most active on it."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tsae.explore.blocks import smallest
from tsae.sae.firings import Encoded
from tsae.sae.sae import SAE

TOP_FEATURES = 8  # features shown of a token
LARGEST = 32_767  # of a share in thousandths


class Parts(NamedTuple):
    """How an SAE divides the residuals of N kept tokens: x = b_dec + token-bias + features + error.

    The share of a part v is v x / |x|^2, so shares of one residual add up to 1. A part that points away from it has a
    negative share.
    """

    places: np.ndarray
    """(N,) sequence * n_ctx + position."""
    tokens: np.ndarray
    """Token ids (N,)."""
    squared_norms: np.ndarray
    """|x|^2 (N,) float64."""
    squared_errors: np.ndarray
    """|error|^2 (N,) float64."""
    squared_deviations: np.ndarray
    """|x - mean x|^2 (N,) float64."""
    table_errors: np.ndarray
    """|x - b_dec - token-bias|^2 (N,) float64."""
    shares: np.ndarray
    """(N, 3) float64: of b_dec, of the token-bias, of the features."""
    n_active: np.ndarray
    """Non-zero activations (N,)."""
    top: np.ndarray
    """The features of the highest activations (N, TOP_FEATURES) in descending order; beyond n_active, 0."""
    activations: np.ndarray
    """Their activations (N, TOP_FEATURES), 0 beyond n_active."""


def divide(sae: SAE, mean: Tensor, encoded: Iterable[Encoded], collect: list[Encoded]) -> Parts:
    """Divide encoded residuals into parts.

    Args:
        sae: the SAE that encoded them.
        mean: mean of the residuals (d,).
        encoded: all kept tokens.
        collect: what was encoded is added here, without its residuals.
    """
    parts = []
    for chunk in encoded:
        parts.append(_divide(sae, mean, chunk))
        collect.append(chunk._replace(residuals=torch.empty(0)))
    return Parts(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _divide(sae: SAE, mean: Tensor, chunk: Encoded) -> tuple[np.ndarray, ...]:
    x, tokens, active = chunk.residuals, chunk.tokens, chunk.active
    biases = sae.token_biases(tokens)
    features = sae.decode_active(active, None) - sae.b_dec
    squared_norms = x.double().square().sum(1)
    shares = [(part * x).double().sum(1) / squared_norms for part in (sae.b_dec, biases, features)]
    order = np.lexsort((active.features.numpy(), -active.values.numpy(), active.rows.numpy()))
    rows = active.rows.numpy()[order]
    fired = active.values.numpy()[order] != 0
    order, rows = order[fired], rows[fired]
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
    shown = rank < TOP_FEATURES
    top, activations = np.zeros((len(x), TOP_FEATURES), dtype=np.int64), np.zeros((len(x), TOP_FEATURES))
    top[rows[shown], rank[shown]] = active.features.numpy()[order[shown]]
    activations[rows[shown], rank[shown]] = active.values.numpy()[order[shown]]
    return (
        chunk.places.numpy(),
        tokens.numpy(),
        squared_norms.numpy(),
        (x - sae.b_dec - biases - features).double().square().sum(1).numpy(),
        (x - mean).double().square().sum(1).numpy(),
        (x - sae.b_dec - biases).double().square().sum(1).numpy(),
        torch.stack(shares, 1).numpy(),
        np.bincount(rows, minlength=len(x)),
        top,
        activations,
    )


def columns_of_text(parts: Parts, n_features: int, first: int, end: int) -> dict[str, np.ndarray]:
    """Columns of the tokens at places `first` to `end`, kept or not; zeros for those that are not.

    Returns:
        `shares` (n, 3) int16 and `nmse` (n,) uint16, in thousandths; `n_active` (n,) uint16; `top` and `activations`
        (n, TOP_FEATURES).
    """
    inside = (parts.places >= first) & (parts.places < end)
    at, n = parts.places[inside] - first, end - first

    def spread(values: np.ndarray, kind: type[np.generic]) -> np.ndarray:
        filled = np.zeros((n, *values.shape[1:]), dtype=kind)
        filled[at] = values[inside]
        return filled

    nmse = np.minimum(np.rint(1000 * parts.squared_errors / parts.squared_norms), 2 * LARGEST + 1)
    return {
        "shares": spread(np.clip(np.rint(1000 * parts.shares), -LARGEST, LARGEST), np.int16),
        "nmse": spread(nmse, np.uint16),
        "n_active": spread(np.minimum(parts.n_active, 2 * LARGEST + 1), np.uint16),
        "top": smallest(spread(parts.top, np.int64), n_features),
        "activations": spread(parts.activations, np.float32),
    }
