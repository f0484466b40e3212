"""All that a profile has written, against what was recorded when it was written."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tsae.files import check

# Files that no rule declares, and those that say they are there.
VOUCHING = {
    "residuals/*/layer*/*": ("residuals/index.json", "residuals/parts/*.json"),
    "model/*": ("model/source.json",),
}


class Verified(NamedTuple):
    """What a look at every artefact found."""

    whole: list[Path]
    damaged: list[Path]


def verify(folders: Iterable[Path]) -> Verified:
    """Compare every recorded file below some folders with its record; one that is gone is not damaged."""
    verified = Verified([], [])
    for record in sorted(record for folder in folders for record in folder.rglob(".*.sha256")):
        path = record.with_name(record.name.removeprefix(".").removesuffix(".sha256"))
        if not path.is_file():
            continue
        try:
            check(path)
            verified.whole.append(path)
        except ValueError:
            verified.damaged.append(path)
    return verified


def remove(path: Path, results: Path) -> None:
    """Remove an artefact of the profile in `results`, so that the next run makes it anew."""
    path.unlink()
    if path.is_relative_to(results):
        for pattern, vouching in VOUCHING.items():
            if path.relative_to(results).match(pattern):
                for other in (other for name in vouching for other in results.glob(name)):
                    other.unlink()
