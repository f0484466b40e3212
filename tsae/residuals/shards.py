"""Shards of the residual cache, each a file of some whole sequences at one layer, and the forward passes that make them."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tsae.model.language_model import LanguageModel
from tsae.store import files
from tsae.store.tensors import load_metadata, load_tensors

FORMAT = 3
SPLITS = ("train", "heldout")
LARGEST = torch.finfo(torch.float16).max


def shard_name(index: int) -> str:
    """File name of a shard."""
    return f"shard-{index:05d}.safetensors"


def n_shards(n_sequences: int, shard_sequences: int) -> int:
    """Shards of a split."""
    return -(-n_sequences // shard_sequences)


def n_rows_of(index: int, n_sequences: int, shard_sequences: int, n_ctx: int) -> int:
    """Tokens in a shard; the last one may be shorter."""
    return (min((index + 1) * shard_sequences, n_sequences) - index * shard_sequences) * n_ctx


def holds_residuals(split: str, index: int, cache: Mapping[str, Any]) -> bool:
    """Whether a shard has its residuals on disk: in a cache that `streams`, only held-out and `sampled` ones do."""
    return split != "train" or not cache["streams"] or index in cache["sampled"]


def columns_in(split: str, index: int, layer: int, layers: Iterable[int], cache: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns of a shard's file. Where it has no residuals, ids are in the file of the first of the layers alone."""
    if holds_residuals(split, index, cache):
        return ("norms", "positions", "residuals", "tokens")
    return ("norms", "tokens") if layer == min(layers) else ("norms",)


def positions_of(n_rows: int, n_ctx: int) -> Tensor:
    """Position of each token of whole sequences (n_rows,) int32, 0 for BOS."""
    return torch.arange(n_ctx, dtype=torch.int32).repeat(n_rows // n_ctx)


def fingerprint(**inputs: Any) -> str:
    """Digest of the inputs that something was made from."""
    return hashlib.sha256(json.dumps({"format": FORMAT} | inputs, sort_keys=True).encode()).hexdigest()


def evenly_spaced(n: int, limit: int | None) -> Tensor:
    """At most `limit` of n indices, evenly spaced, int64; None: all."""
    return torch.arange(n) if limit is None or limit >= n else torch.linspace(0, n - 1, limit).long()


def sampled_shards(n_sequences: int, n_ctx: int, shard_sequences: int, mean_tokens: int) -> list[int]:
    """Indices of the shards that the mean is taken over: all, or evenly spaced ones with at most `mean_tokens`, at least one."""
    limit = None if n_sequences * n_ctx <= mean_tokens else max(1, mean_tokens // (shard_sequences * n_ctx))
    chosen: list[int] = evenly_spaced(n_shards(n_sequences, shard_sequences), limit).tolist()
    return chosen


def run_sequences(
    model: LanguageModel, ids: Tensor, layers: Iterable[int], batch_sequences: int
) -> Iterator[tuple[slice, dict[int, Tensor]]]:
    """Run the sequences of a shard through the model, a batch at a time.

    All residuals of shards are made here, because the last bits of a residual depend on which sequences share a batch.

    Args:
        model: the language model.
        ids: (n_sequences, n_ctx) token ids of the whole shard.
        layers: layers in any order.
        batch_sequences: sequences per forward pass.

    Yields:
        The batch's rows in the shard, and layer -> (rows, d_model) float32.
    """
    layers, n_ctx = list(layers), ids.shape[1]
    for start in range(0, len(ids), batch_sequences):
        batch = ids[start : start + batch_sequences]
        found = model.residuals(batch.long(), layers)
        rows = slice(start * n_ctx, start * n_ctx + batch.numel())
        yield rows, {layer: residual.flatten(0, 1) for layer, residual in found.items()}


def to_float16(residuals: Tensor) -> Tensor:
    """Residuals (n, d_model) float32 as shards hold them, in float16.

    A row with an entry beyond float16 is halved until it fits; its norm, which shards hold in float32, says how often. Such rows
    occur at BOS and at other tokens that are left out. `restored` doubles them again.

    Raises:
        ValueError: a residual is not finite; the message lacks the place.
    """
    rounded = residuals.half()
    if (beyond := ~rounded.isfinite().all(1)).any():
        rows = residuals[beyond]
        if not rows.isfinite().all():
            raise ValueError("a residual is not finite")
        halvings = (rows.abs().amax(1, keepdim=True) / LARGEST).log2().ceil()
        rounded[beyond] = (rows * torch.exp2(-halvings)).half()
    return rounded


def doublings(residuals: Tensor, norms: Tensor) -> Tensor:
    """How often each row (n, d_model) of a shard was halved to fit float16 (n,) float32; `norms` (n,) are the true ones."""
    found = torch.zeros(len(norms))
    long = norms > LARGEST
    if long.any():
        found[long] = (norms[long] / residuals[long].float().norm(dim=1)).log2().round()
    return found


def restored(residuals: Tensor, norms: Tensor) -> Tensor:
    """Rows (n, d_model) of a shard at their true length: in float16, or in float32 where that does not hold them."""
    powers = doublings(residuals, norms)
    return residuals.float() * torch.exp2(powers)[:, None] if powers.any() else residuals


def check_kept(residuals: Tensor, norms: Tensor, kept: Tensor, layer: int) -> None:
    """Check that the kept rows of a shard fit float16.

    Raises:
        ValueError: one does not.
    """
    if n := int((doublings(residuals, norms)[kept] > 0).sum()):
        raise ValueError(
            f"residuals.layers: at layer {layer}, {n} tokens of a shard that are to be trained on or scored have entries beyond "
            f"float16 (65504), with norms up to {norms[kept].max():.3g}; choose other layers, lower residuals.max_norm, or set "
            "residuals.include_bos: false"
        )


def residuals_of(model: LanguageModel, ids: Tensor, layer: int, batch_sequences: int) -> Tensor:
    """Residuals of a shard's sequences (n_sequences * n_ctx, d_model) float16, as its file would hold them."""
    residuals = torch.empty(ids.numel(), model.d_model, dtype=torch.float16)
    for rows, found in run_sequences(model, ids, [layer], batch_sequences):
        residuals[rows] = to_float16(found[layer])
    return residuals


def is_made_from(path: Path, fingerprint: str) -> bool:
    """Whether a shard exists and was made from these inputs; only its metadata are read."""
    try:
        return bool(load_metadata(path, checked=False).get("fingerprint") == fingerprint)
    except ValueError:
        return False


def read_shard(
    path: Path, fingerprint: str, n_rows: int, d_model: int, columns: Sequence[str], remedy: str = files.REMEDY
) -> dict[str, Tensor]:
    """Open a shard; its columns are read from disk on use.

    Args:
        path: the file.
        fingerprint: digest of the inputs that it must have been made from.
        n_rows: tokens in it.
        d_model: width of the residual stream.
        columns: names of the columns that it must hold, of `columns_in`.
        remedy: the end of the message about a file that is not such a shard.

    Returns:
        Of `tokens` and `positions` (n_rows,) int32, `norms` (n_rows,) float32 and `residuals` (n_rows, d_model) float16 those
        that are named.

    Raises:
        DamagedError: the file is not what was written.
        NotOursError: it is missing, truncated, made from other inputs, or holds something else.
    """
    try:
        return _read_columns(path, fingerprint, n_rows, d_model, columns)
    except files.DamagedError:
        raise
    except files.NotOursError as error:
        raise files.NotOursError(error.problem, remedy) from error
    except ValueError as error:
        raise files.NotOursError(str(error), remedy) from error


def with_ids(
    read: Callable[[int], dict[str, Tensor]], layer: int, layers: Iterable[int], n_ctx: int
) -> dict[str, Tensor]:
    """The columns of a shard at a layer, with the ids and positions that its file may lack.

    Args:
        read: reads the file of the shard at one of the layers.
        layer: the layer.
        layers: all that are cached.
        n_ctx: length of a sequence.
    """
    columns = read(layer)
    if "tokens" not in columns:
        columns["tokens"] = read(min(layers))["tokens"]
    return {"positions": positions_of(len(columns["norms"]), n_ctx)} | columns


def _read_columns(path: Path, fingerprint: str, n_rows: int, d_model: int, names: Sequence[str]) -> dict[str, Tensor]:
    # Many trainings read every shard, and comparing all bytes takes longer than reading some.
    files.check_once(path)
    found_fingerprint = load_metadata(path, checked=False).get("fingerprint")
    columns = load_tensors(path, checked=False)
    if found_fingerprint != fingerprint:
        raise ValueError(f"{path}: not made from the inputs that the cache is made from")
    kinds: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "tokens": ((n_rows,), torch.int32),
        "positions": ((n_rows,), torch.int32),
        "norms": ((n_rows,), torch.float32),
        "residuals": ((n_rows, d_model), torch.float16),
    }
    expected = {name: kinds[name] for name in names}
    found = {name: (tuple(column.shape), column.dtype) for name, column in columns.items()}
    if found != expected:
        raise ValueError(f"{path}: holds {found} instead of {expected}")
    return columns
