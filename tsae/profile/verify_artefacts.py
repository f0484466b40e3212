"""The command that looks at all that a profile has written, and says how to mend it."""

import os
import shlex
import sys
from pathlib import Path

from tsae.profile import config
from tsae.profile.sources import WheelFile
from tsae.store.locks import hold
from tsae.store.verify import remove as remove_artefact
from tsae.store.verify import verify


def verify_artefacts(configfile: Path, remove: bool = False) -> None:
    """Compare every file of a profile with its recorded sha256.

    Args:
        configfile: the profile.
        remove: remove damaged files, so that a run makes them anew.

    Raises:
        ValueError: files are damaged and were not removed, or a run of the profile is at work.
    """
    profile = config.load(configfile)
    results = Path("results") / profile.profile
    # Nothing runs where nothing can be written.
    if os.access(results, os.W_OK):
        hold(results)
    sources = [source for source in [profile.model.source, *profile.corpus.sources] if isinstance(source, WheelFile)]
    fetched = {Path("results/sources") / source.filename: source.sha256 for source in sources}
    verified = verify([results, Path("figures") / profile.profile], fetched)
    gone: dict[Path, None] = {}
    for path in verified.damaged:
        if remove:
            gone |= dict.fromkeys(remove_artefact(path, results))
        print(f"{path}: damaged{', and removed' if remove else ''}")
    print(f"{len(verified.whole)} files are as they were written, {len(verified.damaged)} are damaged")
    if gone:
        command = ["snakemake", "--configfile", str(configfile), "--cores", "all", "--", "all"]
        print(
            "`make reproduce` makes anew what a missing result needs. This makes all of them, and what depends on them:\n"
            f'PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH" {shlex.join([*command, *map(str, gone)])}'
        )
    if verified.damaged and not remove:
        raise ValueError(
            "remove the damaged files with `make verify-artefacts REMOVE=1`, which says how to make them anew"
        )
