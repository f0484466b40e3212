"""Text files in every encoding and compression that people have, and files that are none."""

import bz2
import gzip
import io
import lzma
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from fixtures.corpora import file_corpus

from tsae.profile.inputs import Corpus
from tsae.text import rows, text_files
from tsae.text.corpus import documents_of
from tsae.text.documents import read_documents
from tsae.text.text_files import text_lines
from tsae.text.write_documents import write_documents


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}
NAMES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "Zstandard"}
LINES = ['{"text": "Käse"}', '{"text": "日本語。"}']


def texts(format: str, path: Path) -> list[str]:
    return [document.text for document in documents_of(file_corpus(format, path), path.parent)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("suffix", ["", *COMPRESS])
def test_encodings_line_ends_and_compressions(tmp_path: Path, encoding: str, end: str, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESS.get(suffix, bytes)("".join(line + end for line in LINES).encode(encoding)))
    assert texts("text", path) == ["".join(f"{line}\n" for line in LINES)]
    assert texts("lines", path) == LINES
    assert texts("jsonl", path) == ["Käse", "日本語。"]


def test_big_endian_utf16(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xfe\xff" + "eins\r\nzwei".encode("utf-16-be"))
    assert texts("lines", path) == ["eins", "zwei"]


def test_marks_where_files_were_joined(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(f"{line}\n".encode("utf-8-sig") for line in LINES))
    assert texts("jsonl", path) == ["Käse", "日本語。"]
    assert texts("lines", path) == LINES


def test_a_zero_byte_in_a_text_stays(tmp_path: Path) -> None:
    path, output = tmp_path / "a.txt", tmp_path / "documents.jsonl"
    path.write_bytes(b"a line of a few words\x00 with a zero byte\n")
    write_documents(Corpus(sources=(file_corpus("lines", path),)), tmp_path, output)
    assert [document.text for document in read_documents(output)] == ["a line of a few words\x00 with a zero byte"]


def zipped(text: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", text)
    return file.getvalue()


def tarred(text: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "eins\n".encode("utf-16-le"), "over an eighth of its first bytes is zero, so it is UTF-16 without"),
        ("a.txt", b"\xff\xfea", r"not UTF-16 \(.*truncated data\); convert it"),
        ("a.txt", "Käse".encode("latin-1"), r"not UTF-8 \(.*\); convert it"),
        ("a.txt", b"\xef\xbb\xbfK\xe4se", r"not UTF-8 \(.*\); convert it"),
        ("a.docx", zipped(b"text"), "a zip archive or an office document, which is not read; extract its text"),
        ("a.tar.gz", gzip.compress(tarred(b"text"), mtime=0), "a tar archive, which is not read"),
        ("a.pdf", b"%PDF-1.7\n", "a PDF, which is not read"),
        ("a.parquet", b"PAR1" + b"\x15" * 20, "a Parquet file, which is not read"),
        *((f"a.txt{suffix}", b"", rf"not a whole {NAMES[suffix]} file \(it is empty\)") for suffix in COMPRESS),
        *((f"a.txt{suffix}", b"text", f"not a whole {NAMES[suffix]} file") for suffix in COMPRESS),
    ],
)
@pytest.mark.refused("a text file that is none")
def test_what_is_no_text_is_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for format in ("text", "lines"):
        with pytest.raises(ValueError, match=message) as raised:
            texts(format, path)
        (line,) = str(raised.value).splitlines()
        assert line.startswith(f"{path}: ")


@pytest.mark.refused("a compressed file that is damaged or cut off")
@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_damaged_archive_is_one_line(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    whole = COMPRESS[suffix](b"".join(b'{"text": "line %d"}\n' % number for number in range(5000)))
    middle = len(whole) // 2
    for content in (whole[:-3], whole[:middle], whole[:middle] + b"damaged!" * 4 + whole[middle + 32 :]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"not a whole {NAMES[suffix]} file") as raised:
            texts("jsonl", path)
        (line,) = str(raised.value).splitlines()
        assert line.startswith(f"{path}: ") and "fetch it again" in line


@pytest.mark.parametrize("suffix", COMPRESS)
def test_joined_archives_are_read_to_the_end(tmp_path: Path, suffix: str) -> None:
    """As `cat a.gz b.gz` makes them, and compressors that use many threads."""
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(b"".join(COMPRESS[suffix](b'{"text": "%d"}\n' % number) for number in range(3)))
    assert texts("jsonl", path) == ["0", "1", "2"]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compression_is_known_without_the_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(COMPRESS[suffix](b"one\ntwo\n"))
    assert texts("lines", path) == ["one", "two"]


@pytest.mark.refused("a bomb in a compressed file")
@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_bomb_does_not_fill_the_memory(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](b"a" * 200_000_000))
    assert path.stat().st_size < 1_000_000
    monkeypatch.setattr(rows, "LONGEST", 5_000_000)
    assert text_files.LONGEST < 1 << 28
    tracemalloc.start()
    with pytest.raises(ValueError, match="over 5000000 characters in one document; set `cut`"):
        texts("text", path)
    with pytest.raises(ValueError, match=r"line 1: over 5000000 characters, which is no text"):
        next(text_lines(path, longest=5_000_000))
    pieces = documents_of(file_corpus("text", path, cut=1000), tmp_path)
    assert sum(len(next(pieces).text) for _ in range(20)) == 20_000
    assert tracemalloc.get_traced_memory()[1] < 60_000_000
    tracemalloc.stop()
