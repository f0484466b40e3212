"""The stage that caches the residuals of every layer at every token, from one forward pass, in shards."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from tsae.compute.devices import Device
from tsae.model.folder import model_source
from tsae.model.language_model import LanguageModel, load_model
from tsae.profile.inputs import Residuals
from tsae.residuals.plan_shards import PlannedShard, clear_stale, plan_shards
from tsae.residuals.shards import (
    FORMAT,
    SPLITS,
    fingerprint,
    n_shards,
    positions_of,
    run_sequences,
    sampled_shards,
    to_float16,
)
from tsae.store import files
from tsae.store.arguments import Folder
from tsae.store.code import digest_of
from tsae.store.tensors import load_metadata, save_tensors
from tsae.text.tokens import load_tokens

LOG = logging.getLogger(__name__)


def cache_residuals(
    model: Folder,
    train: Path,
    heldout: Path,
    settings: Residuals,
    compatibility_mode: bool,
    folder: Path,
    part: int = 0,
    parts: int = 1,
    streams: bool = False,
    device: Device = "cpu",
) -> None:
    """Cache the residual stream of every layer.

    `{folder}/{split}/layer{L}/shard-00000.safetensors` holds the columns of `shards.read_shard`. Shards made from the same
    inputs are kept, so an interrupted job resumes where it stopped. Other files of this part or of no part are removed.
    `{folder}/parts/{part}.json`, written last, says what this part made.

    Args:
        model: a model folder.
        train: the training split.
        heldout: the held-out split, in sequences of the same length.
        settings: layers and sizes.
        compatibility_mode: fold layer norms and centre residual-writing weights.
        folder: the cache's.
        part: which share of the shards to make, counted from 0.
        parts: how many shares there are.
        streams: leave out the training residuals, except those that the mean is taken over.
        device: where the model computes.

    Raises:
        ValueError: an input is missing or does not fit, the model lacks a layer, the disk is too small, or a residual is not
            finite.
    """
    if not 0 <= part < parts:
        raise ValueError(f"--part {part}: parts go from 0 to {parts - 1}")
    paths = {"train": train, "heldout": heldout}
    ids = {split: load_tokens(path).ids for split, path in paths.items()}
    n_ctx = ids["train"].shape[1]
    if ids["heldout"].shape[1] != n_ctx:
        raise ValueError(f"{heldout}: sequences of {ids['heldout'].shape[1]} tokens, and of {n_ctx} in {train}")
    source = model_source(model)
    language_model = load_model(model, compatibility_mode, device)
    _check_fit(language_model, settings, ids, paths)

    description = _describe(language_model, source, ids, paths, settings, compatibility_mode, streams)
    n = sum(n_shards(len(ids[split]), settings.shard_sequences) for split in SPLITS)
    own = range(n * part // parts, n * (part + 1) // parts)
    plan = plan_shards(folder, ids, description, own)
    mine = [plan[place] for place in own]
    missing = [item for item in mine if item.missing]
    output = folder / "parts" / f"{part}.json"
    clear_stale(folder, output, plan, mine, n_ctx, language_model.d_model)

    n_tokens = sum(item.n_sequences for item in mine) * n_ctx
    n_new = sum(item.n_sequences for item in missing) * n_ctx
    start = time.perf_counter()
    with tqdm(total=n_new, desc="residuals", unit="tok", unit_scale=True, disable=None) as progress:
        for item in missing:
            _write_shard(
                language_model,
                ids[item.split],
                item,
                settings.batch_sequences,
                description["fingerprints"][item.split],
                progress.update,
            )
    LOG.info(
        "residuals: layers %s of %d tokens; %d of %d shards were there, %d tokens run, %.0f tokens/s",
        ", ".join(description["fingerprints"]["train"]),
        n_tokens,
        len(mine) - len(missing),
        len(mine),
        n_new,
        n_new / (time.perf_counter() - start),
    )
    files.write_json(output, {"part": part, "n_parts": parts, "tokens": n_tokens, "cache": description})


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


def _describe(
    model: LanguageModel,
    source: Any,
    ids: dict[str, Tensor],
    paths: dict[str, Path],
    settings: Residuals,
    compatibility_mode: bool,
    streams: bool,
) -> dict[str, Any]:
    """What all parts have in common: sizes, the training shards that the mean is taken over, and the inputs of each layer."""
    n_ctx, layers = ids["train"].shape[1], sorted(settings.layers)
    token_sha256 = {split: files.sha256(path) for split, path in paths.items()}
    code = digest_of("tsae.residuals.shards")
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
            "tokens": {split: {"sha256": token_sha256[split]} | load_metadata(path) for split, path in paths.items()},
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


def _write_shard(
    model: LanguageModel,
    ids: Tensor,
    item: PlannedShard,
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
            try:
                residuals[layer][rows] = to_float16(flat)
            except ValueError as error:
                raise ValueError(
                    f"residuals.layers: {error} at layer {layer}, in one of sequences {item.first + rows.start // n_ctx} to "
                    f"{item.first + rows.stop // n_ctx - 1} of the {item.split} split; choose other layers"
                ) from error
            norms[layer][rows] = flat.norm(dim=1)
        report(rows.stop - rows.start)
    for layer in item.missing:
        columns = {
            "residuals": residuals[layer],
            "tokens": sequences.flatten().int(),
            "positions": positions_of(n_rows, n_ctx),
            "norms": norms[layer],
        }
        held = {name: columns[name] for name in item.columns[layer]}
        save_tensors(item.paths[layer], held, {"fingerprint": fingerprints[str(layer)]})
