"""The stage that reads every source into the documents file.

Reading may take hours and a network, so documents survive an interruption. Until all are read they are in a hidden file beside
the output, and a second file says how many bytes of it are sound and where to resume in the sources.
"""

import hashlib
import json
import logging
import os
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from tsae.profile.inputs import Corpus
from tsae.profile.sources import CorpusSource, FileCorpus, HubCorpus
from tsae.store import files
from tsae.store.code import digest_of
from tsae.text.corpus import START, Position, documents_of
from tsae.text.documents import Document
from tsae.text.wheels import CHUNK_BYTES

LOG = logging.getLogger(__name__)

RECORDED_EVERY = 5000  # documents


def write_documents(settings: Corpus, sources: Path, output: Path) -> None:
    """Read every source into one file of documents.

    An interrupted call resumes where it stopped. Documents are JSON lines, {"title", "text", "source"}. Empty ones and rows without
    text are left out; a line of the log per source says how many.

    Args:
        settings: the sources.
        sources: folder with the files fetched from wheels.
        output: the file of documents.

    Raises:
        ValueError: as `documents_of`, or every document is empty.
        OSError: the disk is full or read-only.
    """
    partial = _Partial(output, _made_from(settings))
    first = partial.source
    streams = [
        documents_of(source, sources, partial.position if place == first else START)
        for place, source in enumerate(settings.sources)
        if place >= first
    ]
    with partial, tqdm(unit="document", initial=partial.n_written, disable=None) as bar:
        for place, stream in enumerate(streams, start=first):
            try:
                for document in stream:
                    if document.text.strip():
                        partial.write(document._replace(source=place))
                        bar.update()
                    if stream.position.documents % RECORDED_EVERY == 0:
                        partial.record(place, stream.position)
            except ValueError:
                partial.record(place, stream.position)
                raise
            partial.finished.append(stream.position)
    for place, position in enumerate(partial.finished):
        LOG.info("corpus.sources.%d: %s", place, _count(settings.sources[place], position))
    if partial.n_written == 0:
        partial.discard()
        raise ValueError("corpus.sources: every document is empty; name sources with text")
    partial.finish()


def _count(source: CorpusSource, position: Position) -> str:
    """How many documents a source gave, and what was left out."""
    n_hidden = source.listing().n_hidden if isinstance(source, FileCorpus) else 0
    left_out = [
        f"{n} {what}"
        for n, what in (
            (position.empty, "empty"),
            (position.no_text, f"without text in {getattr(source, 'text_field', '')!r}"),
            (n_hidden, "hidden files and folders"),
        )
        if n
    ]
    n_documents = position.documents - position.empty - position.no_text
    return f"{n_documents} documents; left out: {', '.join(left_out) or 'nothing'}"


class _Partial:
    """The documents so far, on disk."""

    def __init__(self, output: Path, made_from: str):
        """Find how far an interrupted call with the same inputs came."""
        self._output, self._made_from = output, made_from
        self._path = output.with_name(f".{output.name}.partial")
        self._progress = output.with_name(f".{output.name}.progress.json")
        self._n_bytes = self.n_written = self.source = 0
        self._digest, self.position = hashlib.sha256(), START
        self.finished: list[Position] = []
        """Where the sources before `source` ended."""
        try:
            found = json.loads(files.read_text(self._progress))
            if found["made_from"] != made_from:
                return
            digest = _digest_of_start(self._path, found["bytes"])
            if digest.hexdigest() != found["sha256"]:
                raise ValueError(f"{self._path}: damaged")
            self._n_bytes, self.n_written = found["bytes"], found["documents"]
            self._digest, self.source, self.position = digest, found["source"], Position(*found["position"])
            self.finished = [Position(*position) for position in found["finished"]]
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            LOG.warning("%s: reading documents starts over (%s)", output, error)

    def __enter__(self) -> None:
        self._output.parent.mkdir(parents=True, exist_ok=True)
        self._path.touch()
        self._file = self._path.open("r+b")
        self._file.truncate(self._n_bytes)
        self._file.seek(self._n_bytes)

    def __exit__(self, *_: object) -> None:
        with files.naming(self._output):
            self._file.close()

    def write(self, document: Document) -> None:
        # JSON can spell a lone surrogate, UTF-8 cannot: it becomes a question mark.
        line = json.dumps(document._asdict(), ensure_ascii=False) + "\n"
        encoded = line.encode("utf-8", errors="replace")
        with files.naming(self._output):
            self._file.write(encoded)
        self._digest.update(encoded)
        self.n_written += 1

    def record(self, source: int, position: Position) -> None:
        """Record that the documents up to a position in a source are on disk."""
        with files.naming(self._output):
            self._file.flush()
            os.fsync(self._file.fileno())
        progress = {
            "made_from": self._made_from,
            "bytes": self._file.tell(),
            "sha256": self._digest.hexdigest(),
            "documents": self.n_written,
            "source": source,
            "position": position,
            "finished": self.finished,
        }
        files.write_json(self._progress, progress)

    def finish(self) -> None:
        """Rename the finished file to the output."""
        with files.naming(self._output):
            files.put(self._path, self._output, self._digest.hexdigest())
        files.remove(self._progress)

    def discard(self) -> None:
        self._path.unlink()
        files.remove(self._progress)


def _digest_of_start(path: Path, n_bytes: int) -> "hashlib._Hash":
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while n_bytes > 0 and (chunk := file.read(min(n_bytes, CHUNK_BYTES))):
            digest.update(chunk)
            n_bytes -= len(chunk)
    return digest


def _made_from(corpus: Corpus) -> str:
    """Digest of everything that decides the documents, and of the library whose positions are recorded."""
    paths = [path for source in corpus.sources if isinstance(source, FileCorpus) for path in source.files]
    inputs = {
        "corpus": corpus.model_dump(mode="json"),
        "files": [files.sha256(path) for path in paths if path.is_file()],
        "code": digest_of("tsae.text.write_documents"),
        "datasets": version("datasets") if any(isinstance(source, HubCorpus) for source in corpus.sources) else None,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
