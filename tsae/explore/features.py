"""What a page tells of the features of one SAE."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tsae.explore.blocks import smallest
from tsae.measure.features import LISTS
from tsae.measure.nearest import max_cosine_similarity
from tsae.model.language_model import LanguageModel
from tsae.model.logits import logits_of_direction
from tsae.sae.firings import Firings, contexts_of

BINS = 24  # of a histogram
TOP_TOKENS = 6  # tokens with the most activation mass
TOP_LOGITS = 8  # in each direction
ROWS = 64  # directions that are unembedded together
COLUMNS = ["feature", "firing_rate", "max_activation", *LISTS]


class Columns(NamedTuple):
    """Columns of the features of an SAE, (F,) or (F, n)."""

    overview: dict[str, np.ndarray]
    """What the map, lists and the search need."""
    details: dict[str, np.ndarray]
    """What a feature's own page needs besides; ragged columns, with lengths in `near_count` and `context_counts`."""


def whole(values: pd.Series | np.ndarray) -> np.ndarray:
    """Whole numbers as int32, -1 where there is none."""
    return np.asarray(pd.Series(values).fillna(-1), dtype=np.int32)


def describe_features(frame: pd.DataFrame, firings: Firings, n_ctx: int, tokens: np.ndarray) -> Columns:
    """Describe features by where they fire on held-out tokens.

    Args:
        frame: of `tsae.measure.features.feature_statistics`.
        firings: the SAE's firings on the same tokens.
        n_ctx: length of a sequence.
        tokens: ids of all held-out tokens (n_seq * n_ctx,).
    """
    overview = {
        name: frame[name].to_numpy(dtype=np.float32)
        for name in (
            "firing_rate", "mean_activation", "max_activation", "top_token_share", "top_bigram_share", "unigram_cosine",
            "token_bias_cosine",
        )
    }  # fmt: skip
    overview["firings"] = frame["firings"].to_numpy(dtype=np.uint32)
    for name in ("top_token", "top_bigram_previous", "top_bigram_token", "unigram_token", "token_bias_token"):
        overview[name] = whole(frame[name])
    contexts = [context for row in frame[COLUMNS].to_dict("records") for context in contexts_of(row, firings, n_ctx)]
    overview["context_counts"] = smallest(frame["context_activations"].map(len).to_numpy(), 255)
    overview["context_places"] = np.array([context.start + context.active for context in contexts], dtype=np.uint32)
    overview["context_starts"] = smallest(np.array([context.active for context in contexts], dtype=np.int64), 1 << 8)
    overview["context_lengths"] = smallest(np.array([len(c.tokens) for c in contexts], dtype=np.int64), 1 << 8)
    # A context's activations are mostly zero: which of its tokens have one, and how much.
    fired = [np.flatnonzero(context.activations) for context in contexts]
    details = {
        "near_counts": smallest(np.array([len(part) for part in fired], dtype=np.int64), 1 << 8),
        "near_tokens": smallest(np.concatenate([np.zeros(0, np.int64), *fired]), 1 << 8),
        "near_values": np.concatenate(
            [np.zeros(0), *(c.activations[part] for c, part in zip(contexts, fired, strict=True))]
        ).astype(np.float32),
    }
    lowest, highest, heights = histograms(firings)
    details |= {"lowest": lowest, "highest": highest, "heights": heights}
    top, mass = top_tokens(firings, tokens)
    details |= {"top_tokens": top, "top_tokens_share": mass}
    return Columns(overview, details)


def histograms(firings: Firings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lowest (F,) and highest (F,) of each feature's activations, and counts (F, BINS) of equal bins between them."""
    n_features = len(firings.starts) - 1
    lowest, highest = (np.full(n_features, np.nan, dtype=np.float32) for _ in range(2))
    heights = np.zeros((n_features, BINS), dtype=np.uint32)
    for feature in range(n_features):
        _, values = firings.of(feature)
        if len(values):
            heights[feature], edges = np.histogram(values, bins=BINS)
            lowest[feature], highest[feature] = edges[0], edges[-1]
    return lowest, highest, heights


def top_tokens(firings: Firings, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens with the most of each feature's activation mass (F, TOP_TOKENS) int32, -1 for none, and their shares."""
    n_features = len(firings.starts) - 1
    ids = np.full((n_features, TOP_TOKENS), -1, dtype=np.int32)
    shares = np.zeros((n_features, TOP_TOKENS), dtype=np.float32)
    for feature in range(n_features):
        places, values = firings.of(feature)
        found, at = np.unique(tokens[places], return_inverse=True)
        mass = np.bincount(at, np.abs(values.astype(np.float64)), minlength=len(found))
        best = np.argsort(-mass, kind="stable")[:TOP_TOKENS]
        ids[feature, : len(best)] = found[best]
        shares[feature, : len(best)] = mass[best] / max(mass.sum(), np.finfo(float).tiny)
    return ids, shares


def top_logits(W_dec: Tensor, model: LanguageModel, n_tokens: int) -> dict[str, np.ndarray]:
    """The tokens whose logits each row of W_dec (F, d) raises and lowers most.

    See `tsae.model.logits` for what is computed. Blocks between the layer and the end of the model are
    left out.

    Args:
        W_dec: decoder rows.
        model: the language model.
        n_tokens: tokens that the tokenizer knows; rows of the unembedding beyond are padding.

    Returns:
        `raised`, `lowered` (F, TOP_LOGITS) int32 token ids and `raised_by`, `lowered_by` float32.
    """
    n = min(TOP_LOGITS, n_tokens)
    parts: dict[str, list[Tensor]] = {name: [] for name in ("raised_by", "raised", "lowered_by", "lowered")}
    for rows in W_dec.split(ROWS):
        logits = logits_of_direction(model, rows)[:, :n_tokens]
        for name, largest in (("raised", True), ("lowered", False)):
            values, tokens = logits.topk(n, largest=largest)
            parts[f"{name}_by"].append(values)
            parts[name].append(tokens.int())
    return {name: torch.cat(found).cpu().numpy() for name, found in parts.items()}


def nearest_features(W_dec: Tensor, others: Tensor) -> dict[str, np.ndarray]:
    """For each row of W_dec (F, d) the most similar decoder row of the other SAE, `match` (F,), and their cosine."""
    cosine, match = max_cosine_similarity(W_dec, others)
    return {"match": match.int().numpy(), "match_cosine": cosine.numpy()}
