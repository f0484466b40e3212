"""Files on disk: complete or absent, and compared with their recorded sha256 before they are read.

A file is written under a temporary name, then renamed. Its sha256 is recorded beside it in `.{name}.sha256`, in the
format of `sha256sum --check`.
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
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from tsae.store.arguments import Files

LOG = logging.getLogger(__name__)
REMEDY = "delete it and run again"
REMEDY_OF_DAMAGE = (
    "`make verify-artefacts REMOVE=1`, with the CONFIGFILE of the run, removes it and says how to restore it"
)
SETTLED = 2.0  # time since a file last changed, before a comparison is noted [s]
HOST = platform.node().replace(".", "_").replace("-", "_")
UMASK = os.umask(0)
os.umask(UMASK)


class DamagedError(ValueError):
    """A file differs from what was written."""


class NotOursError(ValueError):
    """A file holds something this project does not write. Callers may raise it again with a better remedy."""

    def __init__(self, problem: str, remedy: str = REMEDY):
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem
        """The message without the remedy."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's name and the free space to errors of the disk.

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
    """Yield a temporary path, and on success replace `path` by it and record its sha256.

    On failure the temporary file is removed and `path` is unchanged.

    Raises:
        OSError: the disk is full or read-only; the message names `path`.
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
    """Rename a complete file to `path` and record its sha256, computed unless given. Both are synced to disk."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    digest = digest or sha256(temporary)
    try:
        before = _recorded(path) if path.exists() else []
    except (FileNotFoundError, ValueError):
        before = []
    # The record comes first and keeps the old sha256 until the rename, so a kill always leaves a recorded file.
    _record(path, digest, *before)
    temporary.replace(path)
    if before:
        _record(path, digest)


def temporary_of(path: Path) -> Path:
    """A temporary name beside `path` for this process. Removes such files of this machine's killed processes."""
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
    """The file that holds the sha256 of a file."""
    return path.with_name(f".{path.name}.sha256")


def _record(path: Path, *digests: str) -> None:
    temporary = temporary_of(record_of(path))
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(f"{digest}  {path.name}\n" for digest in digests)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(record_of(path))
    finally:
        temporary.unlink(missing_ok=True)


def _recorded(path: Path) -> list[str]:
    """The recorded sha256; two if a process was killed while it replaced the file.

    Raises:
        FileNotFoundError: there is no record.
        DamagedError: the record is damaged.
    """
    text = record_of(path).read_bytes().decode(errors="replace")
    if not re.fullmatch(r"([0-9a-f]{64}  [^\n]+\n)+", text):
        raise DamagedError(f"{path}: its record {record_of(path).name} is damaged; {REMEDY_OF_DAMAGE}")
    return [line[:64] for line in text.splitlines()]


def record(path: Path) -> None:
    """Record the sha256 of a complete file that another program wrote."""
    _record(path, sha256(path))


def record_all(paths: Files) -> None:
    """Record the sha256 of files that other programs wrote.

    Args:
        paths: the files, each complete.
    """
    for path in paths:
        record(path)


def remove(path: Path) -> None:
    """Remove a file and what is kept beside it, if they exist."""
    for each in (path, record_of(path), verified_of(path)):
        each.unlink(missing_ok=True)


def check(path: Path) -> None:
    """Compare a file with its recorded sha256. A file without a record passes, since other programs write none.

    Raises:
        DamagedError: they differ, or the record is damaged; the message names the file.
    """
    try:
        recorded = _recorded(path)
        whole = known_sha256(path) in recorded
    except (FileNotFoundError, NotADirectoryError):
        return
    if not whole:
        raise DamagedError(
            f"{path}: damaged, its sha256 is not the one recorded when it was written; {REMEDY_OF_DAMAGE}"
        )


def check_once(path: Path) -> None:
    """As `check`, but a file that has not changed since a process last compared it is not read again.

    The comparison is noted beside the file in `.{name}.verified`, and holds as long as the file's size, times, inode and recorded
    sha256 stay the same. So it misses what a disk does to a file without changing its times. Processes that compare a file at the
    same time write the same note.

    Raises:
        DamagedError: as `check`.
    """
    try:
        before = _state(path)
    except (FileNotFoundError, NotADirectoryError):  # no such file, or no record
        check(path)
        return
    with suppress(OSError, ValueError):
        if json.loads(verified_of(path).read_bytes()) == before:
            return
    check(path)
    # A file may change twice within the precision of its times.
    if before == _state(path) and time.time_ns() - before["ctime_ns"] > 1e9 * SETTLED:
        with suppress(OSError):  # the folder is read-only
            temporary = temporary_of(verified_of(path))
            temporary.write_text(json.dumps(before), encoding="utf-8")
            temporary.replace(verified_of(path))


def verified_of(path: Path) -> Path:
    """The file that notes when a file was last compared with its sha256."""
    return path.with_name(f".{path.name}.verified")


def _state(path: Path) -> dict[str, Any]:
    """What changes with a file, and its record."""
    with path.open("rb") as file:  # a shared disk asks its server when a file is opened
        found = os.fstat(file.fileno())
    state = {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "ctime_ns": found.st_ctime_ns, "inode": found.st_ino}
    return state | {"sha256": _recorded(path)}


def known_sha256(path: Path) -> str:
    """sha256 of a file, read once per process as long as its size, times and inode stay the same."""
    found = path.stat()
    return _known_sha256(path.resolve(), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


@functools.cache
def _known_sha256(path: Path, *_state: int) -> str:
    return sha256(path)


def read_text(path: Path) -> str:
    """Read a text file after `check`.

    Raises:
        ValueError: it is damaged.
        FileNotFoundError: it does not exist.
    """
    check(path)
    return path.read_text(encoding="utf-8")


def write_text(path: Path, text: str) -> None:
    """Write a complete text file, or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write a complete JSON file, or nothing."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def sha256(path: Path) -> str:
    """sha256 of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
