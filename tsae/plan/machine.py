"""What a run may take of its machine: memory and cores, of which a container or a batch system may give only a part."""

import math
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

# Of the memory an eighth is for the rest: the operating system, Snakemake (0.2 GB), and the disk cache, from which jobs read
# residuals again. 2 GB of 16.
JOBS_SHARE = 7 / 8
# Keys whose lowering lowers the memory of a stage's largest job.
LOWER = {
    "prepare_model": "model (a smaller one)",
    "tokenize": "tokens.train",
    "cache_residuals": "residuals.batch_sequences",
    "unigrams": "model (a smaller one)",
    "ngrams": "ngrams.tokens",
    "conditional_means": "residuals.shard_sequences",
    "train": "training.buffer_tokens",
    "letter_tokens": "tokens.heldout",
    "ablate": "evaluation.batch_sequences",
    "measure_baselines": "tokens.heldout",
    "evaluate": "evaluation.batch_sequences",
    "measure_curve": "evaluation.batch_sequences",
    "find_phrases": "sweep (leave out the block encoder)",
    "measure_phrases": "phrases.n_phrases",
}


class Mount(NamedTuple):
    """A mounted hierarchy of control groups."""

    controllers: frozenset[str]
    """Of version 1; none in version 2, whose hierarchy is one for all."""
    root: PurePosixPath
    """The group that is mounted, not always the topmost: a container sees its own."""
    folder: Path


def jobs_memory(total: float, limit: float = math.inf) -> int:
    """Memory that all jobs may take together [MB].

    Args:
        total: of the machine [bytes].
        limit: of the control group [bytes].
    """
    return int(JOBS_SHARE * min(total, limit) / 1e6)


def total_memory() -> int:
    """Memory of the machine [bytes]."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_limit(process: Path = Path("/proc/self")) -> float:
    """The smallest memory limit of this process's control group and those above it, infinite if there is none [bytes].

    Args:
        process: its folder in /proc; any folder with `cgroup` and `mountinfo` will do.
    """
    names = ("memory.max", "memory.high", "memory.limit_in_bytes")
    limits = [_number(folder / name) for folder in _groups(process, "memory") for name in names]
    return min((limit for limit in limits if limit is not None), default=math.inf)


def core_limit(process: Path = Path("/proc/self")) -> int | None:
    """Cores whose time this process's control group may take, rounded up; None if there is no limit.

    Which cores it may run on is another matter, which Snakemake knows.
    """
    shares = []
    for folder in _groups(process, "cpu"):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        quota = quota or _text(folder / "cpu.cfs_quota_us")
        period = period or _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():  # `max` and -1 are no limit
            shares.append(int(quota) / int(period))
    return max(1, math.ceil(min(shares))) if shares else None


def too_large(needs: Mapping[str, int], running: Collection[str], limit: int, where: str) -> str | None:
    """What to tell the user if a job that is to run needs more than there is, alone; None if all have room.

    Args:
        needs: memory of the largest job by stage [MB].
        running: the stages that are to run.
        limit: what all jobs may take together [MB].
        where: what has the limit.
    """
    stage = max((stage for stage in needs if stage in running), key=lambda stage: needs[stage], default=None)
    if stage is None or needs[stage] <= limit:
        return None
    return (
        f"a job of {stage} needs {needs[stage] / 1000:.1f} GB of memory, and {limit / 1000:.1f} GB are there for jobs ({where}); "
        f"lower {LOWER[stage]}, or try all the same with --resources mem_mb={needs[stage]}"
    )


def name_the_user() -> None:
    """Give this process's user a name in the environment, which Snakemake and torch ask for; in a container it may have none."""
    if not any(os.environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        os.environ["USER"] = str(os.getuid())


def _groups(process: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control groups that may limit something, from its own up to the topmost that is mounted."""
    own: dict[str, PurePosixPath] = {}
    for line in _text(process / "cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), PurePosixPath(group))
    for mount in _mounts(process):
        path = own.get(controller if mount.controllers else "")
        if path is None or (mount.controllers and controller not in mount.controllers):
            continue
        # A container that sees only its own group may still be told the path from the host's topmost.
        inside = path.relative_to(mount.root) if path.is_relative_to(mount.root) else PurePosixPath()
        for part in (inside, *inside.parents):
            yield mount.folder / part


def _mounts(process: Path) -> Iterator[Mount]:
    for line in _text(process / "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        root, folder = (part.replace(r"\040", " ") for part in before.split(" ")[3:5])
        if kind in ("cgroup", "cgroup2"):
            controllers = options.split(" ")[-1].split(",") if kind == "cgroup" else []
            yield Mount(frozenset(controllers), PurePosixPath(root), Path(folder))


def _number(path: Path) -> float | None:
    text = _text(path)
    return float(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
