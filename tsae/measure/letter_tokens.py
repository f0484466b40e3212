"""Tokens of the text that begin with a letter, to train probes of the first letter on and to test them on.

Of all tokens of the vocabulary, a third are tested on and the others trained on, so a probe must know letters and not tokens. Probes are
trained on training residuals and tested on held-out ones. A token of the vocabulary, a type, has the same weight however often it occurs.

Which tokens they are depends on the layer's residuals and on no SAE. So one stage chooses them for all SAEs of a layer, and fits the probe
on residuals.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tsae.measure.probes import Probes, Sample, fit_probes
from tsae.measure.sequences import Sequences, load_sequences
from tsae.residuals.read import ResidualCache, open_residuals
from tsae.residuals.shards import evenly_spaced
from tsae.store.arguments import Folder
from tsae.store.files import NotOursError
from tsae.store.tensors import load_as, load_metadata, save_tensors
from tsae.text.tokens import load_tokenizer

TEST_SHARE = 1 / 3  # of the tokens of the vocabulary
MIN_TYPES = 5  # of a letter, in training and in test


class LetterTokens(NamedTuple):
    """Tokens that begin with a letter, to train probes on and to test them on, and the probes on their residuals."""

    x: Tensor
    """(n, d) float16 training residuals, as the shards hold them."""
    tokens: Tensor
    """(n,) int64, their ids."""
    sample: Sample
    """The classes of the n tokens: letters that have enough types."""
    places: Tensor
    """(m,) int64, the test tokens, as sequence * n_ctx + position in the held-out sequences, ascending."""
    test_tokens: Tensor
    """(m,) int64, their ids."""
    test: Sample
    """The classes of the m test tokens."""
    probes: Probes
    """A probe of each class on all coordinates of residuals, fitted to x."""

    def test_x(self, sequences: Sequences) -> Tensor:
        """(m, d) float32, the residuals of the test tokens in the held-out sequences."""
        return sequences.residuals.flatten(0, 1)[self.places].float()


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
    model: Path, train: ResidualCache, sequences: Sequences, probe_tokens: int, seed: int
) -> LetterTokens | None:
    """Choose the tokens and fit the probes on residuals; None if fewer than two letters have enough types, or none is wanted.

    Args:
        model: the model's folder, for its tokenizer.
        train: training residuals, of which the shards that the mean is taken over are read. They are on disk.
        sequences: held-out sequences.
        probe_tokens: the most training tokens.
        seed: chooses the types to test on.
    """
    if not probe_tokens:
        return None
    # Shards are opened again for their residuals, so that one at a time is mapped to memory.
    kept = [train.kept(index).nonzero().flatten() for index in train.sampled]
    ids = torch.cat([train.shard(index).tokens[rows].long() for index, rows in zip(train.sampled, kept, strict=True)])
    heldout = sequences.tokens.flatten()
    letters = first_letters(model, torch.cat([ids, heldout]), train.vocab_size)
    to_test = torch.zeros(train.vocab_size, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    to_test[torch.randperm(train.vocab_size, generator=generator)[: int(TEST_SHARE * train.vocab_size)]] = True
    candidates = ((letters >= 0) & ~to_test)[ids].nonzero().flatten()
    chosen = candidates[evenly_spaced(len(candidates), probe_tokens)]
    places = (sequences.kept.flatten() & ((letters >= 0) & to_test)[heldout]).nonzero().flatten()
    tokens, test_tokens = ids[chosen], heldout[places]
    n_types = [torch.bincount(letters[part.unique()], minlength=26) for part in (tokens, test_tokens)]
    enough = (n_types[0] >= MIN_TYPES) & (n_types[1] >= MIN_TYPES)
    n_classes = int(enough.sum())
    if n_classes < 2:
        return None
    classes = torch.where(enough, enough.cumsum(0) - 1, -1)
    of_shards = zip(train.sampled, kept, _by_shard(chosen, kept), strict=True)
    x = torch.cat([train.shard(index).residuals[rows[part]] for index, rows, part in of_shards])
    sample = Sample.of(tokens, classes[letters[tokens]], n_classes)
    test = Sample.of(test_tokens, classes[letters[test_tokens]], n_classes)
    return LetterTokens(x, tokens, sample, places, test_tokens, test, fit_probes(x.float(), sample))


def _by_shard(chosen: Tensor, kept: list[Tensor]) -> list[Tensor]:
    """Places among all kept tokens, ascending, as places among those of each shard."""
    ends = torch.tensor([len(rows) for rows in kept]).cumsum(0)
    starts = ends - torch.tensor([len(rows) for rows in kept])
    return [chosen[(chosen >= start) & (chosen < end)] - start for start, end in zip(starts, ends, strict=True)]


def write_letter_tokens(
    model: Folder, residuals: Path, heldout: Path, layer: int, probe_tokens: int, seed: int, output: Path
) -> None:
    """Choose the tokens of probes of the first letter.

    The file also holds the probe on residuals. It holds no tensor if fewer than two letters have enough types, or if no probe is
    wanted.

    Args:
        model: the language model, for its tokenizer.
        residuals: index of the residual cache.
        heldout: the held-out split.
        layer: the layer.
        probe_tokens: the most training tokens; 0: no probe is wanted.
        seed: chooses the types to test on.
        output: file for the `LetterTokens`.

    Raises:
        ValueError: the cache or the split is missing or damaged, or the cache lacks the layer.
    """
    sequences = load_sequences(open_residuals(residuals, "heldout", layer), heldout)
    found = gather_letter_tokens(model, open_residuals(residuals, "train", layer), sequences, probe_tokens, seed)
    tensors: dict[str, Tensor] = {}
    if found is not None:
        tensors = {
            "x": found.x,
            "tokens": found.tokens,
            "classes": found.sample.classes,
            "places": found.places,
            "test_classes": found.test.classes,
            **_transposed(found.probes)._asdict(),
        }
    n_classes = 0 if found is None else found.sample.n_classes
    save_tensors(output, tensors, {"n_classes": n_classes, "heldout": _digest(sequences)})


def load_letter_tokens(path: Path, sequences: Sequences) -> LetterTokens | None:
    """Read what `write_letter_tokens` wrote; None if it found too few letters, or no probe was wanted.

    Args:
        path: the file.
        sequences: the held-out sequences, whose tokens are tested on.

    Raises:
        ValueError: the file is missing, damaged, of other held-out sequences, or holds something else.
    """
    metadata = load_metadata(path)
    n_classes = metadata.get("n_classes")
    if not isinstance(n_classes, int):
        raise NotOursError(f"{path}: holds no tokens that begin with a letter")
    found = load_as(path, _kinds(sequences.residuals.shape[-1], n_classes) if n_classes else {})
    if metadata.get("heldout") != _digest(sequences):
        raise NotOursError(f"{path}: tokens of other held-out sequences")
    if not found:
        return None
    x, tokens, classes, places, test_classes = (
        found[name] for name in ("x", "tokens", "classes", "places", "test_classes")
    )
    if not len(x) == len(tokens) == len(classes) or len(places) != len(test_classes):
        raise NotOursError(f"{path}: holds columns of different lengths")
    test_tokens = sequences.tokens.flatten()[places]
    return LetterTokens(
        x,
        tokens,
        Sample.of(tokens, classes, n_classes),
        places,
        test_tokens,
        Sample.of(test_tokens, test_classes, n_classes),
        _transposed(Probes(*(found[name] for name in Probes._fields))),
    )


def _transposed(probes: Probes) -> Probes:
    """Probes whose directions are rows in place of columns, or the other way round.

    `fit_probes` leaves the numbers of a direction beside each other, and a product with another order in memory rounds otherwise. So
    the file has rows.
    """
    return probes._replace(directions=probes.directions.T)


def _kinds(d_model: int, n_classes: int) -> dict[str, tuple[tuple[int | None, ...], torch.dtype]]:
    """Shapes and dtypes of the tensors in the file."""
    ids = ((None,), torch.int64)
    return {
        "x": ((None, d_model), torch.float16),
        **dict.fromkeys(("tokens", "classes", "places", "test_classes"), ids),
        "mean": ((d_model,), torch.float32),
        "directions": ((n_classes, d_model), torch.float32),
        "thresholds": ((n_classes,), torch.float64),
    }


def _digest(sequences: Sequences) -> str:
    """sha256 of the ids of held-out tokens and of which are kept."""
    digest = hashlib.sha256()
    for part in (sequences.tokens, sequences.kept):
        digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()
