"""Tables with rows for bigrams: which row of the table a token has after the token before it."""

import torch
from torch import Tensor


def bigram_keys(tokens: Tensor, vocab_size: int) -> Tensor:
    """A number for every two tokens that follow each other, at the second one.

    Args:
        tokens: (n_seq, n_ctx) token ids of whole sequences.
        vocab_size: V, tokens that the model knows.

    Returns:
        (n_seq, n_ctx) int64, V * the token before + the token; -1 at the first token of a sequence.
    """
    tokens = tokens.long()
    keys = torch.full_like(tokens, -1)
    keys[:, 1:] = tokens[:, :-1] * vocab_size + tokens[:, 1:]
    return keys


def rows_with_bigrams(tokens: Tensor, bigrams: Tensor, vocab_size: int) -> Tensor:
    """The row of every token in a table of V tokens and, behind them, M bigrams.

    Args:
        tokens: (n_seq, n_ctx) token ids of whole sequences.
        bigrams: (M,) int64, ascending `bigram_keys` of the bigrams.
        vocab_size: V.

    Returns:
        (n_seq, n_ctx) int64: V + the place of the bigram that ends at the token if it is one of them, and the token if not.
    """
    places = places_of(bigram_keys(tokens, vocab_size), bigrams)
    return torch.where(places >= 0, vocab_size + places, tokens.long())


def places_of(keys: Tensor, known: Tensor) -> Tensor:
    """Index of each key in the ascending `known` (U,), -1 where it is not one of them; keys below 0 never are."""
    if not len(known):
        return torch.full_like(keys, -1)
    places = torch.searchsorted(known, keys).clamp(max=len(known) - 1)
    return torch.where(known[places] == keys, places, -1)
