"""Frequent runs of tokens in a text of any length, which stays on disk.

Tokens are read in parts. Runs are first counted by a hash of their tokens, in a table of fixed size. Those that share a
number of the table with few others are rare. All others go to files, so that all occurrences of a run are in one file,
and each file fits in memory. There they are sorted and counted exactly. Memory grows with the documents, a few bytes each,
and not with the tokens.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from tsae.profile.evaluation import Phrases
from tsae.text.tokens import TokenText

LOG = logging.getLogger(__name__)
PART_TOKENS = 1 << 21  # read at a time
MOST_RECORDS = 1 << 23  # occurrences of runs that are in memory at a time
MOST_FILES = 256  # open at a time; beyond 2 G occurrences files are larger than MOST_RECORDS
HASHES = 1 << 24  # numbers that runs are first counted by
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / the golden ratio, as in Fibonacci hashing


class Vocabulary(NamedTuple):
    """The tokens of a text."""

    log_p: np.ndarray
    """Log of the share of the text's tokens (V,); of a token that does not occur, as if it occurred once."""
    usable: np.ndarray
    """Whether a phrase may contain it (V,) bool."""
    starts_word: np.ndarray
    """Whether it is letters after a space (V,) bool."""
    continues_word: np.ndarray
    """Whether it is letters alone (V,) bool."""
    n_text: int
    """Tokens of the text without BOS."""


class Candidates(NamedTuple):
    """Runs that occur often enough, best first."""

    nats_saved: np.ndarray
    """(n,)"""
    tokens: np.ndarray
    """Token ids (n, longest); -1 after the end of a shorter run."""
    counts: np.ndarray
    """Occurrences in the text (n,)."""

    def best(self, most: int) -> "Candidates":
        """At most so many, best first, then in the order of their tokens."""
        order = np.lexsort((*self.tokens.T[::-1], -self.nats_saved))[:most]
        return Candidates(*(column[order] for column in self))


class Runs(NamedTuple):
    """Occurrences of runs of equal length."""

    starts: np.ndarray
    """Place of the first token (m,), ascending."""
    lines: np.ndarray
    """Document of each (m,)."""
    tokens: np.ndarray
    """(m, n)"""


def parts(text: TokenText, beyond: int = 0) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The text in parts: the first place, and the tokens and documents from there on, up to `beyond` of the next part."""
    for first in range(0, text.n_tokens, PART_TOKENS):
        yield first, *text.read(first, min(first + PART_TOKENS + beyond, text.n_tokens))


def describe_tokens(text: TokenText, decode: Callable[[list[int]], str], n_common: int) -> Vocabulary:
    """Count the tokens of a text, and tell which of them phrases are made of: not the `n_common` in the most documents."""
    counts = np.zeros(0, dtype=np.int64)
    part_of, in_several = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=bool)  # of a document: its last part, if any
    for number, (_, tokens, lines) in enumerate(parts(text), start=1):
        is_text = lines >= 0
        counts = _longer(counts, tokens.max() + 1)
        counts += np.bincount(tokens[is_text], minlength=len(counts))
        here = np.unique(lines[is_text])
        part_of, in_several = (_longer(each, lines.max() + 1) for each in (part_of, in_several))
        in_several[here] |= part_of[here] > 0
        part_of[here] = number
    starts, continues = np.zeros(len(counts), dtype=bool), np.zeros(len(counts), dtype=bool)
    for token in counts.nonzero()[0].tolist():
        word = decode([token])
        starts[token] = word.startswith(" ") and word[1:].isalpha()
        continues[token] = word.isalpha()
    n_documents = _count_documents(text, len(counts), in_several)
    # Counts would include the topic of one long document.
    common = np.lexsort((-counts, -n_documents))[:n_common]
    usable = starts | continues
    usable[common] = False
    n_text = int(counts.sum())
    return Vocabulary(np.log(np.maximum(counts, 1) / max(n_text, 1)), usable, starts, continues, n_text)


def _longer(column: np.ndarray, length: int) -> np.ndarray:
    """The column, with zeros behind it up to a length."""
    return np.pad(column, (0, max(0, length - len(column))))


def _count_documents(text: TokenText, n_vocabulary: int, in_several: np.ndarray) -> np.ndarray:
    """Documents that each token occurs in (V,). Those that are in several parts are few, and counted at the end."""
    n_documents = np.zeros(n_vocabulary, dtype=np.int64)
    at_the_end = []
    for _, tokens, lines in parts(text):
        is_text = lines >= 0
        pairs = np.unique(tokens[is_text] * len(in_several) + lines[is_text])
        later = in_several[pairs % len(in_several)]
        at_the_end.append(pairs[later])
        n_documents += np.bincount(pairs[~later] // len(in_several), minlength=n_vocabulary)
    pairs = np.unique(np.concatenate(at_the_end))
    return n_documents + np.bincount(pairs // max(1, len(in_several)), minlength=n_vocabulary)


def find_candidates(
    text: TokenText, vocabulary: Vocabulary, settings: Phrases, most: int, folder: Path
) -> tuple[Candidates, int]:
    """Runs that occur often enough and more often than by chance: at most so many, and how many there are.

    Args:
        text: the text.
        vocabulary: its tokens.
        settings: lengths and frequencies.
        most: runs to return.
        folder: where the files go that runs wait in, 12 bytes and 4 for each token per occurrence.
    """
    longest, n_found, n_of_few_documents = max(settings.lengths), 0, 0
    best = Candidates(np.zeros(0), np.zeros((0, longest), dtype=np.int64), np.zeros(0, dtype=np.int64))
    for n in sorted(set(settings.lengths)):
        with _sorted_into_files(text, vocabulary, n, settings.min_count, folder) as files:
            for file in files:
                file.seek(0)
                records = np.fromfile(file, dtype=_record(n))
                file.close()
                tokens, counts, n_documents = _count(records, settings.min_count)
                n_of_few_documents += int((n_documents < settings.min_documents).sum())
                information = np.log(counts / vocabulary.n_text) - vocabulary.log_p[tokens].sum(1)
                chosen = (n_documents >= settings.min_documents) & (information > 0)
                n_found += int(chosen.sum())
                padded = np.pad(tokens[chosen], ((0, 0), (0, longest - n)), constant_values=-1)
                found = Candidates((counts * information)[chosen], padded, counts[chosen])
                best = Candidates(*map(np.concatenate, zip(best, found, strict=True))).best(most)
    LOG.info(
        "%d frequent runs of tokens left out: in fewer than %d documents", n_of_few_documents, settings.min_documents
    )
    return best, n_found


def _record(n: int) -> np.dtype:
    return np.dtype([("start", np.int64), ("line", np.int32), ("tokens", np.int32, (n,))])


@contextmanager
def _sorted_into_files(
    text: TokenText, vocabulary: Vocabulary, n: int, min_count: int, folder: Path
) -> Iterator[Sequence[IO[bytes]]]:
    """Files of all runs that may occur `min_count` times, those of equal tokens in one file, in the order of the text."""
    bits = int(min(HASHES, max(2, text.n_tokens)) - 1).bit_length()
    sizes = np.zeros(1 << bits, dtype=np.int64)
    for found in runs(text, vocabulary, n):
        np.add.at(sizes, _hash(found.tokens, bits), 1)
    sizes[sizes < min_count] = 0
    most = max(MOST_RECORDS, -(-int(sizes.sum()) // MOST_FILES))
    file_of = np.where(sizes, sizes.cumsum() // (most + 1), -1).astype(np.int16)
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(file_of.max() + 1)]
        for found in runs(text, vocabulary, n):
            places = file_of[_hash(found.tokens, bits)]
            order = np.argsort(places, kind="stable")
            records = np.empty(len(order), dtype=_record(n))
            records["start"], records["line"], records["tokens"] = (column[order] for column in found)
            ends = np.searchsorted(places[order], np.arange(len(files) + 1))
            for file, start, end in zip(files, ends[:-1], ends[1:], strict=True):
                file.write(records[start:end].tobytes())
        del sizes, file_of
        yield files


def runs(text: TokenText, vocabulary: Vocabulary, n: int) -> Iterator[Runs]:
    """The runs of n tokens, of one document and sequence each, from the start of a word to the end of one, part by part."""
    for first, tokens, lines in parts(text, beyond=n):
        # Whether the next token is of the same document, and so of the same sequence, since BOS separates sequences.
        linked = np.append((lines[1:] == lines[:-1]) & (lines[1:] >= 0), False)
        in_run = (lines >= 0) & vocabulary.usable[tokens]
        word_goes_on = linked & np.append(vocabulary.continues_word[tokens[1:]], False)
        starts = np.flatnonzero(in_run[:PART_TOKENS] & vocabulary.starts_word[tokens[:PART_TOKENS]])
        for place in range(1, n):
            starts = starts[linked[starts + place - 1]]
            starts = starts[in_run[starts + place]]
        starts = starts[~word_goes_on[starts + n - 1]]
        yield Runs(first + starts, lines[starts], tokens[starts[:, None] + np.arange(n)])


def _hash(tokens: np.ndarray, bits: int) -> np.ndarray:
    """A number below 2^bits for each run (m, n), equal for equal tokens."""
    mixed = np.zeros(len(tokens), dtype=np.uint64)
    for column in tokens.T:
        mixed = (mixed + column.astype(np.uint64) + np.uint64(1)) * MULTIPLIER
        mixed ^= mixed >> np.uint64(32)
    return (mixed >> np.uint64(64 - bits)).astype(np.int64)


def _count(records: np.ndarray, min_count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tokens of each run that occurs often enough (m, n), how often it does, and in how many documents (m,)."""
    records = records[np.lexsort(records["tokens"].T[::-1])]
    tokens = records["tokens"]
    is_new = np.append(True, (tokens[1:] != tokens[:-1]).any(1))[: len(records)]
    counts = np.diff(np.append(np.flatnonzero(is_new), len(records)))
    often = np.repeat(counts >= min_count, counts)
    records, counts, is_new = records[often], counts[counts >= min_count], is_new[often]
    n_lines = int(records["line"].max(initial=0)) + 1
    pairs = np.unique((is_new.cumsum() - 1) * n_lines + records["line"])
    n_documents = np.bincount(pairs // n_lines, minlength=len(counts))
    return records["tokens"][is_new].astype(np.int64), counts, n_documents


def find_again(text: TokenText, vocabulary: Vocabulary, wanted: np.ndarray) -> list[Runs]:
    """Every occurrence of each of some runs (m, longest), which are padded with -1."""
    n_vocabulary, lengths = len(vocabulary.usable), (wanted >= 0).sum(1)
    found: dict[int, Runs] = {}
    for n in np.unique(lengths).tolist():
        rows = np.flatnonzero(lengths == n)
        # A number for each beginning of the runs: that of a longer one follows from the number before and a token.
        known, numbers = [], wanted[rows, 0]
        for place in range(1, n):
            keys, numbers = np.unique(numbers * n_vocabulary + wanted[rows, place], return_inverse=True)
            known.append(keys)
        row_of = rows[np.argsort(numbers)]
        occurrences = []
        for part in runs(text, vocabulary, n):
            matched, numbers = np.arange(len(part.starts)), part.tokens[:, 0]
            for place, keys in enumerate(known, start=1):
                numbers = numbers * n_vocabulary + part.tokens[matched, place]
                places = np.searchsorted(keys, numbers).clip(max=len(keys) - 1)
                same = keys[places] == numbers
                matched, numbers = matched[same], places[same]
            occurrences.append((row_of[numbers], part.starts[matched], part.lines[matched]))
        of_row, starts, lines = (np.concatenate(column) for column in zip(*occurrences, strict=True))
        order = np.argsort(of_row, kind="stable")
        for row in rows.tolist():
            here = order[slice(*np.searchsorted(of_row, [row, row + 1], sorter=order))]
            found[row] = Runs(starts[here], lines[here], wanted[row : row + 1, :n])
    return [found[row] for row in range(len(wanted))]
