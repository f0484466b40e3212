"""Cached residuals, as stages read them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tsae import files

FORMAT = 1
SPLITS = ("train", "heldout")


class Shard(NamedTuple):
    """The residuals of some whole sequences at one layer, one row per token, sequence after sequence."""

    residuals: Tensor
    """(n, d_model) float16, memory-mapped."""
    tokens: Tensor
    """Token ids (n,) int32."""
    positions: Tensor
    """Position in the sequence (n,) int32; BOS is at 0."""
    norms: Tensor
    """Norm of the residual before rounding to float16 (n,) float32."""
    kept: Tensor
    """Whether the token is trained on and scored (n,) bool."""


class KeptRows(NamedTuple):
    """The kept tokens of a whole split at one layer, in order."""

    residuals: Tensor
    """(n, d_model) float32."""
    tokens: Tensor
    """Token ids (n,) int32."""
    sequences: Tensor
    """Index of the token's sequence in the split (n,) int64."""


def is_kept(norms: Tensor, positions: Tensor, median_norm: float, max_norm: float, include_bos: bool) -> Tensor:
    """Mask of the tokens that are trained on and scored (n,) bool; an included BOS may have any norm."""
    return torch.where(positions == 0, include_bos, norms <= max_norm * median_norm)


@dataclass(frozen=True)
class ResidualCache:
    """The residuals of one split at one layer; made by `open_residuals`."""

    d_model: int
    """Width of the residual stream."""
    n_ctx: int
    """Length of a sequence, BOS included [tokens]."""
    n_sequences: int
    """Sequences in the split."""
    n_rows: int
    """Tokens in the split."""
    n_kept: int
    """Tokens in the split that are trained on and scored."""
    n_outliers: int
    """Tokens in the split that are left out for their norm; BOS does not count."""
    scale: float
    """mean_norm / sqrt(d_model): residuals divided by it have a mean norm of sqrt(d_model)."""
    median_norm: float
    """Median norm over the training tokens, BOS left out unless include_bos."""
    mean_norm: float
    """Mean norm over the kept training tokens."""
    max_norm: float
    """Tokens of a norm above this many times median_norm are not kept."""
    include_bos: bool
    """Whether position 0 is kept, whatever its norm."""
    shards: list[Path]
    """Files, in order."""
    shard_sequences: int
    """Sequences in every shard but the last."""
    fingerprint: str
    """What every shard says it was made from."""
    made_from: dict[str, Any]
    """The model, the tokens and the settings that the cache was made from, for the record."""
    index: Path
    """The file that describes the cache."""

    def shard(self, index: int) -> Shard:
        """Open one shard; its residuals are read from disk when they are used.

        Raises:
            ValueError: the file is missing, truncated, of the wrong shape, or made from other inputs than the index.
        """
        path = self.shards[index]
        remedy = f"delete {self.index} and run again, which makes this shard anew"
        try:
            found_fingerprint, columns = files.load_metadata(path).get("fingerprint"), files.load_tensors(path)
        except ValueError as error:
            raise ValueError(f"{error}: {remedy}") from error
        if found_fingerprint != self.fingerprint:
            raise ValueError(f"{path}: not made from the inputs that {self.index.name} names; {remedy}")
        first = index * self.shard_sequences
        n_rows = (min(first + self.shard_sequences, self.n_sequences) - first) * self.n_ctx
        expected = {
            "residuals": ((n_rows, self.d_model), torch.float16),
            "tokens": ((n_rows,), torch.int32),
            "positions": ((n_rows,), torch.int32),
            "norms": ((n_rows,), torch.float32),
        }
        found = {name: (tuple(column.shape), column.dtype) for name, column in columns.items()}
        if found != expected:
            raise ValueError(f"{path}: holds {found} instead of {expected}; {remedy}")
        kept = is_kept(columns["norms"], columns["positions"], self.median_norm, self.max_norm, self.include_bos)
        return Shard(**columns, kept=kept)

    def mean(self) -> Tensor:
        """Mean of the kept tokens (d_model,) float32, summed in float64."""
        total = torch.zeros(self.d_model, dtype=torch.float64)
        for index in range(len(self.shards)):
            shard = self.shard(index)
            total += shard.residuals[shard.kept].sum(0, dtype=torch.float64)
        return (total / self.n_kept).float()

    def token_counts(self, vocab_size: int) -> Tensor:
        """How often each token occurs among the kept ones (vocab_size,) int64."""
        counts = torch.zeros(vocab_size, dtype=torch.int64)
        for index in range(len(self.shards)):
            shard = self.shard(index)
            counts += torch.bincount(shard.tokens[shard.kept], minlength=vocab_size)
        return counts

    def kept_rows(self) -> KeptRows:
        """The whole split's kept tokens in memory, 4 * d_model bytes each: for small splits."""
        parts = []
        for index in range(len(self.shards)):
            shard = self.shard(index)
            rows = shard.kept.nonzero().squeeze(1)
            sequences = index * self.shard_sequences + rows // self.n_ctx
            parts.append(KeptRows(shard.residuals[rows].float(), shard.tokens[rows], sequences))
        return KeptRows(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def open_residuals(index: Path, split: str, layer: int) -> ResidualCache:
    """Open the cache of one split (`train` or `heldout`) at one layer.

    Args:
        index: the `index.json` of `cache_residuals`.
        split: `train` or `heldout`.
        layer: a cached layer.

    Raises:
        ValueError: there is no index, or it has no such split or layer.
    """
    if not index.is_file():
        raise ValueError(f"{index} is missing; cache the residuals first")
    content = json.loads(index.read_text())
    if content["format"] != FORMAT:
        raise ValueError(f"{index}: format {content['format']}, this version reads {FORMAT}; cache the residuals again")
    if split not in content["splits"]:
        raise ValueError(f"{index}: no split {split!r}; it has {', '.join(content['splits'])}")
    if str(layer) not in content["layers"]:
        raise ValueError(
            f"{index}: layer {layer} is not cached; add it to residuals.layers ({', '.join(content['layers'])})"
        )
    described = content["layers"][str(layer)]
    folder = index.parent / split / f"layer{layer}"
    return ResidualCache(
        d_model=content["d_model"],
        n_ctx=content["n_ctx"],
        n_sequences=content["splits"][split]["n_sequences"],
        n_rows=described[split]["tokens"],
        n_kept=described[split]["kept"],
        n_outliers=described[split]["outliers"],
        scale=described["scale"],
        median_norm=described["median_norm"],
        mean_norm=described["mean_norm"],
        max_norm=content["max_norm"],
        include_bos=content["include_bos"],
        shards=[folder / name for name in content["splits"][split]["shards"]],
        shard_sequences=content["shard_sequences"],
        fingerprint=described["fingerprints"][split],
        made_from=content["made_from"]
        | {key: content[key] for key in ("n_ctx", "max_norm", "include_bos", "fingerprint")}
        | {"median_norm": described["median_norm"], "kept": described["train"]["kept"]},
        index=index,
    )
