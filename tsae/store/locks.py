"""Locks: one run at a time per profile, and one job at a time per GPU."""

import errno
import fcntl
import logging
import os
import platform
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

LOG = logging.getLogger(__name__)
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def hold(results: Path, to_fetch: Iterable[Path] = ()) -> None:
    """Lock a profile's results until this process ends. Wait first for jobs that a killed run left at work.

    Jobs share the lock `.jobs`; see workflow/rules/common.smk.

    Args:
        results: the profile's folder.
        to_fetch: files that profiles share and this run will fetch.

    Raises:
        ValueError: another process holds a lock (the message names it), or the folder is read-only.
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
        LOG.warning("%s: no locks on this disk (%s); make sure that only one run writes there", results, error.strerror)
    finally:
        os.close(shared)


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ValueError(f"{error.filename}: cannot be written ({error.strerror}); a run must be able to") from None


def _lock(path: Path, busy: str) -> None:
    lock = _open(path)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(OSError):  # a full disk: the lock then names no process
            os.ftruncate(lock, 0)
            os.write(lock, f"process {os.getpid()} on {platform.node()}".encode())
    except BlockingIOError:
        holder = os.read(lock, 100).decode(errors="replace").strip() or "another process"
        os.close(lock)
        raise ValueError(f"{path}: {holder} {busy}") from None


def lock_one(names: Sequence[str], folder: Path, poll_s: float = 1.0) -> int:
    """Take the lock of one of these names, and keep it until this process ends.

    Args:
        names: one per lock.
        folder: where the lock files are.
        poll_s: time between attempts while others hold all locks [s].

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
            LOG.info("waiting for a GPU: other jobs have claimed all of them (%s)", ", ".join(names))
            told = True
        time.sleep(poll_s)
