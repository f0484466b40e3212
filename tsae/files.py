"""Artefacts on disk: whole or not there, and the bytes that were written.

A file is written under a temporary name and renamed, so that a half-written one never has its final name. Its sha256 is
recorded beside it, in `.{name}.sha256`, in the format that `sha256sum --check` takes, and compared before it is read.
"""

import errno
import fcntl
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
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    import torch

LOG = logging.getLogger(__name__)
METADATA_KEY = "tsae"
REMEDY = "delete it and run again, which makes it anew"
REMEDY_OF_DAMAGE = (
    "`make verify-artefacts REMOVE=1`, with the CONFIGFILE of the run, removes it and says how to make it anew"
)
HOST = platform.node().replace(".", "_").replace("-", "_")
UMASK = os.umask(0)
os.umask(UMASK)
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class DamagedError(ValueError):
    """A file is not what was written."""


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


def hold(results: Path, to_fetch: Iterable[Path] = ()) -> None:
    """Lock a profile's results until this process ends, however it does, once no job of a killed run is at work there.

    Jobs share the lock `.jobs`, as workflow/rules/common.smk says.

    Args:
        results: the profile's folder.
        to_fetch: files that profiles share and this run is to fetch.

    Raises:
        ValueError: another process has a lock, and the message says which; or there can be none, in a read-only folder.
    """
    shared = _open(results / ".jobs")
    try:
        _lock(results / ".lock", "is running this profile here; wait until it has ended, or stop it")
        try:
            fcntl.flock(shared, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            LOG.warning("%s: jobs of a run that was killed are still at work; waiting for them", results)
            fcntl.flock(shared, fcntl.LOCK_EX)
        for path in to_fetch:
            _lock(
                path.with_name(f".{path.name}.lock"),
                "is running another profile, which fetches this file; start again when it is there",
            )
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        LOG.warning("%s: no locks on this disk (%s); see to it that only one run writes there", results, error.strerror)
    finally:
        os.close(shared)


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ValueError(f"{error.filename}: cannot be written ({error.strerror}), and a run writes there") from None


def _lock(path: Path, busy: str) -> None:
    lock = _open(path)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(OSError):  # on a full disk the lock has no name in it
            os.ftruncate(lock, 0)
            os.write(lock, f"process {os.getpid()} on {platform.node()}".encode())
    except BlockingIOError:
        holder = os.read(lock, 100).decode(errors="replace").strip() or "another process"
        os.close(lock)
        raise ValueError(f"{path}: {holder} {busy}") from None


def lower_times(folders: Iterable[Path]) -> None:
    """Give files that were last modified in the future, by a clock that has since jumped back, times that are over.

    Snakemake refuses what is made from a file that is newer. The times end now, and which file is older than which stays as it is.
    """
    now, late = time.time_ns(), {}
    for top in folders:
        for folder, _, names in os.walk(top):
            for path in (Path(folder, name) for name in names):
                with suppress(OSError):  # gone meanwhile
                    if (modified := path.stat().st_mtime_ns) > now:
                        late[path] = modified
    times = {modified: now - 1000 * place for place, modified in enumerate(sorted(set(late.values()), reverse=True))}
    for path, modified in late.items():
        with suppress(OSError):  # not ours to change
            os.utime(path, ns=(times[modified],) * 2)


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


def save_tensors(path: Path, tensors: Mapping[str, "torch.Tensor"], metadata: Mapping[str, Any] | None = None) -> None:
    """Write a whole safetensors file, or nothing, wherever the tensors are; metadata is stored as JSON.

    It goes under one key, since safetensors writes several in an order that changes from run to run.
    """
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
            temporary,
            {METADATA_KEY: json.dumps(metadata)} if metadata else None,
        )


def load_tensors(path: Path) -> dict[str, "torch.Tensor"]:
    """Read every tensor of a safetensors file; large ones are memory-mapped.

    Raises:
        ValueError: the file is missing, damaged, truncated or not safetensors.
    """
    check(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error


def load_as(
    path: Path, expected: "Mapping[str, tuple[tuple[int | None, ...], torch.dtype]]"
) -> dict[str, "torch.Tensor"]:
    """Read a safetensors file that must hold certain tensors, and no others.

    Args:
        path: the file.
        expected: name -> shape, where None is any length but 0, and dtype.

    Raises:
        ValueError: as `load_tensors`, or it holds something else.
    """
    tensors = load_tensors(path)
    fits = tensors.keys() == expected.keys() and all(
        tensor.dtype == expected[name][1]
        and tensor.ndim == len(expected[name][0])
        and all(
            length == wanted if wanted is not None else length > 0
            for length, wanted in zip(tensor.shape, expected[name][0], strict=True)
        )
        for name, tensor in tensors.items()
    )
    if not fits:
        found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        raise ValueError(f"{path}: holds {described(found)} instead of {described(expected)}; {REMEDY}")
    return tensors


def described(tensors: "Mapping[str, tuple[tuple[int | None, ...], torch.dtype]]") -> str:
    """Shapes and dtypes in words, `W_enc (128, 32) float32`; what may have any length is `n`."""
    return (
        ", ".join(
            f"{name} ({', '.join('n' if length is None else str(length) for length in shape)}) {str(dtype).removeprefix('torch.')}"
            for name, (shape, dtype) in tensors.items()
        )
        or "nothing"
    )


def load_metadata(path: Path, checked: bool = True) -> dict[str, Any]:
    """Read the metadata that `save_tensors` stored; unless the whole file is to be checked, nothing else is read.

    Raises:
        ValueError: the file is missing, damaged, truncated, not safetensors, or its metadata are of another program.
    """
    if checked:
        check(path)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY, "{}")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its metadata are not what was written here ({error}); {REMEDY}") from None
    if not isinstance(metadata, dict):
        raise ValueError(
            f"{path}: its metadata are a {type(metadata).__name__}, and not what was written here; {REMEDY}"
        )
    return metadata


def sha256(path: Path) -> str:
    """sha256 of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
