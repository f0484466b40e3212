"""Cut long texts at the best place: a blank line, a line end, the end of a sentence, a space."""

# ruff: noqa: RUF001

import re
import unicodedata
from collections.abc import Iterable, Iterator

from tsae.profile.sources import SHORTEST_CUT

_CLOSING = "[\"'”’»)\\]」』）】》〉]"
# From best to worst; a piece ends after what matches. Chinese and Japanese have no space after a full stop. Thai has spaces only
# between its sentences and phrases. No pattern can take more than linear time.
PLACES = [
    re.compile(r"\n[^\S\n]*\n\s*"),
    re.compile(r"\n|\r(?!\n)"),
    re.compile(rf"(?<=[.!?…]){_CLOSING}{{0,3}}\s+|(?<=[。！？．｡؟।॥።။])(?![。！？．｡؟।॥።။]){_CLOSING}{{0,3}}\s*"),
    re.compile(r"\s+|[、，；：،]"),
]
AHEAD = 8  # characters after a place that are looked at, so that it is not before the quotation mark of its sentence


def cut(chunks: Iterable[str], most: int) -> Iterator[str]:
    """Pieces of a text that together are the text, each of at most `most` characters.

    A piece ends at the last blank line in the second half of the characters that it may have, or else at the last line end there,
    and so on; without any of these, between two characters as a reader sees them (an accent stays with its letter).

    Args:
        chunks: the text, in parts.
        most: longest piece [characters].
    """
    text, start = "", 0
    for chunk in chunks:
        text, start = text[start:] + chunk, 0
        while len(text) - start > most + AHEAD:
            end = _end(text, start, most)
            yield text[start:end]
            start = end
    while len(text) - start > most:
        end = _end(text, start, most)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _end(text: str, start: int, most: int) -> int:
    first, last = start + most // 2 + 1, start + most
    for pattern in PLACES:
        found = [match.end() for match in pattern.finditer(text, start, last + AHEAD)]
        if ends := [end for end in found if first <= end <= last and not _is_inside(text, start, end)]:
            return ends[-1]
    return next((end for end in range(last, first - 1, -1) if not _is_inside(text, start, end)), last)


def _is_inside(text: str, start: int, place: int) -> bool:
    """Whether a place is inside of what a reader sees as one character: the usual cases of Unicode's grapheme clusters."""
    before, after = text[place - 1], text[place] if place < len(text) else ""
    if not after:
        return False
    if unicodedata.category(after)[0] == "M" or _is_extending(after):
        return True
    # After a joiner, the sign that joins two consonants of an Indian script, and vowels of Thai and Lao that precede their consonant.
    if before in "\u200d\u0e40\u0e41\u0e42\u0e43\u0e44\u0ec0\u0ec1\u0ec2\u0ec3\u0ec4":
        return True
    if unicodedata.combining(before) == 9 and after.isalpha():
        return True
    if _is_flag(before) and _is_flag(after):
        flags = 0
        while place - flags > start and _is_flag(text[place - 1 - flags]):
            flags += 1
        return flags % 2 == 1
    return (before, after) == ("\r", "\n") or ("\u1100" <= before <= "\u115f" and "\u1100" <= after <= "\u115f")


def _is_extending(character: str) -> bool:
    return (
        character in "\u200c\u200d\u0e33\u0eb3\uff9e\uff9f"  # joiners, vowels of Thai and Lao, marks of half-width kana
        or "\u1160" <= character <= "\u11ff"  # later parts of a Korean syllable
        or "\U0001f3fb" <= character <= "\U0001f3ff"  # colours of skin
        or "\U000e0020" <= character <= "\U000e007f"  # tags of regional flags
        or "\udc00" <= character <= "\udfff"  # second halves of characters
    )


def _is_flag(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def cut_for(n_characters: int, n_documents: int) -> int | None:
    """A `cut` that makes four to eight times so many documents of a text; None: there is too little of it [characters]."""
    most = n_characters // (4 * n_documents)
    rounding = 10 ** max(0, len(str(most)) - 2)
    return most // rounding * rounding if most >= SHORTEST_CUT else None
