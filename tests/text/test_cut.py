"""Long documents in pieces."""

# ruff: noqa: RUF001

import json
import random
from pathlib import Path

import pytest
from fixtures.corpora import file_corpus

from tsae.text.corpus import documents_of
from tsae.text.cut import cut, cut_for
from tsae.text.documents import Document

JAPANESE = (
    "吾輩は猫である。名前はまだ無い。「どこで生れたか、とんと見当がつかぬ。」何でも薄暗いじめじめした所で泣いていた。"
)
CHINESE = "子曰：“学而时习之，不亦说乎？有朋自远方来，不亦乐乎？”有子曰：“其为人也孝弟，而好犯上者，鲜矣！”"
THAI = "ภาษาไทยเป็นภาษาที่มีระดับเสียงของคำแน่นอน น้ำใจคนไทยยิ่งใหญ่ กำลังเดินทางไปทำงาน "
ENGLISH = 'It was late. "Who is there?" she asked (twice). Nobody answered... The house was e.g. empty.\n'
PARAGRAPHS = (ENGLISH * 3 + "\n") * 3
# What a reader sees as one character: accents, joined emoji, flags, skin, Korean letters, Hindi, Thai, a Windows line end.
CLUSTERS = [
    *(
        "e\u0301",
        "a\u0323\u0302",
        "👩\u200d👩\u200d👧",
        "🇩🇪",
        "🇯🇵",
        "👋🏽",
        "\u1100\u1161\u11a8",
        "क्षि",
        "น้ำ",
        "ที่",
        "เก็",
    ),
    *("\r\n", "か\u3099", "ｶﾞ", "❤\ufe0f", "🏴\U000e0067\U000e0062\U000e007f", "x", "語", "각"),
]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("short", ["short"]),
        ("01234567890123456789", ["01234567890123456789"]),
        ("012345678901234567890", ["01234567890123456789", "0"]),
        ("", []),
        # A blank line before a line end, that before a full stop, that before a space; all in the second half of 20 characters.
        ("aaaaaaaaa\n \nb\nc. d eeeeeee", ["aaaaaaaaa\n \n", "b\nc. d eeeeeee"]),
        ("aaaaaaaaaaab\nc. d eeeeeee", ["aaaaaaaaaaab\n", "c. d eeeeeee"]),
        ("aaaaaaaaaaab. c d eeeeeee", ["aaaaaaaaaaab. ", "c d eeeeeee"]),
        ("aaaaaaaaaaa b c d eeeeeee", ["aaaaaaaaaaa b c d ", "eeeeeee"]),
        # A blank line in the first half would waste most of the piece.
        ("a\n\nbbbbbbbbbb cccccccccc", ["a\n\nbbbbbbbbbb ", "cccccccccc"]),
        # A quotation mark stays with its sentence, and 3.14 is no end of one.
        ('aaaaa aaa aaa! "It is 3.14." she', ["aaaaa aaa aaa! ", '"It is 3.14." she']),
        ("あああああああああ「いいいいいいい。」うううう", ["あああああああああ「いいいいいいい。」", "うううう"]),
        ("ああああああああああ、ああああああああああああ", ["ああああああああああ、", "ああああああああああああ"]),
    ],
)
def test_places_by_hand(text: str, pieces: list[str]) -> None:
    assert list(cut([text], 20)) == pieces


@pytest.mark.parametrize("text", [JAPANESE, CHINESE, THAI, ENGLISH, PARAGRAPHS])
@pytest.mark.parametrize("most", [30, 100, 333])
def test_pieces_are_the_text_however_it_comes(text: str, most: int) -> None:
    text *= 20
    pieces = list(cut([text], most))
    assert "".join(pieces) == text
    assert all(most // 2 < len(piece) <= most for piece in pieces[:-1]) and len(pieces[-1]) <= most
    for size in (1, 7, 1000):
        assert list(cut([text[at : at + size] for at in range(0, len(text), size)], most)) == pieces


def test_sentences_end_pieces() -> None:
    assert all(piece.endswith(("。", "。」")) for piece in cut([JAPANESE * 50], 60))
    assert all(piece[-1] in "？！”" for piece in cut([CHINESE * 50], 60))
    assert all(piece.endswith(" ") for piece in cut([THAI * 50], 200))
    assert all(piece.endswith("\n") for piece in cut([ENGLISH * 50], 300))
    assert all(piece.endswith("\n\n") for piece in cut([PARAGRAPHS * 50], 700))


def test_no_cut_inside_of_a_character() -> None:
    rng = random.Random(0)
    for _ in range(300):
        clusters = rng.choices(CLUSTERS, k=200)
        ends, at = set(), 0
        for cluster in clusters:
            at += len(cluster)
            ends.add(at)
        at = 0
        for piece in cut(["".join(clusters)], rng.randrange(30, 60)):
            at += len(piece)
            assert at in ends, "".join(clusters)[at - 5 : at + 5]


@pytest.mark.parametrize(
    "text", ["." * 10**6, "\n" * 10**6, " " * 10**6, "。" * 10**6, "\u0301" * 10**6, "🇩" * 10**6, "a)" * 10**6]
)
def test_hostile_text_takes_linear_time(text: str) -> None:
    assert "".join(cut([text], 100_000)) == text


def test_titles_of_pieces(tmp_path: Path) -> None:
    book, lines, entries = tmp_path / "book.txt", tmp_path / "a.txt", tmp_path / "a.jsonl"
    book.write_text(PARAGRAPHS)
    pieces = list(cut([PARAGRAPHS], 400))
    assert len(pieces) > 2
    parts = [Document(f"book.txt, part {number}", piece) for number, piece in enumerate(pieces, start=1)]
    assert list(documents_of(file_corpus("text", book, cut=400), tmp_path)) == parts
    # Those that are not too long keep their titles; resuming works between pieces.
    lines.write_text("short\n" + "word " * 50 + "\n")
    found = list(documents_of(file_corpus("lines", lines, cut=150), tmp_path))
    assert [(title, len(text)) for title, text, _ in found] == [
        ("a.txt:1", 5),
        ("a.txt:2, part 1", 150),
        ("a.txt:2, part 2", 99),
    ]
    entries.write_text(json.dumps({"text": None}) + "\n" + json.dumps({"text": "word " * 50}) + "\n")
    source = file_corpus("jsonl", entries, cut=150)
    stream = documents_of(source, tmp_path)
    assert next(stream).title == "a.jsonl:2, part 1"
    assert [document.title for document in documents_of(source, tmp_path, stream.position)] == ["a.jsonl:2, part 2"]


def test_the_suggested_cut_gives_enough_documents() -> None:
    for n_characters, n_documents in ((500_000, 100), (43_210, 20), (8_000, 20), (10**9, 1000)):
        suggested = cut_for(n_characters, n_documents)
        assert suggested is not None
        text = PARAGRAPHS * (min(n_characters, 10**6) // len(PARAGRAPHS) + 1)
        if n_characters <= 10**6:
            assert 4 * n_documents <= len(list(cut([text[:n_characters]], suggested))) <= 10 * n_documents
    assert cut_for(7_900, 20) is None
