"""Statistics of every feature of one SAE over held-out sequences.

A feature's activation mass is the sum of its activations' absolute values. A simple feature has a large share of its
mass on one token, or on one pair of the previous token and this one (C11).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tsae.measure.intervals import share
from tsae.measure.measurement import Measurement
from tsae.measure.sequences import Sequences
from tsae.profile.evaluation import Features
from tsae.sae.architectures.base import Active
from tsae.store.files import check, replacing

LISTS = [
    "context_activations", "context_documents", "context_sequences", "context_positions", "context_active",
    "context_tokens",
]  # fmt: skip
METRICS = {
    "simple_unigram": "share of features with at least `at` of their activation mass on one token (C11)",
    "simple_bigram": "share of features with at least `at` of their activation mass on one bigram (C11)",
}


class Firings(NamedTuple):
    """Non-zero activations, in the order of the tokens; M in all."""

    features: np.ndarray  # (M,) int64
    places: np.ndarray  # (M,) int64: sequence * n_ctx + position
    values: np.ndarray  # (M,) float64


def firings_of(active: Active, places: Tensor) -> Firings:
    """The non-zero activations of tokens at places (n,)."""
    fired = active.values != 0
    features, rows, values = (part[fired].cpu() for part in (active.features, active.rows, active.values))
    return Firings(features.numpy(), places[rows].numpy(), values.double().numpy())


def feature_statistics(
    n_features: int,
    parts: Iterable[Firings],
    sequences: Sequences,
    nearest_unigrams: tuple[Tensor, Tensor],
    nearest_token_biases: tuple[Tensor, Tensor],
    settings: Features,
) -> pd.DataFrame:
    """Statistics of every feature over the kept tokens.

    A feature fires on a token where its activation is not zero. Among tokens of equal mass the lowest id is the top
    one; among contexts of equal activation the earliest comes first. A feature that never fired has NaN, NA and empty
    lists.

    Args:
        n_features: of the SAE.
        parts: its firings on all kept tokens, as of `tsae.measure.reconstruction.reconstruct`.
        sequences: tokens, kept and documents (n_seq, n_ctx).
        nearest_unigrams: for each row of W_dec the highest cosine similarity to a unigram residual, and its token, both
            (F,): see `tsae.measure.nearest`.
        nearest_token_biases: the same for token-biases.
        settings: number and size of the contexts.

    Returns:
        One row per feature, with columns
        - feature: its index.
        - firings, firing_rate: kept tokens on which it fires, and their share of all.
        - mean_activation, max_activation: over its firings.
        - top_token, top_token_share: token with the most of its activation mass, and the share.
        - top_bigram_previous, top_bigram_token, top_bigram_share: the same for pairs of the previous token, which at
          position 1 is BOS, and this one. A kept BOS follows itself.
        - unigram_cosine, unigram_token, token_bias_cosine, token_bias_token: as given.
        - context_activations, context_documents, context_sequences, context_positions: lists of the highest activations
          and their places, in descending order.
        - context_tokens: the token ids around each within the sequence, and context_active: the index of the active one.

    Raises:
        ValueError: shapes do not fit together, or no token is kept.
    """
    if not sequences.kept.any():
        raise ValueError("no token is kept, so no feature can fire")
    for name, pair in (("nearest_unigrams", nearest_unigrams), ("nearest_token_biases", nearest_token_biases)):
        if any(part.shape != (n_features,) for part in pair):
            raise ValueError(f"{name}: {[tuple(part.shape) for part in pair]} for an SAE of {n_features} features")

    firings = Firings(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    tokens = sequences.tokens.numpy()
    previous = np.concatenate([tokens[:, :1], tokens[:, :-1]], axis=1).ravel()[firings.places]
    token = tokens.ravel()[firings.places]
    vocabulary = int(tokens.max()) + 1
    mass = np.abs(firings.values)

    counts = np.bincount(firings.features, minlength=n_features)
    silent = counts == 0
    total = np.bincount(firings.features, firings.values, minlength=n_features)
    top_token, token_share = _heaviest(firings.features, token, vocabulary, mass, n_features)
    top_bigram, bigram_share = _heaviest(
        firings.features, previous * vocabulary + token, vocabulary**2, mass, n_features
    )
    columns = {
        "feature": np.arange(n_features),
        "firings": counts,
        "firing_rate": counts / int(sequences.kept.sum()),
        "mean_activation": np.where(silent, np.nan, total / np.maximum(counts, 1)),
        "max_activation": _maximum(firings, n_features),
        "top_token": pd.array(top_token, dtype="Int64"),
        "top_token_share": token_share,
        "top_bigram_previous": pd.array(top_bigram // vocabulary, dtype="Int64"),
        "top_bigram_token": pd.array(top_bigram % vocabulary, dtype="Int64"),
        "top_bigram_share": bigram_share,
    }
    for name, (cosine, nearest) in (("unigram", nearest_unigrams), ("token_bias", nearest_token_biases)):
        columns |= {f"{name}_cosine": cosine.double().numpy(), f"{name}_token": nearest.numpy()}
    frame = pd.DataFrame(columns)
    frame.loc[silent, ["top_token", "top_bigram_previous", "top_bigram_token"]] = pd.NA
    contexts = _top_contexts(firings, tokens, sequences.documents.numpy(), n_features, settings)
    return frame.assign(**{name: pd.Series(contexts[name], dtype=object) for name in LISTS})


def _heaviest(
    features: np.ndarray, labels: np.ndarray, n_labels: int, mass: np.ndarray, n_features: int
) -> tuple[np.ndarray, np.ndarray]:
    """Each feature's label (F,) with the most mass, and the share of its mass (F,); 0 and NaN without mass.

    `features`, `labels`, `mass` are (M,); labels are below `n_labels`.
    """
    keys = features * n_labels + labels
    order = np.argsort(keys)
    pairs, first = np.unique(keys[order], return_index=True)
    masses = np.add.reduceat(mass[order], first) if len(keys) else np.zeros(0)
    owners = pairs // n_labels
    # Stable, so that the lowest of labels with equal mass comes first.
    order = np.lexsort((-masses, owners))
    winners, first = np.unique(owners[order], return_index=True)
    top, top_share = np.zeros(n_features, dtype=np.int64), np.full(n_features, np.nan)
    chosen = order[first]
    top[winners] = pairs[chosen] % n_labels
    # Summed from the same masses, so that a feature with one label has a share of exactly 1.
    top_share[winners] = masses[chosen] / np.bincount(owners, masses, minlength=n_features)[winners]
    return top, top_share


def _maximum(firings: Firings, n_features: int) -> np.ndarray:
    """Highest activation of each feature (F,), NaN for a feature that never fired."""
    highest = np.full(n_features, -np.inf)
    np.maximum.at(highest, firings.features, firings.values)
    return np.where(np.isneginf(highest), np.nan, highest)


def _top_contexts(
    firings: Firings, tokens: np.ndarray, documents: np.ndarray, n_features: int, settings: Features
) -> dict[str, list[list]]:
    """The columns `LISTS`, with an entry per feature."""
    # Stable, so that the earliest of equal activations comes first.
    order = np.lexsort((-firings.values, firings.features))
    counts = np.bincount(firings.features, minlength=n_features)
    starts = np.cumsum(counts) - counts
    rank = np.arange(len(order)) - np.repeat(starts, counts)
    chosen = order[rank < settings.n_contexts]
    sequence, position = np.divmod(firings.places[chosen], tokens.shape[1])
    first = np.maximum(position - settings.context_before, 0)
    after = position + settings.context_after + 1
    columns = {
        "context_activations": firings.values[chosen].tolist(),
        "context_documents": documents.ravel()[firings.places[chosen]].tolist(),
        "context_sequences": sequence.tolist(),
        "context_positions": position.tolist(),
        "context_active": (position - first).tolist(),
        "context_tokens": [tokens[s, start:end].tolist() for s, start, end in zip(sequence, first, after, strict=True)],
    }
    ends = np.cumsum(np.minimum(counts, settings.n_contexts)).tolist()
    return {
        name: [column[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        for name, column in columns.items()
    }


def write_features(path: Path, frame: pd.DataFrame) -> None:
    """Write the statistics of `feature_statistics` as Parquet; the same statistics give the same bytes."""
    with replacing(path) as temporary:
        frame.to_parquet(temporary, engine="pyarrow", compression="zstd", index=False)


def read_features(path: Path) -> pd.DataFrame:
    """Read what `write_features` wrote.

    Raises:
        ValueError: the file is missing, truncated or not Parquet, or lacks a column.
    """
    check(path)
    try:
        frame = pd.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a whole Parquet file ({error})") from error
    if missing := [name for name in ("feature", *LISTS) if name not in frame]:
        raise ValueError(f"{path}: no table of features; it lacks {', '.join(missing)}")
    return frame.assign(
        **{name: pd.Series([_to_lists(entry) for entry in frame[name]], dtype=object) for name in LISTS}
    )


def _to_lists(entry: np.ndarray) -> list:
    return [part.tolist() if isinstance(part, np.ndarray) else part for part in entry.tolist()]


def simple_shares(
    frame: pd.DataFrame, min_firings: int, thresholds: Iterable[float], samples: int, seed: int
) -> list[Measurement]:
    """Share of features with at least each threshold of mass on their top token, and on their top bigram (C11).

    Args:
        frame: of `feature_statistics`.
        min_firings: features that fire less often are left out, since a single firing is always on a single token.
        thresholds: shares of activation mass.
        samples: bootstrap samples over features.
        seed: seed of the bootstrap.

    Returns:
        A row per metric and threshold; none if no feature fires often enough.
    """
    judged = frame[frame["firings"] >= min_firings]
    if judged.empty:
        return []
    thresholds = tuple(thresholds)
    return [
        share(f"simple_{name}", torch.from_numpy(judged[f"top_{column}_share"].to_numpy() >= at), samples, seed, at)
        for name, column in (("unigram", "token"), ("bigram", "bigram"))
        for at in thresholds
    ]
