"""Text files as people have them: compressed, with a byte order mark, with the line ends of any system."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

LONGEST = 1 << 27  # characters of a line, or of a file that is one document; no text has more, and a bomb stops here
CHUNK = 1 << 20  # characters
HEAD_BYTES = 4096


class _Compression(NamedTuple):
    name: str
    start: bytes
    """Bytes that such a file starts with."""


COMPRESSIONS = {
    ".gz": _Compression("gzip", b"\x1f\x8b"),
    ".bz2": _Compression("bzip2", b"BZh91AY&SY"),
    ".xz": _Compression("xz", b"\xfd7zXZ\x00"),
    ".zst": _Compression("Zstandard", b"\x28\xb5\x2f\xfd"),
}
# The longer marks first: one of UTF-32 starts like one of UTF-16.
MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
# Files that hold text, but are none: where their mark is, and what they are.
OTHERS = {
    (0, b"PK\x03\x04"): "a zip archive or an office document",
    (0, b"%PDF"): "a PDF",
    (0, b"PAR1"): "a Parquet file",
    (257, b"ustar"): "a tar archive",
}


def text_lines(path: Path, longest: int = LONGEST) -> Iterator[tuple[int, str]]:
    r"""Lines of a text file and their numbers, from 1. Windows' and old Mac's line ends are read as \n.

    Args:
        path: a file in UTF-8, or in an encoding that its byte order mark names; also compressed (`COMPRESSIONS`).
        longest: most characters of a line.

    Raises:
        ValueError: the file is missing, damaged or no such text, or a line is longer; the message names the file.
    """
    with _reading(path) as file:
        number = 0
        while line := file.readline(longest + 1):
            number += 1
            if len(line) > longest:
                raise ValueError(f"{path}, line {number}: over {longest} characters, which is no text; remove it")
            yield number, line


def text_chunks(path: Path) -> Iterator[str]:
    """The text of a file as `text_lines` reads it, in parts.

    Raises:
        ValueError: the file is missing, damaged or no such text; the message names the file.
    """
    with _reading(path) as file:
        while chunk := file.read(CHUNK):
            yield chunk


def check_whole(path: Path) -> None:
    """Read a compressed file to its end, since only there a checksum tells whether what came before was right.

    Raises:
        ValueError: it is damaged or cut off; the message names the file.
    """
    compression = _compression(path)
    if compression is None:
        return
    with _naming(path, compression), _decompressed(path, compression) as file:
        while file.read(CHUNK):
            pass


@contextmanager
def _reading(path: Path) -> Iterator[IO[str]]:
    with _naming(path, None):
        compression = _compression(path)
    encoding = "utf-8"
    try:
        with _naming(path, compression):
            with _decompressed(path, compression) as file:
                encoding = _encoding(path, file.read(HEAD_BYTES))
            with io.TextIOWrapper(_decompressed(path, compression), encoding=encoding) as text:
                yield text
    except UnicodeDecodeError as error:
        check_whole(path)
        name = encoding.removesuffix("-sig").upper()
        raise ValueError(f"{path}: not {name} ({error}); convert it") from None


@contextmanager
def _naming(path: Path, compression: _Compression | None) -> Iterator[None]:
    """Name the file in errors of reading it."""
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if compression is None:
            raise ValueError(f"{path}: could not be read ({error})") from error
        raise ValueError(
            f"{path}: not a whole {compression.name} file ({error}); fetch it again, or compress it again"
        ) from None


def _compression(path: Path) -> _Compression | None:
    """How a file is compressed, by the end of its name or else by its first bytes; None: it is not."""
    with path.open("rb") as file:
        start = file.read(HEAD_BYTES)
    compression = COMPRESSIONS.get(path.suffix.lower())
    if compression and not start:
        raise ValueError(f"{path}: not a whole {compression.name} file (it is empty); fetch it again, or remove it")
    return compression or next((each for each in COMPRESSIONS.values() if start.startswith(each.start)), None)


def _decompressed(
    path: Path, compression: _Compression | None
) -> io.BufferedReader | gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile:
    match compression and compression.name:
        case None:
            return path.open("rb")
        case "gzip":
            return gzip.open(path, "rb")
        case "bzip2":
            return bz2.open(path, "rb")
        case "xz":
            return lzma.open(path, "rb")
        case _:
            # The import takes long, and only this compression needs it.
            import pyarrow

            return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))


def _encoding(path: Path, head: bytes) -> str:
    """The encoding of a file that starts with these bytes."""
    for (place, mark), what in OTHERS.items():
        if head[place:].startswith(mark):
            raise ValueError(f"{path}: {what}, which is not read; extract its text")
    for mark, encoding in MARKS.items():
        if head.startswith(mark):
            return encoding
    if 8 * head.count(0) > len(head):
        raise ValueError(
            f"{path}: over an eighth of its first bytes is zero, so it is UTF-16 without a byte order mark, or no text; "
            "convert it to UTF-8, or remove it"
        )
    return "utf-8"
