"""Residuals of common n-grams."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tsae.store import files
from tsae.store.tensors import load_as, load_metadata, load_tensors


class NgramResiduals(NamedTuple):
    """Common n-grams and their residuals at one layer, the most frequent first."""

    unigrams: Tensor
    """(n,) int64, the most frequent tokens."""
    ids: dict[int, Tensor]
    """By length, (n, length) int64 token ids."""
    residuals: dict[int, Tensor]
    """By length, (n, d_model) float32."""
    per_length: int
    """How many of each length are measured. There may be more bigrams, which features are compared with."""


def load_ngrams(path: Path) -> NgramResiduals:
    """Read the n-grams that `write_ngrams` wrote.

    Raises:
        ValueError: the file is missing, damaged, or holds something else.
    """
    tensors, per_length = load_tensors(path), load_metadata(path).get("per_length")
    parts: dict[str, dict[int, Tensor]] = {"ids": {}, "residuals": {}}
    for name, tensor in tensors.items():
        part, _, length = name.partition("/")
        if part in parts and length.isdigit():
            parts[part][int(length)] = tensor
    ids, residuals = (dict(sorted(parts[part].items())) for part in ("ids", "residuals"))
    fits = "unigrams" in tensors and ids and ids.keys() == residuals.keys()
    fits = fits and all(
        ids[n].shape[1:] == (n,) and len(ids[n]) == len(residuals[n]) and residuals[n].ndim == 2 for n in ids
    )
    if not fits or not isinstance(per_length, int):
        raise ValueError(f"{path}: holds no residuals of n-grams; {files.REMEDY}")
    return NgramResiduals(tensors["unigrams"], ids, residuals, per_length)


def load_spelling(path: Path) -> Tensor:
    """Read the spellings (V,) int64 that `write_ngrams` wrote.

    Raises:
        ValueError: the file is missing, damaged, or holds something else.
    """
    return load_as(path, {"spelling": ((None,), torch.int64)})["spelling"]
