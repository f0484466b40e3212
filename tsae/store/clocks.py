"""Times of files, after a clock has jumped back."""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def lower_times(folders: Iterable[Path]) -> None:
    """Move modification times that lie in the future to the present, and keep their order.

    A clock that has since jumped back leaves such times. Snakemake refuses a file that is older than its input.
    """
    now, late = time.time_ns(), {}
    for top in folders:
        for folder, _, names in os.walk(top):
            for path in (Path(folder, name) for name in names):
                with suppress(OSError):  # deleted meanwhile
                    if (modified := path.stat().st_mtime_ns) > now:
                        late[path] = modified
    times = {modified: now - 1000 * place for place, modified in enumerate(sorted(set(late.values()), reverse=True))}
    for path, modified in late.items():
        with suppress(OSError):  # not ours to change
            os.utime(path, ns=(times[modified],) * 2)
