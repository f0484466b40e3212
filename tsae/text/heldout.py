"""Choose held-out documents and a piece of each: many documents, of the same kind of text as the training split."""

import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tsae.profile.inputs import Tokens
from tsae.text.cut import cut_for
from tsae.text.documents import Catalogue

# The rest of a held-out document is lost, since it may not be trained on. So a document longer than LONGEST times the largest
# piece stays in training while shorter ones of its source suffice. docs/methods.md says what that was measured to change.
LONGEST = 4
# A source may give at most MOST_DOCUMENTS times the documents that its tokens would fill at the mean length of a piece.
# Otherwise documents of a few tokens each could make up the number.
MOST_DOCUMENTS = 10


class Piece(NamedTuple):
    """A part of a document that is held out."""

    line: int
    """Index of the document's line in the documents file."""
    start: int
    """Its first token in the document, which has no BOS."""
    stop: int
    """The token after its last one."""


Lengths = Callable[[np.ndarray], Iterator[int]]


@dataclass
class _Source:
    lines: np.ndarray
    """Lines of its documents, shuffled (n,)."""
    wanted: int
    """Tokens to hold out."""
    taken: dict[int, int] = field(default_factory=dict)
    """Documents to hold out: line -> length [tokens]."""

    @property
    def most(self) -> int:
        """Documents that may be held out: half, to leave text of the source for training."""
        return len(self.lines) // 2


def hold_out(catalogue: Catalogue, order: np.ndarray, lengths: Lengths, settings: Tokens) -> list[Piece]:
    """Choose pieces of documents that fill the held-out split exactly.

    Each source gets its share of the corpus in characters, but at most half of its documents; sources with more documents make
    up the difference. One contiguous piece of a document is held out, at a random place because beginnings are another kind of
    text. A document no longer than the pieces of its source is held out whole.

    Args:
        catalogue: the corpus.
        order: shuffled lines of the documents to choose from (n,).
        lengths: yields the lengths of documents in the order of the lines that it gets, each tokenized when it is asked for
            [tokens].
        settings: sizes, the least number of documents, the largest share of one, and the seed of the places.

    Returns:
        Pieces in the order of `order`, `settings.heldout_text` tokens in all.

    Raises:
        ValueError: too few documents, or too short ones.
    """
    size, n_least = settings.heldout_text, settings.heldout_documents
    longest = settings.heldout_longest
    n_characters = int(catalogue.n_characters[order].sum())
    n_documents = np.unique(catalogue.sources[order], return_counts=True)[1]
    _check_number(n_least, int((n_documents // 2).sum()), len(order), n_characters)
    sources = _sources(catalogue, order, size)
    missing = 0
    for source in sorted(sources.values(), key=lambda source: len(source.lines)):
        source.wanted += missing
        missing = _take(source, lengths, longest)
        source.wanted -= missing
    if missing:
        raise ValueError(
            f"tokens.heldout: {settings.heldout} needs {size} tokens of text, and half of the documents of each source, at most "
            f"{longest} tokens from one (tokens.heldout_share: {settings.heldout_share:g}), hold {size - missing}; lower it, "
            "or add to corpus.sources"
        )
    _add_documents(sources, catalogue, order, lengths, settings)
    pieces = {
        line: _piece(line, whole, length, settings.seed)
        for source in sources.values()
        for (line, whole), length in zip(
            source.taken.items(), lengths_of_pieces(list(source.taken.values()), source.wanted), strict=True
        )
    }
    return [pieces[line] for line in order[np.isin(order, list(pieces))].tolist()]


def _sources(catalogue: Catalogue, order: np.ndarray, size: int) -> dict[int, _Source]:
    """Sources by number, each with its tokens of the split in proportion to its characters."""
    source_of, n_characters = catalogue.sources[order], catalogue.n_characters[order]
    numbers = np.unique(source_of).tolist()
    characters = np.cumsum([n_characters[source_of == number].sum() for number in numbers])
    ends = np.rint(size * (characters / characters[-1])).astype(int).tolist()
    return {
        number: _Source(order[source_of == number], end - start)
        for number, start, end in zip(numbers, [0, *ends[:-1]], ends, strict=True)
    }


def _take(source: _Source, lengths: Lengths, longest: int) -> int:
    """Take documents until they hold the wanted tokens, and return how many are missing."""
    missing = source.wanted
    for line, length in _long_ones_last(source.lines, lengths, longest):
        if missing <= 0 or len(source.taken) == source.most:
            break
        source.taken[line] = length
        missing -= min(length, longest)
    return max(0, missing)


def _add_documents(
    sources: dict[int, _Source], catalogue: Catalogue, order: np.ndarray, lengths: Lengths, settings: Tokens
) -> None:
    """Take more documents until there are as many as asked for, which makes their pieces shorter."""
    n_taken = sum(len(source.taken) for source in sources.values())
    for line, length in _long_ones_last(order, lengths, settings.heldout_longest):
        if n_taken >= settings.heldout_documents:
            return
        source = sources[int(catalogue.sources[line])]
        n_most = min(source.most, MOST_DOCUMENTS * source.wanted * settings.heldout_documents // settings.heldout_text)
        if line not in source.taken and len(source.taken) < min(n_most, source.wanted):
            source.taken[line] = length
            n_taken += 1
    n_characters = int(catalogue.n_characters[order].sum())
    _check_number(settings.heldout_documents, n_taken, len(order), n_characters)


def _check_number(n_least: int, n_most: int, n_documents: int, n_characters: int) -> None:
    if n_most < n_least:
        cut = cut_for(n_characters, n_least)
        raise ValueError(
            f"tokens.heldout_documents: {n_least} documents are to be held out, and of the {n_documents} of the corpus, each text "
            f"counted once, at most {n_most} can be: half of each source's, and few of a source with little text; lower it, add to "
            "corpus.sources" + (f", or cut long documents of local files with `cut: {cut}` there" if cut else "")
        )


def _long_ones_last(lines: np.ndarray, lengths: Lengths, longest: int) -> Iterator[tuple[int, int]]:
    """Line and length of documents with any token in order, then those that are too long, shortest first."""
    too_long = []
    for line, length in zip(lines, lengths(lines), strict=True):
        if length > LONGEST * longest:
            too_long.append((int(line), length))
        elif length > 0:
            yield int(line), length
    yield from sorted(too_long, key=lambda document: document[1])


def lengths_of_pieces(whole: Sequence[int], size: int) -> list[int]:
    """Lengths of pieces that add up to `size`: documents up to some level are whole, longer ones are cut to it or one token more.

    Args:
        whole: lengths of the documents, at least `size` in all.
        size: sum of the lengths of the pieces.
    """
    level = bisect.bisect_right(
        range(1, max(whole, default=0) + 1), size, key=lambda level: sum(min(length, level) for length in whole)
    )
    lengths = [min(length, level) for length in whole]
    left = size - sum(lengths)
    for place, length in enumerate(whole):
        if left > 0 and length > level:
            lengths[place] += 1
            left -= 1
    return lengths


def _piece(line: int, whole: int, length: int, seed: int) -> Piece:
    start = int(np.random.default_rng([seed, line]).integers(whole - length + 1))
    return Piece(line, start, start + length)
