"""Documents, and the file that holds them as JSON lines."""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tsae.store import files
from tsae.text.text_files import LONGEST

LONGEST_LINE = 8 * LONGEST  # bytes; JSON may write one character as six
DIGEST_BYTES = 16  # of a text; two texts of a corpus with equal digests are the same one


class Document(NamedTuple):
    """One document of the corpus."""

    title: str
    """The article's title, or file and line."""
    text: str
    source: int = 0
    """Index of its source in `corpus.sources`."""


class Catalogue(NamedTuple):
    """The documents of a file by line, without their texts, so that memory holds a few numbers per document."""

    path: Path
    starts: np.ndarray
    """Where its line starts in the file (n,) int64 [bytes]."""
    sources: np.ndarray
    """Index of its source in `corpus.sources` (n,) int32."""
    n_characters: np.ndarray
    """Length of its text (n,) int64 [characters]."""
    is_first: np.ndarray
    """Whether no line before has the same text (n,) bool."""

    def read(self, lines: Iterable[int]) -> Iterator[Document]:
        """The documents at these lines, in any order.

        Raises:
            ValueError: the file has changed.
        """
        with self.path.open("rb") as file:
            for line in lines:
                file.seek(self.starts[line])
                yield _parsed(self.path, int(line) + 1, file.readline(LONGEST_LINE + 1))


def existing(path: Path, advice: str) -> Path:
    """The path, or a ValueError that ends in the advice if there is no such file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; {advice}")
    return path


def read_catalogue(path: Path) -> Catalogue:
    """Read a file that `write_documents` wrote once, to find its documents again.

    Raises:
        ValueError: the file is missing or damaged, or a line is not a document.
    """
    starts, sources, n_characters, digests = array("q"), array("i"), array("q"), bytearray()
    for start, document in _read_in_order(path):
        starts.append(start)
        sources.append(document.source)
        n_characters.append(len(document.text))
        text = document.text.encode("utf-8", errors="surrogatepass")
        digests += hashlib.blake2b(text, digest_size=DIGEST_BYTES).digest()
    return Catalogue(
        path,
        np.frombuffer(starts, dtype=np.int64),
        np.frombuffer(sources, dtype=np.int32),
        np.frombuffer(n_characters, dtype=np.int64),
        _first_of_equals(np.frombuffer(digests, dtype=np.uint64).reshape(-1, DIGEST_BYTES // 8)),
    )


def _first_of_equals(digests: np.ndarray) -> np.ndarray:
    """Mask (n,) of the digests (n, 2) that do not occur before."""
    order = np.lexsort(digests.T)
    new = np.ones(len(digests), dtype=bool)
    new[1:] = (digests[order[1:]] != digests[order[:-1]]).any(1)
    is_first = np.empty(len(digests), dtype=bool)
    is_first[order] = new
    return is_first


def read_documents(path: Path) -> Iterator[Document]:
    """Documents of a file that `write_documents` wrote, in order.

    Raises:
        ValueError: the file is missing or damaged, or a line is not a document.
    """
    return (document for _, document in _read_in_order(path))


def _read_in_order(path: Path) -> Iterator[tuple[int, Document]]:
    """Where each line starts [bytes], and its document."""
    files.check(existing(path, "write the documents first"))
    with path.open("rb") as file:
        start, number = 0, 1
        while line := file.readline(LONGEST_LINE + 1):
            yield start, _parsed(path, number, line)
            start, number = start + len(line), number + 1


def _parsed(path: Path, number: int, line: bytes) -> Document:
    if len(line) > LONGEST_LINE:
        raise ValueError(f"{path}, line {number}: over {LONGEST_LINE} bytes, which is no text; remove it")
    try:
        return Document(**json.loads(line))
    except (ValueError, RecursionError, TypeError) as error:
        raise ValueError(f"{path}, line {number}: not a document ({error}); write the documents again") from None
