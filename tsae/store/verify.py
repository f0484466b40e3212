"""Compare the files of a profile with their recorded sha256, and remove damaged ones."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from tsae.store import files, layout

# Files that are no rule's output -> the outputs that say they exist, which are removed with them.
VOUCHING = {
    "residuals/*/layer*/*": (layout.RESIDUALS, layout.RESIDUALS_PART.format(part="*")),
    f"{layout.MODEL}/*": (layout.MODEL_SOURCE,),
    layout.PREFIXES: (),
}


class Verified(NamedTuple):
    """The files that were compared."""

    whole: list[Path]
    damaged: list[Path]


def verify(folders: Iterable[Path], fetched: Mapping[Path, str]) -> Verified:
    """Compare files with their sha256. A missing file is not damaged; an unreadable one is.

    Args:
        folders: every recorded file in these is compared with its record.
        fetched: further files, with the sha256 that the configuration states.
    """
    verified = Verified([], [])
    recorded = (
        record.with_name(record.name.removeprefix(".").removesuffix(".sha256"))
        for folder in folders
        for record in sorted(folder.rglob(".*.sha256"))
    )
    for path in [*fetched, *recorded]:
        try:
            if not path.is_file():
                continue
            if path not in fetched:
                files.check(path)
            whole = path not in fetched or files.known_sha256(path) == fetched[path]
        except (ValueError, OSError):
            whole = False
        (verified.whole if whole else verified.damaged).append(path)
    return verified


def remove(path: Path, results: Path) -> list[Path]:
    """Remove a file of the profile in `results`, and the outputs that say it exists.

    Returns:
        The removed outputs of rules, which a run can restore; none for a file that only saves work.
    """
    inside = path.relative_to(results) if path.is_relative_to(results) else path
    if inside.match(f"{layout.CHECKPOINTS.format(job='*/*')}/*/*"):
        folder = path.parents[1]
        if folder.exists():  # not yet removed with another of its files
            shutil.rmtree(folder)
        return [folder]
    files.remove(path)
    if any(part.startswith(".") for part in inside.parts):
        return []
    for pattern, vouching in VOUCHING.items():
        if inside.match(pattern):
            gone = [other for name in vouching for other in sorted(results.glob(name))]
            for other in gone:
                files.remove(other)
            return gone
    return [path]
