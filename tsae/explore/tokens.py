"""What a page tells of every token of the vocabulary."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from tsae.compute.products import product
from tsae.explore.blocks import smallest
from tsae.sae.firings import Firings

NEIGHBOURS = 8  # nearest rows of the table
ON_TOKEN = 10  # features that fire on a token
ROWS = 1024  # rows that are compared together


def texts_of(tokenizer: Any, n_tokens: int) -> list[str]:
    """The text of each token id; of bytes that are no character, the tokenizer's own name of the token."""
    texts = [str(tokenizer.decode([token])) for token in range(n_tokens)]
    return [
        str(tokenizer.convert_ids_to_tokens(token)) if "\ufffd" in text else text for token, text in enumerate(texts)
    ]


def compare_with_unigrams(table: Tensor, unigrams: Tensor, counts: Tensor) -> dict[str, np.ndarray]:
    """Each token-bias against its unigram residual.

    Args:
        table: token-biases (V, d).
        unigrams: unigram residuals (V, d).
        counts: training occurrences of each token (V,).

    Returns:
        Float32 columns (V,): `bias_norm`; `cosine` of the two; and `centred_cosine`, after the mean over tokens seen in
        training is taken from each.
    """
    seen = counts > 0
    centred_table, centred_unigrams = (rows - rows[seen].mean(0) for rows in (table, unigrams))
    return {
        "bias_norm": table.norm(dim=1).numpy(),
        "cosine": cosine_similarity(table, unigrams, dim=1).numpy(),
        "centred_cosine": cosine_similarity(centred_table, centred_unigrams, dim=1).numpy(),
    }


def neighbours(table: Tensor, counts: Tensor) -> dict[str, np.ndarray]:
    """The other tokens seen in training whose rows of the table (V, d) are most similar to each token's own.

    Returns:
        `neighbour` (V, NEIGHBOURS) int32, -1 for a token that was not seen, and `neighbour_cosine` float32.
    """
    seen = (counts > 0).nonzero().flatten()
    n = min(NEIGHBOURS, len(seen) - 1)
    found = torch.full((len(table), NEIGHBOURS), -1, dtype=torch.int32)
    cosines = torch.zeros(len(table), NEIGHBOURS)
    directions = normalize(table[seen], dim=1)
    for start in range(0, len(seen), ROWS) if n > 0 else ():
        products = product(directions[start : start + ROWS], directions)
        rows = torch.arange(len(products))
        products[rows, start + rows] = -torch.inf  # itself
        values, indices = products.topk(n, dim=1)
        found[seen[start : start + ROWS], :n] = seen[indices].int()
        cosines[seen[start : start + ROWS], :n] = values
    return {"neighbour": found.numpy(), "neighbour_cosine": cosines.numpy()}


def features_on_tokens(firings: Firings, tokens: np.ndarray, n_vocabulary: int) -> dict[str, np.ndarray]:
    """The features that fire most often on each token.

    Args:
        firings: of an SAE, on held-out tokens.
        tokens: ids of all held-out tokens (n_seq * n_ctx,).
        n_vocabulary: V.

    Returns:
        `counts` (V,), the features listed per token; for each of them in turn, `features` and its `occurrences`, the
        number of kept occurrences of the token on which it fires. In descending order, at most ON_TOKEN a token.
    """
    n_features = len(firings.starts) - 1
    owners = np.repeat(np.arange(n_features), np.diff(firings.starts))
    pairs, occurrences = np.unique(tokens[firings.places].astype(np.int64) * n_features + owners, return_counts=True)
    of_token, features = np.divmod(pairs, n_features)
    order = np.lexsort((features, -occurrences, of_token))
    of_token, features, occurrences = of_token[order], features[order], occurrences[order]
    rank = np.arange(len(order)) - np.searchsorted(of_token, of_token)
    chosen = rank < ON_TOKEN
    return {
        "counts": smallest(np.bincount(of_token[chosen], minlength=n_vocabulary), ON_TOKEN),
        "features": smallest(features[chosen], n_features),
        "occurrences": occurrences[chosen].astype(np.uint32),
    }


def fvu_by_token(
    squared_errors: np.ndarray, squared_deviations: np.ndarray, tokens: np.ndarray, n_vocabulary: int
) -> np.ndarray:
    """Each token's sum of squared errors over that of squared deviations from the mean of all residuals.

    Args:
        squared_errors: (N,) of kept tokens.
        squared_deviations: (N,).
        tokens: their ids (N,).
        n_vocabulary: V.

    Returns:
        (V,) float32, NaN for a token that does not occur.
    """
    errors, deviations = (
        np.bincount(tokens, values, minlength=n_vocabulary) for values in (squared_errors, squared_deviations)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return (errors / deviations).astype(np.float32)


def counted(tokens: Sequence[int] | np.ndarray, n_vocabulary: int) -> np.ndarray:
    """Occurrences of each token (V,) uint32."""
    return np.bincount(np.asarray(tokens), minlength=n_vocabulary).astype(np.uint32)
