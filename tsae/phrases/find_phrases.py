"""Frequent phrases of several tokens in the training text, for which features are sought (C10).

The phrases are those that the text repeats more often than its tokens would by chance, so no example is chosen by hand.

The documents with a phrase are split into two halves. A feature is chosen on the occurrences in one half and scored on
those in the other, so a feature of one document does not pass for one of the phrase. Each half comes with other tokens
of the same documents, drawn from each document in proportion to the phrase's occurrences. A feature of the topic fires
on these, a feature of the phrase does not.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from tsae.phrases.phrases import Context, Half, Phrase, order_for_examples, write_phrases
from tsae.profile.evaluation import Phrases
from tsae.store.arguments import Folder
from tsae.text.tokens import load_tokenizer, load_tokens

LOG = logging.getLogger(__name__)
MAX_OVERLAP = 0.5  # share of a candidate's occurrences that may overlap better phrases
CONTEXT_BEFORE, CONTEXT_AFTER = 8, 4  # tokens shown around an occurrence


class _Candidate(NamedTuple):
    nats_saved: float
    tokens: tuple[int, ...]
    starts: np.ndarray  # places of the first token


def find_phrases(ids: Tensor, documents: Tensor, decode: Callable[[list[int]], str], settings: Phrases) -> list[Phrase]:
    """Frequent phrases, best first: runs of letters-only tokens from the start of a word to the end of a word.

    Candidates are ranked by count * log(p(phrase) / (p(token_1) ... p(token_n))), the nats saved by coding the phrase
    as one unit. Of candidates that overlap in the text, the best one stays.

    Args:
        ids: (n_seq, n_ctx) int32.
        documents: (n_seq, n_ctx) int32, each token's document; -1 at BOS.
        decode: text of token ids, which keeps the leading space of a single token.
        settings: lengths, frequencies and numbers.

    Returns:
        At most `settings.n_phrases` phrases, each with at most `settings.max_occurrences` seeded occurrences, spread
        evenly over its documents. Phrases of few documents, or nearly all in one, are left out.

    Raises:
        ValueError: shapes differ.
    """
    if ids.shape != documents.shape:
        raise ValueError(f"documents of shape {tuple(documents.shape)} for tokens of shape {tuple(ids.shape)}")
    tokens, lines = (column.numpy().astype(np.int64).ravel() for column in (ids, documents))
    covered = np.zeros(len(tokens), dtype=bool)
    chosen: list[_Chosen] = []
    n_of_one_document = 0
    for candidate in sorted(_find_candidates(tokens, lines, decode, settings), key=lambda c: (-c.nats_saved, c.tokens)):
        places = _places(candidate.starts, len(candidate.tokens))
        if covered[places].any(1).mean() > MAX_OVERLAP:
            continue
        # A generator per phrase, so that no phrase depends on the others.
        rng = np.random.default_rng([settings.seed, *candidate.tokens])
        starts = _spread(candidate.starts, lines, settings.max_occurrences, rng)
        first = _first_half(lines[starts], rng)
        if min(first.sum(), (~first).sum()) < settings.min_scored:
            n_of_one_document += 1
            continue
        covered[places] = True
        chosen.append(_Chosen(candidate, starts[first], starts[~first], rng))
        if len(chosen) == settings.n_phrases:
            break
    LOG.info(
        "%d phrases left out: fewer than %d occurrences in one half of their documents",
        n_of_one_document,
        settings.min_scored,
    )
    text = _Text(tokens, lines, decode, _places_of(lines, [lines[each.candidate.starts] for each in chosen]))
    return [_describe(each, text, settings.base_tokens) for each in chosen]


class _Chosen(NamedTuple):
    candidate: _Candidate
    choosing: np.ndarray  # starts in either half of the documents
    scoring: np.ndarray
    rng: np.random.Generator


class _Text(NamedTuple):
    tokens: np.ndarray
    lines: np.ndarray  # the document of each
    decode: Callable[[list[int]], str]
    places_of: Mapping[int, np.ndarray]  # a document's places


def _places(starts: np.ndarray, n: int) -> np.ndarray:
    """Places of the n tokens from each start on (m, n)."""
    return starts[:, None] + np.arange(n)


def _places_of(lines: np.ndarray, wanted: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
    """The places of each document that occurs in `wanted`, ascending."""
    if not wanted:
        return {}
    places = np.flatnonzero(np.isin(lines, np.unique(np.concatenate(wanted))))
    return {int(lines[group[0]]): group for group in _group(places, lines[places], 1)}


def _describe(chosen: _Chosen, text: _Text, base_tokens: int) -> Phrase:
    """A phrase with other tokens of its documents, and the context of an occurrence."""
    tokens, everywhere = chosen.candidate.tokens, _places(chosen.candidate.starts, len(chosen.candidate.tokens))

    def half(starts: np.ndarray) -> Half:
        documents, per_occurrence = text.lines[starts], -(-base_tokens // (2 * len(starts)))
        others = []
        for document, count in zip(*np.unique(documents, return_counts=True), strict=True):
            outside = np.setdiff1d(text.places_of[int(document)], everywhere)
            if len(outside):
                others.extend(chosen.rng.choice(outside, count * per_occurrence).tolist())
        return Half(tuple(starts.tolist()), tuple(documents.tolist()), tuple(others))

    return Phrase(
        tokens,
        text.decode(list(tokens)),
        len(chosen.candidate.starts),
        half(chosen.choosing),
        half(chosen.scoring),
        _context(int(chosen.scoring[0]), len(tokens), text),
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
    """At most `most` of the starts, ascending, spread evenly over documents."""
    if len(starts) <= most:
        return starts
    shuffled = rng.permutation(starts)
    kept: np.ndarray = np.sort(shuffled[np.argsort(_ranks(lines[shuffled]), kind="stable")[:most]])
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


def _context(start: int, n: int, text: _Text) -> Context:
    """The context of the n tokens from `start` on, within the document."""
    low, high = start, start + n
    while low > max(start - CONTEXT_BEFORE, 0) and text.lines[low - 1] == text.lines[start]:
        low -= 1
    end = min(start + n + CONTEXT_AFTER, len(text.lines))
    while high < end and text.lines[high] == text.lines[start]:
        high += 1
    return Context(low, tuple(text.decode([token]) for token in text.tokens[low:high].tolist()), start - low)


def _find_candidates(
    tokens: np.ndarray, lines: np.ndarray, decode: Callable[[list[int]], str], settings: Phrases
) -> list[_Candidate]:
    """All runs that are frequent enough in the whole split, given as tokens and the documents of each."""
    is_text = lines >= 0
    n_vocabulary = int(tokens.max()) + 1
    counts = np.bincount(tokens[is_text], minlength=n_vocabulary)
    log_p = np.log(np.maximum(counts, 1) / max(is_text.sum(), 1))
    starts_word, continues_word = _describe_tokens(n_vocabulary, counts, decode)
    usable = (starts_word | continues_word) & ~_most_common(tokens[is_text], lines[is_text], counts, settings.n_common)
    in_run = is_text & usable[tokens]
    # Whether the next token is of the same document, and so of the same sequence.
    linked = (lines == np.roll(lines, -1)) & is_text
    word_goes_on = linked & continues_word[np.roll(tokens, -1)]

    # `run` holds the starts of the runs of n tokens, `label` a number per run, equal for equal tokens.
    run, label = in_run.nonzero()[0], tokens[in_run]
    candidates, n_of_few_documents = [], 0
    for n in range(2, max(settings.lengths) + 1):
        last = run + n - 2
        longer = linked[last]
        longer[longer] = in_run[last[longer] + 1]
        run = run[longer]
        label = np.unique(label[longer] * n_vocabulary + tokens[run + n - 1], return_inverse=True)[1]
        if n in settings.lengths:
            whole = starts_word[tokens[run]] & ~word_goes_on[run + n - 1]
            for starts in _group(run[whole], label[whole], settings.min_count):
                if len(np.unique(lines[starts])) < settings.min_documents:
                    n_of_few_documents += 1
                    continue
                phrase = tuple(tokens[starts[0] : starts[0] + n].tolist())
                information = np.log(len(starts) / is_text.sum()) - log_p[list(phrase)].sum()
                if information > 0:
                    candidates.append(_Candidate(len(starts) * float(information), phrase, starts))
    LOG.info(
        "%d frequent runs of tokens left out: in fewer than %d documents", n_of_few_documents, settings.min_documents
    )
    return candidates


def _describe_tokens(
    n_vocabulary: int, counts: np.ndarray, decode: Callable[[list[int]], str]
) -> tuple[np.ndarray, np.ndarray]:
    """Masks (V,) of the letters-only tokens that start a word with a space, and of those that continue a word."""
    starts, continues = np.zeros(n_vocabulary, dtype=bool), np.zeros(n_vocabulary, dtype=bool)
    for token in counts.nonzero()[0].tolist():
        text = decode([token])
        starts[token] = text.startswith(" ") and text[1:].isalpha()
        continues[token] = text.isalpha()
    return starts, continues


def _most_common(tokens: np.ndarray, lines: np.ndarray, counts: np.ndarray, n_common: int) -> np.ndarray:
    """Mask (V,) of the tokens in the most documents; counts would include the topic of one long document."""
    n_lines = int(lines.max()) + 1
    n_documents = np.bincount(np.unique(tokens * n_lines + lines) // n_lines, minlength=len(counts))
    common = np.zeros(len(counts), dtype=bool)
    common[np.lexsort((-counts, -n_documents))[:n_common]] = True
    return common


def _group(places: np.ndarray, labels: np.ndarray, min_count: int) -> list[np.ndarray]:
    """Ascending places of each label that has at least min_count of them."""
    order = np.argsort(labels, kind="stable")
    groups = np.split(places[order], np.diff(labels[order]).nonzero()[0] + 1)
    return [group for group in groups if len(group) >= min_count]


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
    split = load_tokens(train)
    phrases = find_phrases(split.ids, split.documents, decode, settings)
    LOG.info("%d phrases: %s", len(phrases), ", ".join(repr(phrase.text) for phrase in phrases[:10]))
    order_for_examples(phrases, settings.example)
    write_phrases(output, phrases)
