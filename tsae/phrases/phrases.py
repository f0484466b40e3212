"""The file of phrases: their occurrences in the training split, and other tokens of the same documents."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tsae.store.files import read_text, write_text


class Half(NamedTuple):
    """A phrase in one half of its documents. A place is sequence * n_ctx + position in the training split."""

    starts: tuple[int, ...]
    """Place of each occurrence's first token, ascending."""
    documents: tuple[int, ...]
    """Document of each occurrence: its line in the documents file."""
    others: tuple[int, ...]
    """Places of tokens of these documents outside the phrase, drawn with replacement."""


class Context(NamedTuple):
    """An occurrence of a phrase with the tokens around it, of the same sequence and document."""

    start: int
    """Place of the first token shown."""
    texts: tuple[str, ...]
    """Each token decoded."""
    before: int
    """Tokens shown before the phrase."""


class Phrase(NamedTuple):
    """A phrase and some of its occurrences in the training split."""

    tokens: tuple[int, ...]
    """Token ids."""
    text: str
    """The tokens decoded, leading space included."""
    n_occurrences: int
    """Occurrences in the whole split."""
    choosing: Half
    """Where its feature is chosen."""
    scoring: Half
    """Where that feature is scored."""
    context: Context
    """The first occurrence of the scoring half."""


def write_phrases(path: Path, phrases: Sequence[Phrase]) -> None:
    """Write phrases as JSON, a line each."""
    nested = ("choosing", "scoring", "context")
    rows = (phrase._asdict() | {name: getattr(phrase, name)._asdict() for name in nested} for phrase in phrases)
    write_text(path, "[" + ",\n".join(map(json.dumps, rows)) + "]\n")


def read_phrases(path: Path) -> list[Phrase]:
    """Read what `write_phrases` wrote.

    Raises:
        ValueError: the file is missing, or holds no phrases.
    """
    try:
        return [_phrase_of(entry) for entry in json.loads(read_text(path))]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: not a list of phrases ({error!r})") from error


def _phrase_of(entry: dict[str, Any]) -> Phrase:
    choosing, scoring = (
        Half(*(tuple(entry[name][field]) for field in Half._fields)) for name in ("choosing", "scoring")
    )
    context = Context(entry["context"]["start"], tuple(entry["context"]["texts"]), entry["context"]["before"])
    return Phrase(tuple(entry["tokens"]), entry["text"], entry["n_occurrences"], choosing, scoring, context)


def order_for_examples(phrases: Sequence[Phrase], example: str | None) -> list[Phrase]:
    """The phrases, with the named one first; a leading space does not matter.

    Raises:
        ValueError: the named phrase is not one of them.
    """
    named = [phrase for phrase in phrases if example is not None and phrase.text.strip() == example.strip()]
    if example is not None and not named:
        known = ", ".join(repr(phrase.text) for phrase in phrases[:5]) or "there is none"
        raise ValueError(
            f"phrases.example: {example!r} is none of the {len(phrases)} phrases that were found ({known}, ...)"
        )
    return [*named, *(phrase for phrase in phrases if phrase not in named)]
