"""Locks: one run at a time in a profile's results, and one job at a time on a GPU."""

import errno
import fcntl
import logging
import os
import platform
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

if TYPE_CHECKING:
    pass

LOG = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


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


def lock_one(names: Sequence[str], folder: Path, poll_s: float = 1.0) -> int:
    """Take the lock of one of these names, and keep it until this process ends, however it does.

    Args:
        names: what there is one lock of each for.
        folder: where the lock files are, the same for all who share them.
        poll_s: how often to look again while others hold all of them [s].

    Returns:
        The index of the name whose lock was taken.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    locks = [os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o600) for name in names]
    told = False
    while True:
        for index, lock in enumerate(locks):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            for other in locks[:index] + locks[index + 1 :]:
                os.close(other)
            return index
        if not told:
            LOG.info("waiting for a GPU: other jobs have claimed all that are here (%s)", ", ".join(names))
            told = True
        time.sleep(poll_s)
