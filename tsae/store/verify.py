"""All that a profile has written, against what was recorded when it was written."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from tsae.store import files

# Files that no rule declares, and the outputs of rules that say they are there, which are removed with them.
VOUCHING = {
    "residuals/*/layer*/*": ("residuals/index.json", "residuals/parts/*.json"),
    "model/*": ("model/source.json",),
    "prefixes.json": (),
}


class Verified(NamedTuple):
    """What a look at every artefact found."""

    whole: list[Path]
    damaged: list[Path]


def verify(folders: Iterable[Path], fetched: Mapping[Path, str]) -> Verified:
    """Compare files with what they were; one that is gone is not damaged, one that cannot be read is.

    Args:
        folders: where every recorded file is compared with its record.
        fetched: further files, and the sha256 that the configuration states.
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
    """Remove an artefact of the profile in `results`, and what says that it is there.

    Returns:
        The outputs of rules that are gone with it, which a run can be asked for; none of a file that only saves work.
    """
    inside = path.relative_to(results) if path.is_relative_to(results) else path
    if inside.match("saes/*/*/checkpoints/*/*"):
        folder = path.parents[1]
        if folder.exists():  # not with another file of it
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
