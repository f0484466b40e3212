"""Artefacts on disk: whole or not there, and the bytes that were written.

A file is written under a temporary name and renamed, so that a half-written one never has its final name. Its sha256 is
recorded beside it, in `.{name}.sha256`, in the format that `sha256sum --check` takes, and compared before it is read.
"""

import functools
import glob
import hashlib
import json
import logging
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from tsae.store.arguments import Files

if TYPE_CHECKING:
    pass

LOG = logging.getLogger(__name__)
REMEDY = "delete it and run again, which makes it anew"
REMEDY_OF_DAMAGE = (
    "`make verify-artefacts REMOVE=1`, with the CONFIGFILE of the run, removes it and says how to make it anew"
)
HOST = platform.node().replace(".", "_").replace("-", "_")
UMASK = os.umask(0)
os.umask(UMASK)


class DamagedError(ValueError):
    """A file is not what was written."""


class NotOursError(ValueError):
    """A file holds something else than is written here; whoever knows a better remedy raises it again with that one."""

    def __init__(self, problem: str, remedy: str = REMEDY):
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem
        """What is wrong, and where, without the remedy."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file that is being made, and the space that is left, in errors of the disk.

    Raises:
        OSError: the disk is full or read-only.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        free = shutil.disk_usage(path.parent).free
        raise OSError(f"{path}: could not be written ({error}); {free / 1e6:.0f} MB are free there") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced, its sha256 recorded, and it becomes `path`.

    On failure it is removed.

    Raises:
        OSError: the disk is full or read-only; the message names `path`, which then is as it was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(path)
    try:
        with naming(path):
            yield temporary
            temporary.chmod(0o666 & ~UMASK)  # safetensors lets only the owner read
            put(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def put(temporary: Path, path: Path, digest: str | None = None) -> None:
    """Give a whole file its name, and record its sha256, computed unless it is given; all is synced to the disk."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    digest = digest or sha256(temporary)
    try:
        before = _recorded(path) if path.exists() else []
    except (FileNotFoundError, ValueError):
        before = []
    # Before the rename, so that a kill leaves no file that should not pass; with what was recorded of the file that is
    # replaced, so that it passes until then.
    _record(path, digest, *before)
    temporary.replace(path)
    if before:
        _record(path, digest)


def temporary_of(path: Path) -> Path:
    """A name beside `path` for this process to write under; what killed processes of this machine left there is removed."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{HOST}-*.tmp"):
        if not _is_running(left.name.split("-")[-1].removesuffix(".tmp")):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{HOST}-{os.getpid()}.tmp")


def _is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (ValueError, PermissionError):
        pass
    return True


def record_of(path: Path) -> Path:
    """Where the sha256 of a file is recorded."""
    return path.with_name(f".{path.name}.sha256")


def _record(path: Path, *digests: str) -> None:
    temporary = temporary_of(record_of(path))
    try:
        with temporary.open("w") as file:
            file.writelines(f"{digest}  {path.name}\n" for digest in digests)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(record_of(path))
    finally:
        temporary.unlink(missing_ok=True)


def _recorded(path: Path) -> list[str]:
    """The sha256 that is recorded; several only where a kill left two files that it may be.

    Raises:
        FileNotFoundError: there is no record.
        DamagedError: it is damaged.
    """
    text = record_of(path).read_bytes().decode(errors="replace")
    if not re.fullmatch(r"([0-9a-f]{64}  [^\n]+\n)+", text):
        raise DamagedError(f"{path}: its record {record_of(path).name} is damaged; {REMEDY_OF_DAMAGE}")
    return [line[:64] for line in text.splitlines()]


def record(path: Path) -> None:
    """Record the sha256 of a file that something else has written whole."""
    _record(path, sha256(path))


def record_all(paths: Files) -> None:
    """Record the sha256 of files that others have written.

    Args:
        paths: the files, each whole.
    """
    for path in paths:
        record(path)


def remove(path: Path) -> None:
    """Remove a file, if it is there, and its record."""
    path.unlink(missing_ok=True)
    record_of(path).unlink(missing_ok=True)


def check(path: Path) -> None:
    """See that a file is what was written; one without a record, as other programs write them, passes.

    Raises:
        DamagedError: it is not, or its record is damaged; the message names it.
    """
    try:
        recorded = _recorded(path)
        if known_sha256(path) not in recorded:
            raise DamagedError(
                f"{path}: damaged, its sha256 is not the one recorded when it was written; {REMEDY_OF_DAMAGE}"
            )
    except (FileNotFoundError, NotADirectoryError):
        return


def known_sha256(path: Path) -> str:
    """sha256 of a file; of one that this process has hashed and nothing has touched, without reading it again."""
    found = path.stat()
    return _known_sha256(path.resolve(), found.st_size, found.st_mtime_ns, found.st_ino)


@functools.cache
def _known_sha256(path: Path, *_state: int) -> str:
    return sha256(path)


def read_text(path: Path) -> str:
    """Read a text file that is what was written.

    Raises:
        ValueError: it is damaged.
        FileNotFoundError: it is not there.
    """
    check(path)
    return path.read_text()


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, data: Any) -> None:
    """Write a whole JSON file, or nothing."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def sha256(path: Path) -> str:
    """sha256 of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
