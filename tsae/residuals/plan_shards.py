"""Which shards of the residual cache a job must write, and which old files it removes first."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from tsae.profile.inputs import COLUMN_BYTES
from tsae.residuals.shards import SPLITS, columns_in, is_made_from, n_rows_of, n_shards, read_shard, shard_name
from tsae.store import files


class PlannedShard(NamedTuple):
    """Some sequences at every layer: one file per layer, written in one pass."""

    split: str
    first: int
    n_sequences: int
    paths: dict[int, Path]
    """layer -> file."""
    columns: dict[int, tuple[str, ...]]
    """layer -> names of the columns in its file."""
    missing: list[int]
    """Layers whose file is missing or was made from other inputs."""


def plan_shards(folder: Path, ids: dict[str, Tensor], description: Mapping[str, Any], own: range) -> list[PlannedShard]:
    """Every shard of both splits, and the layers at which it is missing.

    Args:
        folder: the cache's.
        ids: token ids by split, each (n_sequences, n_ctx).
        description: what all parts have in common.
        own: indices of this part's shards, which are read in full; other shards are judged by their metadata.
    """
    plan: list[PlannedShard] = []
    for split in SPLITS:
        fingerprints = {int(layer): made_from for layer, made_from in description["fingerprints"][split].items()}
        step = description["shard_sequences"]
        for index in range(n_shards(len(ids[split]), step)):
            paths = {layer: folder / split / f"layer{layer}" / shard_name(index) for layer in fingerprints}
            n_rows = n_rows_of(index, len(ids[split]), step, description["n_ctx"])
            columns = {layer: columns_in(split, index, layer, fingerprints, description) for layer in fingerprints}
            missing = [
                layer
                for layer, path in paths.items()
                if not (
                    _is_whole(path, fingerprints[layer], n_rows, description["d_model"], columns[layer])
                    if len(plan) in own
                    else is_made_from(path, fingerprints[layer])
                )
            ]
            plan.append(PlannedShard(split, index * step, n_rows // description["n_ctx"], paths, columns, missing))
    return plan


def _is_whole(path: Path, made_from: str, n_rows: int, d_model: int, columns: tuple[str, ...]) -> bool:
    try:
        read_shard(path, made_from, n_rows, d_model, columns)
    except ValueError:
        return False
    return True


def clear_stale(
    folder: Path, output: Path, plan: list[PlannedShard], mine: list[PlannedShard], n_ctx: int, d_model: int
) -> None:
    """Check that the missing shards fit on the disk, then remove the index, shards of other inputs and files of killed runs.

    Other parts' files stay, since those jobs may be writing them. The space they take counts as free for the shards that those
    jobs still have to write.
    """
    names = {path for item in plan for path in item.paths.values()}
    own = {path for item in mine for path in item.paths.values()}
    whole = {path for item in plan for layer, path in item.paths.items() if layer not in item.missing}
    available, stale = 0, []
    for path in (path for split in SPLITS for path in (folder / split).glob("layer*/*shard-*")):
        # The shard itself, or its hidden record or temporary file.
        shard = path.with_name(path.name.lstrip(".").partition(".safetensors")[0] + ".safetensors")
        if shard in whole and path.suffix != ".tmp":
            continue
        if shard in own or shard not in names:
            stale.append(path)
        try:
            available += path.stat().st_size
        except FileNotFoundError:
            continue  # another part just renamed or removed it
    needed = sum(
        item.n_sequences * n_ctx * (2 * d_model if name == "residuals" else COLUMN_BYTES)
        for item in plan
        for layer in item.missing
        for name in item.columns[layer]
    )
    folder.mkdir(parents=True, exist_ok=True)
    available += shutil.disk_usage(folder).free
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
