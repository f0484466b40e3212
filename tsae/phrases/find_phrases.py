"""Frequent phrases of several tokens in the training text, for which features are sought (C10).

The phrases are those that the text repeats more often than its tokens would by chance, so no example is chosen by hand.

The documents with a phrase are split into two halves. A feature is chosen on the occurrences in one half and scored on
those in the other, so a feature of one document does not pass for one of the phrase. Each half comes with other tokens
of the same documents, drawn from each document in proportion to the phrase's occurrences. A feature of the topic fires
on these, a feature of the phrase does not.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tsae.phrases.candidates import (
    MOST_RECORDS,
    Candidates,
    Runs,
    Vocabulary,
    describe_tokens,
    find_again,
    find_candidates,
    parts,
)
from tsae.phrases.phrases import Context, Half, Phrase, order_for_examples, write_phrases
from tsae.profile.evaluation import Phrases
from tsae.store import files
from tsae.store.arguments import Folder
from tsae.text.tokens import TokenText, load_tokenizer, open_text

LOG = logging.getLogger(__name__)
MAX_OVERLAP = 0.5  # share of a candidate's occurrences that may overlap better phrases
CONTEXT_BEFORE, CONTEXT_AFTER = 8, 4  # tokens shown around an occurrence
MOST_CANDIDATES = 1 << 16  # that are in memory; if too few of them are phrases, all are counted again and more are kept


class _Chosen(NamedTuple):
    tokens: tuple[int, ...]
    n_occurrences: int
    choosing: np.ndarray  # starts in either half of the documents
    scoring: np.ndarray
    documents: Mapping[int, int]  # the document of each of these starts
    inside: np.ndarray  # all starts in these documents, ascending
    rng: np.random.Generator


def find_phrases(text: TokenText, decode: Callable[[list[int]], str], settings: Phrases, folder: Path) -> list[Phrase]:
    """Frequent phrases, best first: runs of letters-only tokens from the start of a word to the end of a word.

    Candidates are ranked by count * log(p(phrase) / (p(token_1) ... p(token_n))), the nats saved by coding the phrase
    as one unit. Of candidates that overlap in the text, the best one stays.

    Args:
        text: the training split.
        decode: text of token ids, which keeps the leading space of a single token.
        settings: lengths, frequencies and numbers.
        folder: where occurrences of runs wait while they are counted.

    Returns:
        At most `settings.n_phrases` phrases, each with at most `settings.max_occurrences` seeded occurrences, spread
        evenly over its documents. Phrases of few documents, or nearly all in one, are left out.
    """
    vocabulary, most = describe_tokens(text, decode, settings.n_common), MOST_CANDIDATES
    while True:
        candidates, n_found = find_candidates(text, vocabulary, settings, most, folder)
        chosen = _choose(text, vocabulary, candidates, settings)
        if len(chosen) == settings.n_phrases or n_found <= most:
            break
        most *= 8
    spans = _spans_of(text, [document for each in chosen for document in each.documents.values()])
    return [_describe(each, text, spans, decode, settings.base_tokens) for each in chosen]


def _choose(text: TokenText, vocabulary: Vocabulary, candidates: Candidates, settings: Phrases) -> list[_Chosen]:
    """The candidates that become phrases, best first."""
    covered = np.zeros(0, dtype=np.int64)  # places, ascending
    chosen: list[_Chosen] = []
    n_of_one_document = 0
    for starts, lines, (tokens,) in _occurrences(text, vocabulary, candidates):
        places = starts[:, None] + np.arange(len(tokens))
        overlaps = _is_among(places, covered)
        if overlaps.any(1).mean() > MAX_OVERLAP:
            continue
        # A generator per phrase, so that no phrase depends on the others.
        rng = np.random.default_rng([settings.seed, *tokens])
        kept = _spread(starts, lines, settings.max_occurrences, rng)
        documents = lines[np.searchsorted(starts, kept)]
        first = _first_half(documents, rng)
        if min(first.sum(), (~first).sum()) < settings.min_scored:
            n_of_one_document += 1
            continue
        new = np.unique(places[~overlaps])
        covered = np.insert(covered, np.searchsorted(covered, new), new)
        inside = starts[np.isin(lines, documents)]
        document_of = dict(zip(kept.tolist(), documents.tolist(), strict=True))
        chosen.append(_Chosen(tuple(tokens.tolist()), len(starts), kept[first], kept[~first], document_of, inside, rng))
        if len(chosen) == settings.n_phrases:
            break
    LOG.info(
        "%d phrases left out: fewer than %d occurrences in one half of their documents",
        n_of_one_document,
        settings.min_scored,
    )
    return chosen


def _occurrences(text: TokenText, vocabulary: Vocabulary, candidates: Candidates) -> Iterator[Runs]:
    """All occurrences of each candidate, best first. The text is read again for as many of them as memory holds."""
    first, ends = 0, candidates.counts.cumsum()
    while first < len(ends):
        before = ends[first] - candidates.counts[first]
        last = max(first + 1, int(np.searchsorted(ends, before + MOST_RECORDS, side="right")))
        yield from find_again(text, vocabulary, candidates.tokens[first:last])
        first = last


def _is_among(places: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Mask of the places that are among ascending ones."""
    if not len(covered):
        return np.zeros(places.shape, dtype=bool)
    found: np.ndarray = covered[np.searchsorted(covered, places).clip(max=len(covered) - 1)] == places
    return found


def _spans_of(text: TokenText, documents: Sequence[int]) -> dict[int, list[range]]:
    """The places of each of these documents, as ranges in the order of the text."""
    spans: dict[int, list[range]] = {}
    wanted = np.unique(np.array(documents, dtype=np.int64))
    for first, _, lines in parts(text):
        places = np.flatnonzero(_is_among(lines, wanted))
        new = np.flatnonzero((np.diff(places, prepend=-2) > 1) | (np.diff(lines[places], prepend=-1) != 0))
        for group in np.split(places, new[1:]) if len(places) else ():
            spans.setdefault(int(lines[group[0]]), []).append(range(first + group[0], first + group[-1] + 1))
    return spans


def _describe(
    chosen: _Chosen,
    text: TokenText,
    spans: Mapping[int, Sequence[range]],
    decode: Callable[[list[int]], str],
    base_tokens: int,
) -> Phrase:
    """A phrase with other tokens of its documents, and the context of an occurrence."""
    everywhere = (chosen.inside[:, None] + np.arange(len(chosen.tokens))).ravel()

    def half(starts: np.ndarray) -> Half:
        documents = [chosen.documents[start] for start in starts.tolist()]
        per_occurrence, others = -(-base_tokens // (2 * len(starts))), []
        for document, count in zip(*np.unique(documents, return_counts=True), strict=True):
            places = np.concatenate([np.arange(span.start, span.stop) for span in spans[int(document)]])
            outside = np.setdiff1d(places, everywhere)
            if len(outside):
                others.extend(chosen.rng.choice(outside, count * per_occurrence).tolist())
        return Half(tuple(starts.tolist()), tuple(documents), tuple(others))

    return Phrase(
        chosen.tokens,
        decode(list(chosen.tokens)),
        chosen.n_occurrences,
        half(chosen.choosing),
        half(chosen.scoring),
        _context(int(chosen.scoring[0]), len(chosen.tokens), text, decode),
    )


def _ranks(labels: np.ndarray) -> np.ndarray:
    """For each label (n,) the number of equal ones before it."""
    order = np.argsort(labels, kind="stable")
    new = np.diff(labels[order], prepend=labels[order[:1]] - 1) != 0
    group_starts = np.maximum.accumulate(np.where(new, np.arange(len(labels)), 0))
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[order] = np.arange(len(labels)) - group_starts
    return ranks


def _spread(starts: np.ndarray, lines: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """At most `most` of the starts, ascending, spread evenly over their documents (n,)."""
    if len(starts) <= most:
        return starts
    shuffled = rng.permutation(len(starts))
    kept: np.ndarray = starts[np.sort(shuffled[np.argsort(_ranks(lines[shuffled]), kind="stable")[:most]])]
    return kept


def _first_half(documents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mask (n,) of the occurrences in one half of the documents; both halves hold about as many occurrences."""
    named, counts = np.unique(documents, return_counts=True)
    order = rng.permutation(len(named))
    sizes, first = [0, 0], []
    # Largest first, each to the smaller half.
    for index in order[np.argsort(-counts[order], kind="stable")]:
        smaller = int(sizes[1] < sizes[0])
        sizes[smaller] += counts[index]
        if smaller == 0:
            first.append(named[index])
    return np.isin(documents, first)


def _context(start: int, n: int, text: TokenText, decode: Callable[[list[int]], str]) -> Context:
    """The context of the n tokens from `start` on, within the document."""
    first = max(start - CONTEXT_BEFORE, 0)
    tokens, lines = text.read(first, min(start + n + CONTEXT_AFTER, text.n_tokens))
    other = np.flatnonzero(lines != lines[start - first])
    low, high = (other[side] for side in (other < start - first, other > start - first))
    own = slice(low[-1] + 1 if len(low) else 0, high[0] if len(high) else len(lines))
    texts = tuple(decode([token]) for token in tokens[own].tolist())
    return Context(first + int(own.start), texts, start - first - int(own.start))


def find_phrases_of(model: Folder, train: Path, settings: Phrases, output: Path) -> None:
    """Find frequent phrases in the training text.

    Args:
        model: a model folder, for its tokenizer.
        train: the training split.
        settings: lengths, frequencies and numbers.
        output: where the phrases go.

    Raises:
        ValueError: the phrase `settings.example` is not among them.
    """
    decode: Any = load_tokenizer(model).decode
    text = open_text(train)
    output.parent.mkdir(parents=True, exist_ok=True)
    with files.naming(output):
        phrases = find_phrases(text, decode, settings, output.parent)
    LOG.info("%d phrases: %s", len(phrases), ", ".join(repr(phrase.text) for phrase in phrases[:10]))
    order_for_examples(phrases, settings.example)
    write_phrases(output, phrases)
