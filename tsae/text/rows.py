"""Rows of text files: whole files, lines, or JSON objects, long ones in pieces."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tsae.profile.sources import FileCorpus, LocalFile
from tsae.text.cut import cut
from tsae.text.documents import Document
from tsae.text.text_files import LONGEST, check_whole, text_chunks, text_lines

MARK = "\ufeff"  # the byte order mark; inside a file where files were joined


class Row(NamedTuple):
    """What may be a document."""

    title: str
    text: str | None
    """None: there is no text in the field."""
    fields: Sequence[str] = ()
    """Names of all fields."""

    @property
    def document(self) -> Document | None:
        """The document, if there is text."""
        return None if self.text is None else Document(self.title, self.text)


def row_of_entry(title: str, entry: Any, text_field: str) -> Row:
    """The row of an object."""
    if not isinstance(entry, dict):
        return Row(title, None)
    text = entry.get(text_field)
    return Row(title, text if isinstance(text, str) else None, tuple(entry))


def rows_of_lines(path: Path, name: str) -> Iterator[Row]:
    """A row per line, blank ones too."""
    for number, line in text_lines(path):
        yield Row(f"{name}:{number}", line.strip().lstrip(MARK))


def rows_of_files(listed: Iterable[LocalFile], source: FileCorpus) -> Iterator[Row]:
    """The rows of local files in order, those longer than `source.cut` in pieces.

    Raises:
        ValueError: a file is missing, damaged or unreadable, or holds no JSON; the message names file and line.
    """
    for path, name in listed:
        match source.format:
            case "text" if source.cut:
                yield from _pieces(name, text_chunks(path), source.cut)
                continue
            case "text":
                rows = iter([Row(name, _whole(path))])
            case "lines":
                rows = rows_of_lines(path, name)
            case "jsonl":
                rows = _rows_of_json(path, name, source.text_field)
        for row in rows:
            if source.cut and row.text:
                yield from (piece._replace(fields=row.fields) for piece in _pieces(row.title, [row.text], source.cut))
            else:
                yield row


def _pieces(title: str, chunks: Iterable[str], most: int) -> Iterator[Row]:
    pieces = cut(chunks, most)
    first, second = next(pieces, ""), next(pieces, None)
    if second is None:
        yield Row(title, first)
        return
    for number, piece in enumerate(itertools.chain((first, second), pieces), start=1):
        yield Row(f"{title}, part {number}", piece)


def _whole(path: Path) -> str:
    chunks, n_characters = [], 0
    for chunk in text_chunks(path):
        chunks.append(chunk)
        n_characters += len(chunk)
        if n_characters > LONGEST:
            raise ValueError(f"{path}: over {LONGEST} characters in one document; set `cut` for it in corpus.sources")
    return "".join(chunks)


def _rows_of_json(path: Path, name: str, text_field: str) -> Iterator[Row]:
    first = True
    for number, line in text_lines(path):
        line = line.strip().lstrip(MARK)
        if not line:
            yield Row(f"{name}:{number}", "")
            continue
        if first and line.startswith("[") and (line == "[" or "{" in line):
            raise ValueError(
                f"{path}, line {number}: one JSON array, and format: jsonl has one object per line; convert it, for example with "
                f"`jq -c '.[]' {path.name}`"
            )
        first = False
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            check_whole(path)
            raise ValueError(
                f"{path}, line {number}: not JSON ({error}); each line is one object; correct or remove the line"
            ) from None
        yield row_of_entry(f"{name}:{number}", entry, text_field)
