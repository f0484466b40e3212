"""The documents file, one document per line as JSON, and what documents are."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tsae.store import files


class Document(NamedTuple):
    """One document of the corpus."""

    title: str
    """Where it comes from, for people: the article's title, or file and line."""
    text: str
    """The whole text."""
    source: int = 0
    """Its place in `corpus.sources`."""


def existing(path: Path, advice: str) -> Path:
    """The path.

    Raises:
        ValueError: there is no such file; the message ends in the advice.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; {advice}")
    return path


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers, from 1, and lines."""
    try:
        with path.open(encoding="utf-8") as file:
            yield from enumerate(file, start=1)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}); convert it") from None
    except OSError as error:
        raise ValueError(f"{path}: could not be read ({error})") from error


def read_documents(path: Path) -> Iterator[Document]:
    """Documents of a file that `write_documents` wrote, in its order, one per line.

    Raises:
        ValueError: the file is missing, or a line is not such a document.
    """
    files.check(existing(path, "write the documents first"))
    for number, line in text_lines(path):
        try:
            yield Document(**json.loads(line))
        except (ValueError, RecursionError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: not a document ({error}); write the documents again") from None
