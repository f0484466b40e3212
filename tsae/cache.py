"""Making the residual cache: every layer's residuals at every token, from one forward pass, in shards."""

import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from tsae import files
from tsae.config import Residuals
from tsae.models import LanguageModel, load_model
from tsae.residuals import FORMAT, SPLITS, is_kept

LOG = logging.getLogger(__name__)


def cache_residuals(
    model_folder: Path,
    train_tokens: Path,
    heldout_tokens: Path,
    settings: Residuals,
    compatibility_mode: bool,
    output: Path,
) -> None:
    """Cache the residuals of both splits and describe them in `output`, an `index.json`.

    Beside `output`, `{split}/layer{L}/shard-00000.safetensors` holds the columns of `Shard`, all but `kept`. Shards
    made from the same inputs are kept, so that an interrupted job goes on where it stopped; other shards are removed.

    Args:
        model_folder: a folder of `model_folder.prepare_model`.
        train_tokens: training split of `tokens.write_tokens`.
        heldout_tokens: held-out split, in sequences of the same length.
        settings: layers, sizes and the norm above which tokens are left out.
        compatibility_mode: see `models.load_model`.
        output: the index; its folder is the cache's.

    Raises:
        ValueError: a missing or unfit input, a layer that the model does not have, too little free disk, a residual
            beyond float16, or no training token below the largest norm.
    """
    from tsae.tokens import load_tokens

    paths = {"train": train_tokens, "heldout": heldout_tokens}
    ids = {split: load_tokens(path).ids for split, path in paths.items()}
    n_ctx = ids["train"].shape[1]
    if ids["heldout"].shape[1] != n_ctx:
        raise ValueError(
            f"{heldout_tokens}: sequences of {ids['heldout'].shape[1]} tokens, and of {n_ctx} in {train_tokens}"
        )
    source = _read_source(model_folder)
    model = load_model(model_folder, compatibility_mode)
    _check_fit(model, settings, ids, paths)

    layers = sorted(settings.layers)
    fingerprints = {
        (split, layer): _fingerprint(
            model=source,
            tokens=files.sha256(paths[split]),
            layer=layer,
            n_ctx=n_ctx,
            shard_sequences=settings.shard_sequences,
            compatibility_mode=compatibility_mode,
            code=[files.sha256(Path(__file__).with_name(name)) for name in ("cache.py", "models.py")],
        )
        for split in SPLITS
        for layer in layers
    }
    folder = output.parent
    plan = _plan(folder, ids, layers, settings.shard_sequences, fingerprints)
    missing = [item for item in plan if item.missing]
    _clear(output, plan, n_ctx, model.d_model)

    n_new = sum(item.n_sequences for item in missing) * n_ctx
    start = time.perf_counter()
    with tqdm(total=n_new, desc="residuals", unit="tok", unit_scale=True, disable=None) as progress:
        for item in missing:
            _write_shard(model, ids[item.split], item, settings.batch_sequences, fingerprints, progress.update)
    LOG.info(
        "residuals: layers %s of %d tokens; %d of %d shards were there, %d tokens run, %.0f tokens/s",
        ", ".join(map(str, layers)),
        sum(map(len, ids.values())) * n_ctx,
        len(plan) - len(missing),
        len(plan),
        n_new,
        n_new / (time.perf_counter() - start),
    )
    made_from = {
        "model": json.loads(source),
        "compatibility_mode": compatibility_mode,
        "tokens": {split: {"sha256": files.sha256(path)} | files.load_metadata(path) for split, path in paths.items()},
    }
    files.write_json(output, _describe(folder, ids, settings, model.d_model, fingerprints) | {"made_from": made_from})


class _PlannedShard(NamedTuple):
    """The same sequences at every layer: one file per layer, written in one pass."""

    split: str
    first: int
    n_sequences: int
    paths: dict[int, Path]
    """layer -> file."""
    missing: list[int]
    """Layers whose file is not there, or was made from other inputs."""


def _read_source(model_folder: Path) -> str:
    path = model_folder / "source.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing: {model_folder} is not a whole model folder; prepare the model first")
    return path.read_text()


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


def _fingerprint(**inputs: Any) -> str:
    return hashlib.sha256(json.dumps({"format": FORMAT} | inputs, sort_keys=True).encode()).hexdigest()


def _shard_name(index: int) -> str:
    return f"shard-{index:05d}.safetensors"


def _plan(
    folder: Path,
    ids: dict[str, Tensor],
    layers: list[int],
    shard_sequences: int,
    fingerprints: dict[tuple[str, int], str],
) -> list[_PlannedShard]:
    plan = []
    for split in SPLITS:
        for first in range(0, len(ids[split]), shard_sequences):
            name = _shard_name(first // shard_sequences)
            paths = {layer: folder / split / f"layer{layer}" / name for layer in layers}
            n_sequences = min(shard_sequences, len(ids[split]) - first)
            n_rows = n_sequences * ids[split].shape[1]
            missing = [layer for layer in layers if not _is_whole(paths[layer], fingerprints[split, layer], n_rows)]
            plan.append(_PlannedShard(split, first, n_sequences, paths, missing))
    return plan


def _is_whole(path: Path, fingerprint: str, n_rows: int) -> bool:
    """Whether the shard is there, made from these inputs, and has that many rows in every column."""
    if not path.is_file():
        return False
    try:
        columns = files.load_tensors(path)
        return files.load_metadata(path).get("fingerprint") == fingerprint and (
            set(columns) == {"residuals", "tokens", "positions", "norms"}
            and all(len(column) == n_rows for column in columns.values())
        )
    except ValueError:
        return False


def _clear(output: Path, plan: list[_PlannedShard], n_ctx: int, d_model: int) -> None:
    """Remove the index, shards of other inputs and what killed runs left, once it is sure that what is missing fits."""
    folder = output.parent
    whole = {path for item in plan for layer, path in item.paths.items() if layer not in item.missing}
    found = [path for split in SPLITS for path in (folder / split).glob("layer*/*shard-*") if path not in whole]
    found += folder.glob(f".{output.name}.*.tmp")
    # float16 residuals, and 4 bytes each of token id, position and norm.
    needed = sum(item.n_sequences * len(item.missing) for item in plan) * n_ctx * (2 * d_model + 12)
    folder.mkdir(parents=True, exist_ok=True)
    available = shutil.disk_usage(folder).free + sum(path.stat().st_size for path in found)
    if needed > available:
        raise ValueError(
            f"{folder}: the missing shards need {needed / 1e9:.1f} GB and {available / 1e9:.1f} GB are free; free some "
            "disk, or lower tokens.train or the number of residuals.layers"
        )
    # The index first: it describes shards that go now.
    for path in (output, *found):
        path.unlink(missing_ok=True)


def _write_shard(
    model: LanguageModel,
    ids: Tensor,
    item: _PlannedShard,
    batch_sequences: int,
    fingerprints: dict[tuple[str, int], str],
    report: Callable[[int], object],
) -> None:
    sequences = ids[item.first : item.first + item.n_sequences]
    n_ctx = ids.shape[1]
    n_rows = sequences.numel()
    residuals = {layer: torch.empty(n_rows, model.d_model, dtype=torch.float16) for layer in item.missing}
    norms = {layer: torch.empty(n_rows) for layer in item.missing}
    for start in range(0, item.n_sequences, batch_sequences):
        batch = sequences[start : start + batch_sequences]
        rows = slice(start * n_ctx, start * n_ctx + batch.numel())
        for layer, residual in model.residuals(batch.long(), item.missing).items():
            flat = residual.flatten(0, 1)
            residuals[layer][rows] = flat
            norms[layer][rows] = flat.norm(dim=1)
            if not residuals[layer][rows].isfinite().all():
                raise ValueError(
                    f"residuals.layers: at layer {layer} a residual's largest entry is {flat.abs().max():.3g}, beyond "
                    f"float16 (65504), in one of sequences {item.first + start} to "
                    f"{item.first + start + len(batch) - 1} of the {item.split} split; choose other layers"
                )
        report(batch.numel())
    for layer in item.missing:
        files.save_tensors(
            item.paths[layer],
            {
                "residuals": residuals[layer],
                "tokens": sequences.flatten().int(),
                "positions": torch.arange(n_ctx, dtype=torch.int32).repeat(item.n_sequences),
                "norms": norms[layer],
            },
            {"fingerprint": fingerprints[item.split, layer]},
        )


def _describe(
    folder: Path,
    ids: dict[str, Tensor],
    settings: Residuals,
    d_model: int,
    fingerprints: dict[tuple[str, int], str],
) -> dict[str, Any]:
    """The content of index.json."""
    index: dict[str, Any] = {
        "format": FORMAT,
        "fingerprint": _fingerprint(
            shards=sorted(fingerprints.values()), max_norm=settings.max_norm, include_bos=settings.include_bos
        ),
        "d_model": d_model,
        "n_ctx": ids["train"].shape[1],
        "shard_sequences": settings.shard_sequences,
        "max_norm": settings.max_norm,
        "include_bos": settings.include_bos,
        "splits": {
            split: {
                "n_sequences": len(ids[split]),
                "shards": [_shard_name(i) for i in range(math.ceil(len(ids[split]) / settings.shard_sequences))],
            }
            for split in SPLITS
        },
        "layers": {},
    }
    for layer in sorted(settings.layers):
        shards = {
            split: [folder / split / f"layer{layer}" / name for name in described["shards"]]
            for split, described in index["splits"].items()
        }
        index["layers"][str(layer)] = {
            "fingerprints": {split: fingerprints[split, layer] for split in SPLITS},
            **_describe_layer(shards, layer, settings, d_model),
        }
    return index


def _describe_layer(shards: dict[str, list[Path]], layer: int, settings: Residuals, d_model: int) -> dict[str, Any]:
    median_norm = _median(lambda: _norms(shards["train"], settings.include_bos))
    counts, norm_sums = {}, {}
    for split in SPLITS:
        counts[split], norm_sums[split] = _count(shards[split], median_norm, settings)
    n_kept = counts["train"]["kept"]
    if not n_kept:
        raise ValueError(
            f"residuals.max_norm: {settings.max_norm} times the median norm {median_norm:.3g} leaves no training token "
            f"at layer {layer}; raise it"
        )
    mean_norm = norm_sums["train"] / n_kept
    return {
        "median_norm": median_norm,
        "mean_norm": mean_norm,
        "scale": mean_norm / math.sqrt(d_model),
        **counts,
    }


def _read_norms(shard: Path) -> tuple[Tensor, Tensor]:
    with safe_open(shard, framework="pt") as file:
        return file.get_tensor("norms"), file.get_tensor("positions")


def _norms(shards: list[Path], include_bos: bool) -> Iterator[Tensor]:
    for shard in shards:
        norms, positions = _read_norms(shard)
        yield norms if include_bos else norms[positions > 0]


def _median(parts: Callable[[], Iterator[Tensor]]) -> float:
    """The lower median of non-negative float32 numbers that are too many to hold.

    Such numbers are ordered like their bits, so two passes find it exactly: one counts the numbers by the upper half of
    their bits, the next those that share the median's upper half by the lower.
    """
    upper = torch.zeros(1 << 16, dtype=torch.int64)
    for part in parts():
        upper += torch.bincount(part.view(torch.int32) >> 16, minlength=1 << 16)
    rank = (int(upper.sum()) - 1) // 2
    high = int(torch.searchsorted(upper.cumsum(0), rank, right=True))
    rank -= int(upper[:high].sum())
    lower = torch.zeros(1 << 16, dtype=torch.int64)
    for part in parts():
        bits = part.view(torch.int32)
        lower += torch.bincount(bits[bits >> 16 == high] & 0xFFFF, minlength=1 << 16)
    low = int(torch.searchsorted(lower.cumsum(0), rank, right=True))
    return torch.tensor(high << 16 | low, dtype=torch.int32).view(torch.float32).item()


def _count(shards: list[Path], median_norm: float, settings: Residuals) -> tuple[dict[str, int], float]:
    """Counts of a split's tokens, and the sum of the kept ones' norms."""
    counts = {"tokens": 0, "bos": 0, "outliers": 0, "kept": 0}
    norm_sum = 0.0
    for shard in shards:
        norms, positions = _read_norms(shard)
        kept = is_kept(norms, positions, median_norm, settings.max_norm, settings.include_bos)
        counts["tokens"] += len(norms)
        counts["bos"] += int((positions == 0).sum())
        counts["outliers"] += int((norms[positions > 0] > settings.max_norm * median_norm).sum())
        counts["kept"] += int(kept.sum())
        norm_sum += norms[kept].double().sum().item()
    return counts, norm_sum
