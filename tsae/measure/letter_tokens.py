"""Tokens of the text that begin with a letter, to train probes of the first letter on and to test them on.

Of all tokens of the vocabulary, a third are tested on and the others trained on, so a probe must know letters and not tokens. Probes are
trained on training residuals and tested on held-out ones. A token of the vocabulary, a type, has the same weight however often it occurs.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tsae.measure.probes import Sample
from tsae.measure.sequences import Sequences
from tsae.profile.evaluation import Evaluation
from tsae.residuals.read import ResidualCache
from tsae.residuals.shards import evenly_spaced
from tsae.text.tokens import load_tokenizer

TEST_SHARE = 1 / 3  # of the tokens of the vocabulary
MIN_TYPES = 5  # of a letter, in training and in test


class LetterTokens(NamedTuple):
    """Tokens that begin with a letter, to train probes on and to test them on."""

    x: Tensor
    """(n, d) float32 training residuals."""
    tokens: Tensor
    """(n,) their ids."""
    sample: Sample
    """The classes of the n tokens: letters that have enough types."""
    places: Tensor
    """(m,) the test tokens, as sequence * n_ctx + position in the held-out sequences."""
    test_x: Tensor
    """(m, d) float32 held-out residuals."""
    test_tokens: Tensor
    """(m,) their ids."""
    test: Sample
    """The classes of the m test tokens."""


def first_letters(model: Path, tokens: Tensor, vocab_size: int) -> Tensor:
    """The first letter of each token of the vocabulary (V,) int64: 0 to 25 in either case, -1 for all that begin with no letter a-z.

    White space before the letter does not count. Only tokens among `tokens` (...) are read; others are -1.
    """
    decode = load_tokenizer(model).decode
    letters = torch.full((vocab_size,), -1)
    for token in tokens.unique().tolist():
        first = str(decode([token])).lstrip()[:1].lower()
        if "a" <= first <= "z" and len(first) == 1:
            letters[token] = ord(first) - ord("a")
    return letters


def gather_letter_tokens(
    model: Path, train: ResidualCache, sequences: Sequences, settings: Evaluation
) -> LetterTokens | None:
    """Tokens to train and test probes on; None if fewer than two letters have enough types, or none is wanted.

    Args:
        model: the model's folder, for its tokenizer.
        train: training residuals, of which those on disk are read.
        sequences: held-out sequences.
        settings: `probe_tokens`, the most training tokens; `seed`, which chooses the types to test on.
    """
    if not settings.probe_tokens:
        return None
    shards = [train.shard(index) for index in range(len(train.shards)) if index not in train.streamed]
    kept = [shard.kept.nonzero().flatten() for shard in shards]
    ids = torch.cat([shard.tokens[rows].long() for shard, rows in zip(shards, kept, strict=True)])
    heldout = sequences.tokens.flatten()
    letters = first_letters(model, torch.cat([ids, heldout]), train.vocab_size)
    to_test = torch.zeros(train.vocab_size, dtype=torch.bool)
    generator = torch.Generator().manual_seed(settings.seed)
    to_test[torch.randperm(train.vocab_size, generator=generator)[: int(TEST_SHARE * train.vocab_size)]] = True
    candidates = ((letters >= 0) & ~to_test)[ids].nonzero().flatten()
    chosen = candidates[evenly_spaced(len(candidates), settings.probe_tokens)]
    places = (sequences.kept.flatten() & ((letters >= 0) & to_test)[heldout]).nonzero().flatten()
    tokens, test_tokens = ids[chosen], heldout[places]
    n_types = [torch.bincount(letters[part.unique()], minlength=26) for part in (tokens, test_tokens)]
    enough = (n_types[0] >= MIN_TYPES) & (n_types[1] >= MIN_TYPES)
    if enough.sum() < 2:
        return None
    classes = torch.where(enough, enough.cumsum(0) - 1, -1)
    rows = [
        shard.residuals[rows[part]] for shard, rows, part in zip(shards, kept, _by_shard(chosen, kept), strict=True)
    ]
    return LetterTokens(
        torch.cat(rows).float(),
        tokens,
        Sample.of(tokens, classes[letters[tokens]], int(enough.sum())),
        places,
        sequences.residuals.flatten(0, 1)[places].float(),
        test_tokens,
        Sample.of(test_tokens, classes[letters[test_tokens]], int(enough.sum())),
    )


def _by_shard(chosen: Tensor, kept: list[Tensor]) -> list[Tensor]:
    """Places among all kept tokens, ascending, as places among those of each shard."""
    ends = torch.tensor([len(rows) for rows in kept]).cumsum(0)
    starts = ends - torch.tensor([len(rows) for rows in kept])
    return [chosen[(chosen >= start) & (chosen < end)] - start for start, end in zip(starts, ends, strict=True)]
