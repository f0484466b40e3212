import logging
import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tsae.phrases import candidates
from tsae.phrases import find_phrases as finding
from tsae.phrases.find_phrases import MAX_OVERLAP, find_phrases
from tsae.phrases.phrases import Context, Phrase, order_for_examples, read_phrases, write_phrases
from tsae.profile.evaluation import Phrases
from tsae.text.tokens import TokenText

SETTINGS = Phrases(min_count=4, min_scored=1, n_common=0)
WORDS = ["<bos>", ".", " the", " Golden", " Gate", " Bridge", "ing", " walk", " New", " York", " City", " 3", "\ufffd"]
BOS, DOT, THE, GOLDEN, GATE, BRIDGE, ING, WALK, NEW, YORK, CITY, THREE, BYTE = range(len(WORDS))


def decode(ids: list[int]) -> str:
    """Token ids beyond the list are words that occur once each."""
    return "".join(WORDS[i] if i < len(WORDS) else f" word{'x' * i}" for i in ids)


class Text:
    """Sequences of 8 tokens, written as their first tokens; the rest are words that occur once.

    Each sequence is a document of its own unless its document is said.
    """

    def __init__(self) -> None:
        self.ids: list[list[int]] = []
        self.documents: list[list[int]] = []
        self.next = len(WORDS)

    def add(
        self, tokens: list[int], times: int, document: int | None = None, documents: list[int] | None = None
    ) -> "Text":
        for _ in range(times):
            fill = list(range(self.next, self.next + 7 - len(tokens)))
            self.next += len(fill)
            own = 100 + len(self.ids) if document is None else document
            self.ids.append([BOS, *tokens, *fill])
            self.documents.append([-1, *(documents or [own] * 7)])
        return self

    def find(self, settings: Phrases = SETTINGS) -> list[Phrase]:
        return find(torch.tensor(self.ids), torch.tensor(self.documents), settings)


def find(
    ids: Tensor, documents: Tensor, settings: Phrases, decode: Callable[[list[int]], str] = decode
) -> list[Phrase]:
    """Phrases of a text in memory."""
    columns = [column.long().flatten().numpy() for column in (ids, documents)]

    def read(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        tokens, lines = (column[start:stop] for column in columns)
        return tokens, lines

    return find_phrases(TokenText(ids.numel(), read), decode, settings, Path(tempfile.gettempdir()))


def texts(phrases: list[Phrase]) -> list[str]:
    return [phrase.text for phrase in phrases]


def starts(phrase: Phrase) -> list[int]:
    return sorted([*phrase.choosing.starts, *phrase.scoring.starts])


def test_a_phrase_by_hand() -> None:
    text = Text().add([], 1).add([DOT, GOLDEN, GATE, BRIDGE, DOT], 2, document=0)
    text.add([THE, GOLDEN, GATE, BRIDGE], 3, document=1)
    # Of the two halves of the documents the first holds more; 3 occurrences of 3 tokens leave 12 of 21, and 2 leave 8 of 14.
    (phrase,) = text.find()
    assert phrase[:3] == ((GOLDEN, GATE, BRIDGE), " Golden Gate Bridge", 5)
    assert phrase.choosing[:2] == ((26, 34, 42), (1, 1, 1))
    assert phrase.scoring[:2] == ((10, 18), (0, 0))
    outside = {place for first in (24, 32, 40) for place in (first + 1, *range(first + 5, first + 8))}
    assert set(phrase.choosing.others) == outside and len(phrase.choosing.others) == 129
    assert set(phrase.scoring.others) == {
        place for first in (8, 16) for place in (first + 1, *range(first + 5, first + 8))
    }
    assert len(phrase.scoring.others) == 128
    words = (".", *(f" word{'x' * i}" for i in (20, 21)))
    assert phrase.context == Context(9, (".", " Golden", " Gate", " Bridge", *words), 1)
    assert texts(text.find(SETTINGS.model_copy(update={"lengths": (2,)}))) == [" Golden Gate"]


def test_runs_are_frequent_and_within_a_sequence_and_a_document() -> None:
    golden = [GOLDEN, GATE]
    assert Text().add(golden, 3).find() == []
    assert texts(Text().add(golden, 4).find()) == [" Golden Gate"]
    apart = Text()
    apart.ids = [[BOS, DOT, GOLDEN], [BOS, GATE, DOT]] * 4
    apart.documents = [[-1, row, row] for row in range(8)]
    assert apart.find() == []
    across = Text().add(golden, 3).add(golden, 1, documents=[0, 1, 1, 1, 1, 1, 1])
    assert across.find() == []


def test_phrases_are_of_several_documents(caplog: pytest.LogCaptureFixture) -> None:
    golden, caplog = [GOLDEN, GATE], caplog
    caplog.set_level(logging.INFO)
    assert Text().add(golden, 9, document=0).find() == []
    assert "1 frequent runs of tokens left out: in fewer than 2 documents" in caplog.text
    two = Text().add(golden, 7, document=0).add(golden, 2, document=1)
    assert texts(two.find()) == [" Golden Gate"]
    assert two.find(SETTINGS.model_copy(update={"min_documents": 3})) == []
    assert texts(two.find(SETTINGS.model_copy(update={"min_scored": 2}))) == [" Golden Gate"]
    caplog.clear()
    assert two.find(SETTINGS.model_copy(update={"min_scored": 3})) == []
    assert "1 phrases left out: fewer than 3 occurrences in one half of their documents" in caplog.text


def test_what_is_left_out_does_not_stand_in_the_way() -> None:
    text = Text().add([NEW, YORK, CITY, DOT], 30, document=0).add([NEW, YORK, CITY, DOT], 1, document=1)
    text.add([CITY, DOT], 4).add([NEW, DOT], 3, document=1)
    assert texts(text.find(SETTINGS.model_copy(update={"min_scored": 2}))) == []
    text.add([YORK, CITY], 2, document=2)
    assert texts(text.find(SETTINGS.model_copy(update={"min_scored": 2}))) == [" York City"]


def test_halves_share_no_document_and_are_of_one_size() -> None:
    text = Text()
    for document, times in enumerate((9, 5, 4, 3, 2, 1)):
        text.add([GOLDEN, GATE], times, document)
    (phrase,) = text.find()
    first, second = phrase.choosing.documents, phrase.scoring.documents
    assert not set(first) & set(second)
    assert (len(first), len(second)) == (12, 12)
    # Other tokens are drawn as often from a document as the phrase occurs in it.
    lines = torch.tensor(text.documents).flatten()
    for half in (phrase.choosing, phrase.scoring):
        drawn = Counter(lines[list(half.others)].tolist())
        assert drawn == {document: 11 * count for document, count in Counter(half.documents).items()}
        assert not any(text.ids[place // 8][place % 8] in (GOLDEN, GATE, BOS) for place in half.others)
    assert text.find() == [phrase]
    (other,) = text.find(SETTINGS.model_copy(update={"seed": 1}))
    assert other.choosing.others != phrase.choosing.others


def test_a_document_that_is_the_phrase_has_no_other_tokens() -> None:
    text = Text().add([GOLDEN, GATE], 4)
    for row in text.documents[:2]:
        row[3:] = [99] * 5
    (phrase,) = text.find()
    lines = torch.tensor(text.documents).flatten()
    assert {int(lines[place]) for half in (phrase.choosing, phrase.scoring) for place in half.others} == {102, 103}


def test_contexts_end_with_the_sequence_and_the_document() -> None:
    text = Text().add([THE, DOT, GOLDEN, GATE, DOT, THE], 8, documents=[0, 1, 1, 1, 1, 2, 2])
    for row in range(4):
        text.documents[row] = [-1, 3, 3, 3, 3, 3, 3, 3]
    (phrase,) = text.find()
    shown = {
        3: (1, (" the", ".", " Golden", " Gate", ".", " the", " word"), 2),
        1: (2, (".", " Golden", " Gate", "."), 1),
    }
    start, expected, before = shown[phrase.scoring.documents[0]]
    assert phrase.context.start % 8 == start
    assert phrase.context.before == before
    assert len(phrase.context.texts) == len(expected)
    assert all(text.startswith(word) for text, word in zip(phrase.context.texts, expected, strict=True))


@pytest.mark.parametrize("between", [DOT, THREE, BYTE])
def test_tokens_are_words(between: int) -> None:
    assert Text().add([between, GOLDEN, between, GATE, between], 9).find() == []


def test_phrases_begin_and_end_with_a_word() -> None:
    walking = Text().add([DOT, WALK, ING, DOT], 4).find()
    assert [(phrase.tokens, phrase.text) for phrase in walking] == [((WALK, ING), " walking")]
    assert texts(Text().add([DOT, ING, GATE, DOT], 4).find()) == []
    # " Golden walk" is found where " walk" is a whole word, and counted there only.
    text = Text().add([GOLDEN, WALK, DOT], 4).add([GOLDEN, WALK, ING, DOT], 3)
    assert [(phrase.text, phrase.n_occurrences, starts(phrase)) for phrase in text.find()] == [
        (" Golden walk", 4, [1, 9, 17, 25])
    ]


def test_common_tokens_are_those_of_many_documents() -> None:
    text = Text()
    for document in (0, 1):
        text.add([DOT, THE, BRIDGE], 4, document).add([BRIDGE, DOT, BRIDGE, CITY], 4, document)
    for document in range(2, 9):
        text.add([THE, DOT], 1, document).add([DOT], 4, document)
    text.add([GOLDEN, GATE], 4)
    # " Bridge" is more frequent than " the", which is in every document.
    assert set(texts(text.find())) == {" the Bridge", " Bridge City", " Golden Gate"}
    assert set(texts(text.find(SETTINGS.model_copy(update={"n_common": 2})))) == {" Bridge City", " Golden Gate"}


def test_tokens_that_meet_less_often_than_by_chance_are_no_phrase() -> None:
    text = Text().add([GOLDEN, GATE, DOT], 4).add([GOLDEN, DOT] * 3, 20).add([GATE, DOT] * 3, 20)
    assert text.find() == []


def test_the_better_of_overlapping_phrases_stays() -> None:
    text = Text().add([NEW, YORK, DOT], 12).add([NEW, YORK, CITY, DOT], 4)
    assert [(phrase.text, phrase.n_occurrences) for phrase in text.find()] == [(" New York", 16)]
    often = Text().add([NEW, YORK, DOT], 1).add([NEW, YORK, CITY, DOT], 12)
    assert [(phrase.text, phrase.n_occurrences) for phrase in often.find()] == [(" New York City", 12)]
    # Half of the bridges are beside a gate, which is not too many.
    text = Text().add([GOLDEN, GATE, BRIDGE, NEW], 4).add([BRIDGE, NEW], 4).add([GOLDEN, GATE], 30)
    assert texts(text.find()) == [" Golden Gate", " Bridge New"]


def random_text() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(600, len(WORDS) - 1, generator=generator)
    ids = torch.multinomial(weights, 15, replacement=True, generator=generator) + 1
    ids = torch.nn.functional.pad(ids, (1, 0), value=BOS).int()
    ids[::40, 5:9] = torch.tensor([GATE, BRIDGE, YORK, CITY]).int()
    documents = torch.arange(ids.numel()).view(ids.shape) // 100
    documents[:, 0] = -1
    return ids, documents.int()


SMALL = {"PART_TOKENS": 100, "MOST_RECORDS": 50, "HASHES": 64}


@pytest.mark.parametrize(
    "sizes", [{}, SMALL, SMALL | {"MOST_FILES": 3, "MOST_CANDIDATES": 1}, {"PART_TOKENS": 7, "HASHES": 2}]
)
def test_phrases_are_those_of_a_naive_search(sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """However little is in memory at a time."""
    for module in (candidates, finding):
        for name in sizes.keys() & vars(module).keys():
            monkeypatch.setattr(module, name, sizes[name])
    ids, documents = random_text()
    settings = Phrases(min_count=5, min_documents=3, min_scored=1, n_common=2, n_phrases=40, max_occurrences=1000)
    found = find(ids, documents, settings)

    counts = Counter(ids[:, 1:].flatten().tolist())
    n_tokens = sum(counts.values())
    spread: dict[int, set] = defaultdict(set)
    for token, document in zip(ids[:, 1:].flatten().tolist(), documents[:, 1:].flatten().tolist(), strict=True):
        spread[token].add(document)
    common = sorted(spread, key=lambda token: (-len(spread[token]), -counts[token]))[:2]
    usable = {token for token in range(len(WORDS)) if WORDS[token].strip().isalpha()} - set(common)
    places: dict[tuple[int, ...], list[tuple[int, int]]] = defaultdict(list)
    for sequence, (row, lines) in enumerate(zip(ids.tolist(), documents.tolist(), strict=True)):
        for n in (2, 3, 4):
            for start in range(1, 16 - n + 1):
                tokens = tuple(row[start : start + n])
                goes_on = start + n < 16 and row[start + n] == ING and lines[start + n] == lines[start]
                in_one = len(set(lines[start : start + n])) == 1
                if set(tokens) <= usable and in_one and tokens[0] != ING and not goes_on:
                    places[tokens].append((sequence, start))
    scores = {
        tokens: len(where) * math.log(len(where) / n_tokens / math.prod(counts[t] / n_tokens for t in tokens))
        for tokens, where in places.items()
        if len(where) >= 5 and len({int(documents[place]) for place in where}) >= 3
    }
    taken: set[tuple[int, int]] = set()
    expected = []
    for tokens in sorted((t for t in scores if scores[t] > 0), key=lambda t: -scores[t]):
        spans = [{(sequence, start + i) for i in range(len(tokens))} for sequence, start in places[tokens]]
        if sum(bool(span & taken) for span in spans) <= MAX_OVERLAP * len(spans):
            taken |= set().union(*spans)
            expected.append(
                (tokens, decode(list(tokens)), [sequence * 16 + start for sequence, start in places[tokens]])
            )
    assert len(expected) > 20
    assert {len(tokens) for tokens, _, _ in expected} == {2, 3, 4}
    assert [(phrase.tokens, phrase.text, starts(phrase)) for phrase in found] == expected[:40]
    assert [phrase.n_occurrences for phrase in found] == [len(places) for _, _, places in expected[:40]]
    # What is drawn for a phrase does not depend on the others.
    assert find(ids, documents, settings.model_copy(update={"n_phrases": 3})) == found[:3]


def test_some_occurrences_are_kept_from_many_documents() -> None:
    text = Text().add([GOLDEN, GATE], 40, document=0).add([GOLDEN, GATE], 4, document=1)
    text.add([GOLDEN, GATE], 1, document=2).add([NEW, YORK], 5)
    settings = SETTINGS.model_copy(update={"max_occurrences": 11})
    first, second = text.find(settings)
    assert (first.n_occurrences, len(starts(first)), len(set(starts(first)))) == (45, 11, 11)
    assert Counter([*first.choosing.documents, *first.scoring.documents]) == {0: 6, 1: 4, 2: 1}
    assert list(first.choosing.starts) == sorted(first.choosing.starts)
    assert (second.text, starts(second)) == (" New York", [8 * row + 1 for row in range(45, 50)])
    assert text.find(settings) == [first, second]
    other = text.find(settings.model_copy(update={"seed": 1}))[0]
    assert starts(other) != starts(first)


def test_no_phrases() -> None:
    assert Text().add([], 3).find() == []
    assert find(*random_text(), SETTINGS, lambda ids: "!") == []


def test_the_phrase_that_is_named_is_shown_first() -> None:
    phrases = find(*random_text(), SETTINGS)
    assert len(phrases) > 3
    assert order_for_examples(phrases, None) == phrases
    named = order_for_examples(phrases, phrases[2].text.strip())
    assert named == [phrases[2], *phrases[:2], *phrases[3:]]
    with pytest.raises(
        ValueError, match=r"phrases\.example: 'Eiffel Tower' is none of the \d+ phrases that were found \('"
    ):
        order_for_examples(phrases, "Eiffel Tower")
    with pytest.raises(ValueError, match=r"none of the 0 phrases that were found \(there is none"):
        order_for_examples([], "Eiffel Tower")


def test_phrases_that_are_written_are_read(tmp_path: Path) -> None:
    phrases = find(*random_text(), SETTINGS)
    assert phrases
    write_phrases(tmp_path / "phrases.json", phrases)
    assert read_phrases(tmp_path / "phrases.json") == phrases
    write_phrases(tmp_path / "phrases.json", [])
    assert read_phrases(tmp_path / "phrases.json") == []


@pytest.mark.parametrize("content", [None, "[{", '[{"tokens": [1]}]', '{"a": 1}', "3"])
def test_reading_what_is_no_list_of_phrases(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "phrases.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"phrases\.json: not a list of phrases"):
        read_phrases(path)
