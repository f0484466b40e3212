"""Documents, and the file that holds them as JSON lines."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tsae.store import files
from tsae.text.text_files import LONGEST, text_lines

LONGEST_LINE = 8 * LONGEST  # JSON may write one character as six


class Document(NamedTuple):
    """One document of the corpus."""

    title: str
    """The article's title, or file and line."""
    text: str
    source: int = 0
    """Index of its source in `corpus.sources`."""


def existing(path: Path, advice: str) -> Path:
    """The path, or a ValueError that ends in the advice if there is no such file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; {advice}")
    return path


def read_documents(path: Path) -> Iterator[Document]:
    """Documents of a file that `write_documents` wrote, in order.

    Raises:
        ValueError: the file is missing, or a line is not a document.
    """
    files.check(existing(path, "write the documents first"))
    for number, line in text_lines(path, LONGEST_LINE):
        try:
            yield Document(**json.loads(line))
        except (ValueError, RecursionError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: not a document ({error}); write the documents again") from None
