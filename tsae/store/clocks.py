"""Times of files, after a clock has jumped back."""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


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
