"""The command that checks the files of a profile, and says how to restore damaged ones."""

import os
import shlex
import sys
from pathlib import Path

from tsae.profile import config
from tsae.store.layout import SOURCES, figures_of, results_of
from tsae.store.locks import hold
from tsae.store.verify import remove as remove_artefact
from tsae.store.verify import verify


def verify_artefacts(configfile: Path, remove: bool = False) -> None:
    """Compare every file of a profile with its recorded sha256.

    Args:
        configfile: the profile.
        remove: remove damaged files, and print the command that restores them.

    Raises:
        ValueError: there are damaged files that were not removed, or the profile is running.
    """
    profile = config.load(configfile)
    results = results_of(profile.profile)
    # A folder that cannot be written to has no run.
    if os.access(results, os.W_OK):
        hold(results)
    fetched = {SOURCES / source.filename: source.sha256 for source in profile.wheel_files()}
    verified = verify([results, figures_of(profile.profile)], fetched)
    gone: dict[Path, None] = {}
    for path in verified.damaged:
        if remove:
            gone |= dict.fromkeys(remove_artefact(path, results))
        print(f"{path}: damaged{', and removed' if remove else ''}")
    print(f"{len(verified.whole)} files are as they were written, {len(verified.damaged)} are damaged")
    if gone:
        command = ["snakemake", "--configfile", str(configfile), "--cores", "all", "--", "all"]
        print(
            "`make reproduce` restores only what a missing result needs. This restores all, and what depends on them:\n"
            f'PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH" {shlex.join([*command, *map(str, gone)])}'
        )
    if verified.damaged and not remove:
        raise ValueError(
            "remove the damaged files with `make verify-artefacts REMOVE=1`, which says how to restore them"
        )
