"""Choose held-out documents and a piece of each: many documents, of the same kind of text as the training split."""

import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tsae.profile.inputs import Tokens
from tsae.text.cut import cut_for
from tsae.text.documents import Document

# The rest of a held-out document is lost, since it may not be trained on. So a document longer than LONGEST times the largest
# piece stays in training while shorter ones of its source suffice. docs/methods.md says what that was measured to change.
LONGEST = 4
# A source may give at most MOST_DOCUMENTS times the documents that its tokens would fill at the mean length of a piece.
# Otherwise documents of a few tokens each could make up the number.
MOST_DOCUMENTS = 10


class TokenizedDocument(NamedTuple):
    """Tokens of a document or of a piece of it, without BOS."""

    line: int
    """Index of its line in the documents file."""
    ids: np.ndarray
    """Token ids (n,) int32."""


Read = Callable[[Sequence[int]], Iterator[TokenizedDocument]]


@dataclass
class _Source:
    lines: list[int]
    """Lines of its documents, shuffled."""
    wanted: int
    """Tokens to hold out."""
    taken: dict[int, TokenizedDocument] = field(default_factory=dict)
    """Whole documents to hold out, by line."""

    @property
    def most(self) -> int:
        """Documents that may be held out: half, to leave text of the source for training."""
        return len(self.lines) // 2


def hold_out(
    documents: Sequence[Document], order: Sequence[int], read: Read, settings: Tokens
) -> list[TokenizedDocument]:
    """Choose pieces of documents that fill the held-out split exactly.

    Each source gets its share of the corpus in characters, but at most half of its documents; sources with more documents make
    up the difference. One contiguous piece of a document is held out, at a random place because beginnings are another kind of
    text. A document no longer than the pieces of its source is held out whole.

    Args:
        documents: the corpus.
        order: shuffled indices of the documents to choose from.
        read: tokenizes documents, in the order of the indices that it gets.
        settings: sizes, the least number of documents, the largest share of one, and the seed of the places.

    Returns:
        Pieces in the order of `order`, `settings.heldout_text` tokens in all.

    Raises:
        ValueError: too few documents, or too short ones.
    """
    size, n_least = settings.heldout_text, settings.heldout_documents
    longest = settings.heldout_longest
    lines: dict[int, list[int]] = {}
    for line in order:
        lines.setdefault(documents[line].source, []).append(line)
    n_characters = sum(len(documents[line].text) for line in order)
    _check_number(n_least, sum(len(lines_of) // 2 for lines_of in lines.values()), len(order), n_characters)
    sources = _sources(documents, lines, size)
    missing = 0
    for source in sorted(sources.values(), key=lambda source: len(source.lines)):
        source.wanted += missing
        missing = _take(source, read, longest)
        source.wanted -= missing
    if missing:
        raise ValueError(
            f"tokens.heldout: {settings.heldout} needs {size} tokens of text, and half of the documents of each source, at most "
            f"{longest} tokens from one (tokens.heldout_share: {settings.heldout_share:g}), hold {size - missing}; lower it, "
            "or add to corpus.sources"
        )
    _add_documents(sources, documents, order, read, settings)
    pieces = {
        document.line: _piece(document, length, settings.seed)
        for source in sources.values()
        for document, length in zip(
            source.taken.values(),
            lengths_of_pieces([len(each.ids) for each in source.taken.values()], source.wanted),
            strict=True,
        )
    }
    return [pieces[line] for line in order if line in pieces]


def _sources(documents: Sequence[Document], lines: dict[int, list[int]], size: int) -> dict[int, _Source]:
    """Sources by number, each with its tokens of the split in proportion to its characters."""
    numbers = sorted(lines)
    characters = np.cumsum([sum(len(documents[line].text) for line in lines[number]) for number in numbers])
    ends = np.rint(size * (characters / characters[-1])).astype(int).tolist()
    return {
        number: _Source(lines[number], end - start)
        for number, start, end in zip(numbers, [0, *ends[:-1]], ends, strict=True)
    }


def _take(source: _Source, read: Read, longest: int) -> int:
    """Take documents until they hold the wanted tokens, and return how many are missing."""
    missing = source.wanted
    for document in _long_ones_last(source.lines, read, longest):
        if missing <= 0 or len(source.taken) == source.most:
            break
        source.taken[document.line] = document
        missing -= min(len(document.ids), longest)
    return max(0, missing)


def _add_documents(
    sources: dict[int, _Source], documents: Sequence[Document], order: Sequence[int], read: Read, settings: Tokens
) -> None:
    """Take more documents until there are as many as asked for, which makes their pieces shorter."""
    n_taken = sum(len(source.taken) for source in sources.values())
    for document in _long_ones_last(order, read, settings.heldout_longest):
        if n_taken >= settings.heldout_documents:
            return
        source = sources[documents[document.line].source]
        n_most = min(source.most, MOST_DOCUMENTS * source.wanted * settings.heldout_documents // settings.heldout_text)
        if document.line not in source.taken and len(source.taken) < min(n_most, source.wanted):
            source.taken[document.line] = document
            n_taken += 1
    n_characters = sum(len(documents[line].text) for line in order)
    _check_number(settings.heldout_documents, n_taken, len(order), n_characters)


def _check_number(n_least: int, n_most: int, n_documents: int, n_characters: int) -> None:
    if n_most < n_least:
        cut = cut_for(n_characters, n_least)
        raise ValueError(
            f"tokens.heldout_documents: {n_least} documents are to be held out, and of the {n_documents} of the corpus, each text "
            f"counted once, at most {n_most} can be: half of each source's, and few of a source with little text; lower it, add to "
            "corpus.sources" + (f", or cut long documents of local files with `cut: {cut}` there" if cut else "")
        )


def _long_ones_last(lines: Sequence[int], read: Read, longest: int) -> Iterator[TokenizedDocument]:
    """Documents with any token in order, then those that are too long, shortest first."""
    too_long = []
    for document in read(lines):
        if len(document.ids) > LONGEST * longest:
            too_long.append(document)
        elif len(document.ids) > 0:
            yield document
    yield from sorted(too_long, key=lambda document: len(document.ids))


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


def _piece(document: TokenizedDocument, length: int, seed: int) -> TokenizedDocument:
    start = np.random.default_rng([seed, document.line]).integers(len(document.ids) - length + 1)
    return document._replace(ids=document.ids[start : start + length])
