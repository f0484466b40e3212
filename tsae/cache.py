"""Making the residual cache: every layer's residuals at every token, from one forward pass, in shards."""

import functools
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from tsae import files
from tsae.config import TOKEN_BYTES, Residuals
from tsae.models import LanguageModel, load_model
from tsae.shards import (
    FORMAT,
    SPLITS,
    fingerprint,
    holds_residuals,
    is_made_from,
    n_shards,
    read_shard,
    rows_of,
    run_sequences,
    sampled_shards,
    shard_name,
)

LOG = logging.getLogger(__name__)


class Part(NamedTuple):
    """A share of the shards, for a job of its own."""

    place: int
    n_parts: int

    def of(self, n: int) -> range:
        """Its share of n things, contiguous."""
        return range(n * self.place // self.n_parts, n * (self.place + 1) // self.n_parts)


WHOLE = Part(0, 1)


def cache_residuals(
    model_folder: Path,
    train_tokens: Path,
    heldout_tokens: Path,
    settings: Residuals,
    compatibility_mode: bool,
    folder: Path,
    part: Part = WHOLE,
    streams: bool = False,
    device: torch.device | str = "cpu",
) -> None:
    """Write the shards of one part of the residual cache, and last `{folder}/parts/{part}.json`, which says what it made.

    `{folder}/{split}/layer{L}/shard-00000.safetensors` holds the columns of `shards.read_shard`. Shards made from the same
    inputs are kept, so that an interrupted job goes on where it stopped; of others, those of this part and those that belong
    to no part are removed.

    Args:
        model_folder: a folder of `model_folder.prepare_model`.
        train_tokens: training split of `tokens.write_tokens`.
        heldout_tokens: held-out split, in sequences of the same length.
        settings: layers and sizes.
        compatibility_mode: see `models.load_model`.
        folder: the cache's.
        part: which share of the shards.
        streams: leave out the training residuals, but for those of the mean.
        device: where the model computes.

    Raises:
        ValueError: a missing or unfit input, a layer that the model does not have, too little free disk, or a residual
            beyond float16.
    """
    from tsae.tokens import load_tokens

    if not 0 <= part.place < part.n_parts:
        raise ValueError(f"--part {part.place}: parts go from 0 to {part.n_parts - 1}")
    paths = {"train": train_tokens, "heldout": heldout_tokens}
    ids = {split: load_tokens(path).ids for split, path in paths.items()}
    n_ctx = ids["train"].shape[1]
    if ids["heldout"].shape[1] != n_ctx:
        raise ValueError(
            f"{heldout_tokens}: sequences of {ids['heldout'].shape[1]} tokens, and of {n_ctx} in {train_tokens}"
        )
    source = _read_source(model_folder)
    model = load_model(model_folder, compatibility_mode, device)
    _check_fit(model, settings, ids, paths)

    description = _describe(model, source, ids, paths, settings, compatibility_mode, streams)
    plan = _plan(folder, ids, description, part)
    mine = [plan[place] for place in part.of(len(plan))]
    missing = [item for item in mine if item.missing]
    output = folder / "parts" / f"{part.place}.json"
    _clear(folder, output, plan, mine, n_ctx, model.d_model)

    n_new = sum(item.n_sequences for item in missing) * n_ctx
    start = time.perf_counter()
    with tqdm(total=n_new, desc="residuals", unit="tok", unit_scale=True, disable=None) as progress:
        for item in missing:
            _write_shard(
                model,
                ids[item.split],
                item,
                settings.batch_sequences,
                description["fingerprints"][item.split],
                progress.update,
            )
    LOG.info(
        "residuals: layers %s of %d tokens; %d of %d shards were there, %d tokens run, %.0f tokens/s",
        ", ".join(description["fingerprints"]["train"]),
        sum(item.n_sequences for item in mine) * n_ctx,
        len(mine) - len(missing),
        len(mine),
        n_new,
        n_new / (time.perf_counter() - start),
    )
    tokens = sum(item.n_sequences for item in mine) * n_ctx
    files.write_json(output, {"part": part.place, "n_parts": part.n_parts, "tokens": tokens, "cache": description})


class _PlannedShard(NamedTuple):
    """The same sequences at every layer: one file per layer, written in one pass."""

    split: str
    first: int
    n_sequences: int
    paths: dict[int, Path]
    """layer -> file."""
    with_residuals: bool
    missing: list[int]
    """Layers whose file is not there, or was made from other inputs."""


def _read_source(model_folder: Path) -> Any:
    path = model_folder / "source.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing: {model_folder} is not a whole model folder; prepare the model first")
    return json.loads(files.read_text(path))


def _check_fit(model: LanguageModel, settings: Residuals, ids: dict[str, Tensor], paths: dict[str, Path]) -> None:
    for layer in settings.layers:
        if layer >= model.n_layers:
            raise ValueError(
                f"residuals.layers: layer {layer} does not exist; the model has layers 0 to {model.n_layers - 1}"
            )
    for split in SPLITS:
        if (largest := int(ids[split].max())) >= model.vocab_size:
            raise ValueError(
                f"{paths[split]}: token id {largest} is beyond the model's vocabulary of {model.vocab_size}; "
                "make the tokens again with this model"
            )
        if model.n_positions is not None and ids[split].shape[1] > model.n_positions:
            raise ValueError(
                f"{paths[split]}: sequences of {ids[split].shape[1]} tokens, and the model takes at most "
                f"{model.n_positions}; lower tokens.n_ctx"
            )


def _describe(
    model: LanguageModel,
    source: Any,
    ids: dict[str, Tensor],
    paths: dict[str, Path],
    settings: Residuals,
    compatibility_mode: bool,
    streams: bool,
) -> dict[str, Any]:
    """What all parts have in common: sizes, which training shards the mean is taken over, and what each layer is made from."""
    n_ctx, layers = ids["train"].shape[1], sorted(settings.layers)
    token_sha256 = {split: files.sha256(path) for split, path in paths.items()}
    code = [files.sha256(Path(__file__).with_name(name)) for name in ("shards.py", "models.py", "products.py")]
    return {
        "format": FORMAT,
        "d_model": model.d_model,
        "vocab_size": model.vocab_size,
        "n_ctx": n_ctx,
        "n_sequences": {split: len(ids[split]) for split in SPLITS},
        "shard_sequences": settings.shard_sequences,
        "batch_sequences": settings.batch_sequences,
        "sampled": sampled_shards(len(ids["train"]), n_ctx, settings.shard_sequences, settings.mean_tokens),
        "streams": streams,
        "made_from": {
            "model": source,
            "compatibility_mode": compatibility_mode,
            "tokens": {
                split: {"sha256": token_sha256[split]} | files.load_metadata(path) for split, path in paths.items()
            },
        },
        "fingerprints": {
            split: {
                str(layer): fingerprint(
                    model=source,
                    tokens=token_sha256[split],
                    layer=layer,
                    n_ctx=n_ctx,
                    shard_sequences=settings.shard_sequences,
                    compatibility_mode=compatibility_mode,
                    code=code,
                )
                for layer in layers
            }
            for split in SPLITS
        },
    }


def _plan(folder: Path, ids: dict[str, Tensor], description: Mapping[str, Any], part: Part) -> list[_PlannedShard]:
    plan: list[_PlannedShard] = []
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
                _PlannedShard(split, index * step, n_rows // description["n_ctx"], paths, with_residuals, missing)
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


def _clear(
    folder: Path, output: Path, plan: list[_PlannedShard], mine: list[_PlannedShard], n_ctx: int, d_model: int
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


def _write_shard(
    model: LanguageModel,
    ids: Tensor,
    item: _PlannedShard,
    batch_sequences: int,
    fingerprints: Mapping[str, str],
    report: Callable[[int], object],
) -> None:
    sequences = ids[item.first : item.first + item.n_sequences]
    n_ctx = ids.shape[1]
    n_rows = sequences.numel()
    residuals = {layer: torch.empty(n_rows, model.d_model, dtype=torch.float16) for layer in item.missing}
    norms = {layer: torch.empty(n_rows) for layer in item.missing}
    for rows, found in run_sequences(model, sequences, item.missing, batch_sequences):
        for layer, flat in found.items():
            residuals[layer][rows] = flat
            norms[layer][rows] = flat.norm(dim=1)
            if not residuals[layer][rows].isfinite().all():
                raise ValueError(
                    f"residuals.layers: at layer {layer} a residual's largest entry is {flat.abs().max():.3g}, beyond "
                    f"float16 (65504), in one of sequences {item.first + rows.start // n_ctx} to "
                    f"{item.first + rows.stop // n_ctx - 1} of the {item.split} split; choose other layers"
                )
        report(rows.stop - rows.start)
    for layer in item.missing:
        columns = {
            "residuals": residuals[layer],
            "tokens": sequences.flatten().int(),
            "positions": torch.arange(n_ctx, dtype=torch.int32).repeat(item.n_sequences),
            "norms": norms[layer],
        }
        if not item.with_residuals:
            del columns["residuals"]
        files.save_tensors(item.paths[layer], columns, {"fingerprint": fingerprints[str(layer)]})
