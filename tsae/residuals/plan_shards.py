"""Which shards of the residual cache a job has yet to write, and what of earlier inputs goes before it does."""

import functools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from tsae.profile.inputs import TOKEN_BYTES
from tsae.residuals.shards import SPLITS, holds_residuals, is_made_from, n_shards, read_shard, rows_of, shard_name
from tsae.store import files


class Part(NamedTuple):
    """A share of the shards, for a job of its own."""

    place: int
    n_parts: int

    def of(self, n: int) -> range:
        """Its share of n things, contiguous."""
        return range(n * self.place // self.n_parts, n * (self.place + 1) // self.n_parts)


class PlannedShard(NamedTuple):
    """The same sequences at every layer: one file per layer, written in one pass."""

    split: str
    first: int
    n_sequences: int
    paths: dict[int, Path]
    """layer -> file."""
    with_residuals: bool
    missing: list[int]
    """Layers whose file is not there, or was made from other inputs."""


def plan_shards(folder: Path, ids: dict[str, Tensor], description: Mapping[str, Any], part: Part) -> list[PlannedShard]:
    """Every shard of both splits, and at which layers each is missing.

    Args:
        folder: the cache's.
        ids: token ids by split, each (n_sequences, n_ctx).
        description: what all parts have in common.
        part: the share whose shards are read, and not only looked at.
    """
    plan: list[PlannedShard] = []
    own = part.of(sum(n_shards(len(ids[split]), description["shard_sequences"]) for split in SPLITS))
    for split in SPLITS:
        fingerprints = {int(layer): made_from for layer, made_from in description["fingerprints"][split].items()}
        step = description["shard_sequences"]
        for index in range(n_shards(len(ids[split]), step)):
            paths = {layer: folder / split / f"layer{layer}" / shard_name(index) for layer in fingerprints}
            n_rows = rows_of(index, len(ids[split]), step, description["n_ctx"])
            with_residuals = holds_residuals(split, index, description)
            # Those of other parts, which these parts check, only count on the disk.
            is_there = (
                functools.partial(
                    _is_whole, n_rows=n_rows, d_model=description["d_model"], with_residuals=with_residuals
                )
                if len(plan) in own
                else is_made_from
            )
            missing = [layer for layer, path in paths.items() if not is_there(path, fingerprints[layer])]
            plan.append(
                PlannedShard(split, index * step, n_rows // description["n_ctx"], paths, with_residuals, missing)
            )
    return plan


def _is_whole(path: Path, made_from: str, n_rows: int, d_model: int, with_residuals: bool) -> bool:
    if not path.is_file():
        return False
    try:
        read_shard(path, made_from, n_rows, d_model, with_residuals)
        return True
    except ValueError:
        return False


def clear_stale(
    folder: Path, output: Path, plan: list[PlannedShard], mine: list[PlannedShard], n_ctx: int, d_model: int
) -> None:
    """Remove what is out of date, once it is sure that what is missing fits.

    That is the index, which describes shards that go now, shards of other inputs and what killed runs left. Files of other
    parts' shards are theirs, and being written perhaps; on the disk they count like what those parts have yet to write.
    """
    names = {path for item in plan for path in item.paths.values()}
    own = {path for item in mine for path in item.paths.values()}
    whole = {path for item in plan for layer, path in item.paths.items() if layer not in item.missing}
    sizes: dict[Path, int] = {}
    stale = []
    for path in (path for split in SPLITS for path in (folder / split).glob("layer*/*shard-*")):
        # The shard itself, or hidden, what is recorded of it or being written.
        shard = path.with_name(path.name.lstrip(".").partition(".safetensors")[0] + ".safetensors")
        if shard in whole and path.suffix != ".tmp":
            continue
        if shard in own or shard not in names:
            stale.append(path)
        try:
            sizes[path] = path.stat().st_size
        except FileNotFoundError:
            continue  # another part has just renamed or removed it
    needed = sum(
        item.n_sequences * n_ctx * len(item.missing) * (TOKEN_BYTES + 2 * d_model * item.with_residuals)
        for item in plan
    )
    folder.mkdir(parents=True, exist_ok=True)
    available = shutil.disk_usage(folder).free + sum(sizes.values())
    if needed > available:
        raise ValueError(
            f"{folder}: the missing shards need {needed / 1e9:.1f} GB and {available / 1e9:.1f} GB are free; free some "
            "disk, set residuals.disk_gb, or lower tokens.train or the number of residuals.layers"
        )
    if stale or any(item.missing for item in mine):
        files.remove(folder / "index.json")
        files.remove(output)
    for path in stale:
        path.unlink(missing_ok=True)
