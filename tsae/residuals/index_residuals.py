"""The stage that checks the residual cache, lists its shards and takes the statistics of each layer."""

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tsae.profile.inputs import Residuals
from tsae.residuals.read import is_kept
from tsae.residuals.shards import (
    SPLITS,
    check_kept,
    columns_in,
    fingerprint,
    n_rows_of,
    n_shards,
    read_shard,
    shard_name,
    with_ids,
)
from tsae.store import files
from tsae.store.arguments import Files
from tsae.store.tensors import save_tensors

Columns = dict[str, Tensor]
Reader = Callable[[str], Iterator[Columns]]


def index_residuals(settings: Residuals, parts: Files, output: Path) -> None:
    """Check every shard of the residual cache, and describe it.

    No model is needed. Beside the index, `layer{L}.safetensors` holds `mean` (d_model,) float32, over the kept tokens of the sampled
    training shards, summed in float64, and `token_counts` (V,) int64, over the kept training tokens.

    Args:
        settings: the norm above which tokens are left out.
        parts: the JSON files of all parts of `cache_residuals`.
        output: the index, in the cache's folder.

    Raises:
        ValueError: a part is missing or was made from other inputs, a shard is missing or damaged, no training token is
            below the largest norm, or one that is does not fit float16.
    """
    cache, folder = _in_common(parts), output.parent
    layers = list(cache["fingerprints"]["train"])
    index: dict[str, Any] = {key: value for key, value in cache.items() if key not in ("n_sequences", "fingerprints")}
    index |= {
        "fingerprint": fingerprint(
            shards=sorted(made_from for split in SPLITS for made_from in cache["fingerprints"][split].values()),
            max_norm=settings.max_norm,
            include_bos=settings.include_bos,
        ),
        "max_norm": settings.max_norm,
        "include_bos": settings.include_bos,
        "splits": {
            split: {
                "n_sequences": n_sequences,
                "shards": [shard_name(i) for i in range(n_shards(n_sequences, cache["shard_sequences"]))],
            }
            for split, n_sequences in cache["n_sequences"].items()
        },
        "layers": {},
    }
    for layer in layers:
        read = functools.partial(_read, cache, folder, layer)
        described = _describe(read, int(layer), settings, cache["d_model"])
        fingerprints = {split: cache["fingerprints"][split][layer] for split in SPLITS}
        index["layers"][layer] = {"fingerprints": fingerprints, **described}
        statistics = _take_statistics(read, cache, settings, described["median_norm"])
        save_tensors(folder / f"layer{layer}.safetensors", statistics)
    for path in folder.glob("layer*.safetensors"):
        if path.stem.removeprefix("layer") not in layers:
            files.remove(path)
    files.write_json(output, index)


def _in_common(parts: Sequence[Path]) -> dict[str, Any]:
    """The description of the cache that all parts share."""
    made: dict[int, dict[str, Any]] = {}
    for path in parts:
        try:
            content = json.loads(files.read_text(path))
            made[content["part"]] = content
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: not what caching residuals wrote ({error!r}); cache the residuals again"
            ) from error
    first = next(iter(made.values()))
    if set(made) != set(range(first["n_parts"])) or any(
        (part["n_parts"], part["cache"]) != (first["n_parts"], first["cache"]) for part in made.values()
    ):
        raise ValueError(
            f"{parts[0].parent}: parts {sorted(made)} do not make one cache of {first['n_parts']}; delete this folder and cache "
            "the residuals again"
        )
    cache: dict[str, Any] = first["cache"]
    return cache


def _read(cache: Mapping[str, Any], folder: Path, layer: str, split: str) -> Iterator[Columns]:
    """The shards of a split at a layer, in order, with the ids that another layer may hold."""
    n_sequences, step = cache["n_sequences"][split], cache["shard_sequences"]
    layers = [int(each) for each in cache["fingerprints"][split]]

    def read(i: int, at: int) -> Columns:
        return read_shard(
            folder / split / f"layer{at}" / shard_name(i),
            cache["fingerprints"][split][str(at)],
            n_rows_of(i, n_sequences, step, cache["n_ctx"]),
            cache["d_model"],
            columns_in(split, i, at, layers, cache),
            remedy=f"delete {folder / 'parts'} and run again, which makes this shard again",
        )

    for i in range(n_shards(n_sequences, step)):
        yield with_ids(functools.partial(read, i), int(layer), layers, cache["n_ctx"])


def _describe(read: Reader, layer: int, settings: Residuals, d_model: int) -> dict[str, Any]:
    median_norm = _median(lambda: _norms(read("train"), settings.include_bos))
    counts, norm_sums = {}, {}
    for split in SPLITS:
        counts[split], norm_sums[split] = _count(read(split), layer, median_norm, settings)
    n_kept = counts["train"]["kept"]
    if not n_kept:
        raise ValueError(
            f"residuals.max_norm: {settings.max_norm} times the median norm {median_norm:.3g} leaves no training token "
            f"at layer {layer}; raise it"
        )
    mean_norm = norm_sums["train"] / n_kept
    return {"median_norm": median_norm, "mean_norm": mean_norm, "scale": mean_norm / math.sqrt(d_model), **counts}


def _norms(shards: Iterator[Columns], include_bos: bool) -> Iterator[Tensor]:
    for shard in shards:
        yield shard["norms"] if include_bos else shard["norms"][shard["positions"] > 0]


def _median(parts: Callable[[], Iterator[Tensor]]) -> float:
    """The lower median of more non-negative float32 numbers than memory holds.

    Their bits, as integers, have the same order. So two passes find the median exactly: the first counts numbers by the upper
    half of their bits, the second by the lower half, among those with the median's upper half.
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


def _count(
    shards: Iterator[Columns], layer: int, median_norm: float, settings: Residuals
) -> tuple[dict[str, int], float]:
    """Counts of a split's tokens, and the summed norm of the kept ones."""
    counts = {"tokens": 0, "bos": 0, "outliers": 0, "kept": 0}
    norm_sum = 0.0
    for shard in shards:
        norms, positions = shard["norms"], shard["positions"]
        kept = is_kept(norms, positions, median_norm, settings.max_norm, settings.include_bos)
        if "residuals" in shard:
            check_kept(shard["residuals"], norms, kept, layer)
        counts["tokens"] += len(norms)
        counts["bos"] += int((positions == 0).sum())
        counts["outliers"] += int((norms[positions > 0] > settings.max_norm * median_norm).sum())
        counts["kept"] += int(kept.sum())
        norm_sum += norms[kept].double().sum().item()
    return counts, norm_sum


def _take_statistics(
    read: Reader, cache: Mapping[str, Any], settings: Residuals, median_norm: float
) -> dict[str, Tensor]:
    """The tensors of `layer{L}.safetensors`."""
    total = torch.zeros(cache["d_model"], dtype=torch.float64)
    token_counts = torch.zeros(cache["vocab_size"], dtype=torch.int64)
    n_sampled = 0
    for i, shard in enumerate(read("train")):
        kept = is_kept(shard["norms"], shard["positions"], median_norm, settings.max_norm, settings.include_bos)
        token_counts += torch.bincount(shard["tokens"][kept], minlength=len(token_counts))
        if i in cache["sampled"]:
            total += shard["residuals"][kept].sum(0, dtype=torch.float64)
            n_sampled += int(kept.sum())
    if not n_sampled:
        raise ValueError("residuals.mean_tokens: no token of the sampled shards is kept; raise it")
    return {"mean": (total / n_sampled).float(), "token_counts": token_counts}
