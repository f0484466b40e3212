"""Read residuals from the cache, or compute them with the model where the cache holds none."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tsae.model.folder import model_source
from tsae.model.language_model import LanguageModel, load_model
from tsae.residuals.shards import (
    FORMAT,
    check_kept,
    columns_in,
    holds_residuals,
    n_rows_of,
    read_shard,
    residuals_of,
    with_ids,
)
from tsae.store import files
from tsae.store.tensors import load_as

# Tokens of whole sequences (n_seq, n_ctx) -> what stands for each of them, such as its row of a table.
RowsOf = Callable[[Tensor], Tensor]


class Shard(NamedTuple):
    """The residuals of some whole sequences at one layer, one row per token."""

    residuals: Tensor
    """(n, d_model) float16, memory-mapped if on disk; rows beyond float16 are halved until they fit, see `shards.restored`."""
    tokens: Tensor
    """Token ids (n,) int32."""
    positions: Tensor
    """Position in the sequence (n,) int32, 0 for BOS."""
    norms: Tensor
    """Norm of the residual before rounding to float16 (n,) float32."""
    kept: Tensor
    """Whether the token is trained on and scored (n,) bool."""


class KeptRows(NamedTuple):
    """The kept tokens of a split at one layer, in order."""

    residuals: Tensor
    """(n, d_model) float32."""
    tokens: Tensor
    """Token ids (n,) int32."""
    sequences: Tensor
    """Index of the token's sequence in the split (n,) int64."""


def is_kept(norms: Tensor, positions: Tensor, median_norm: float, max_norm: float, include_bos: bool) -> Tensor:
    """Mask of the tokens to train on and score (n,) bool; an included BOS may have any norm."""
    return torch.where(positions == 0, include_bos, norms <= max_norm * median_norm)


@dataclass(frozen=True)
class ResidualCache:
    """The residuals of one split at one layer; made by `open_residuals`."""

    d_model: int
    """Width of the residual stream."""
    vocab_size: int
    """Tokens that the model knows."""
    n_ctx: int
    """Length of a sequence, BOS included [tokens]."""
    n_sequences: int
    """Sequences in the split."""
    n_kept: int
    """Tokens in the split that are trained on and scored."""
    n_outliers: int
    """Tokens in the split that are left out for their norm, not counting BOS."""
    scale: float
    """Mean norm of the kept training tokens / sqrt(d_model); residuals are divided by it."""
    median_norm: float
    """Median norm of the training tokens, without BOS unless include_bos."""
    max_norm: float
    """Tokens with a norm above this many times median_norm are not kept."""
    include_bos: bool
    """Whether position 0 is kept, whatever its norm."""
    shards: list[Path]
    """Files in order."""
    shard_sequences: int
    """Sequences in every shard but the last."""
    batch_sequences: int
    """Sequences in a forward pass."""
    split: str
    """`train` or `heldout`."""
    layer: int
    fingerprints: dict[int, str]
    """Layer -> digest of the inputs, which each of its shards must carry; of all cached layers."""
    streamed: frozenset[int]
    """Shards whose residuals are not on disk but computed on demand."""
    sampled: tuple[int, ...]
    """Training shards that the mean was taken over, always on disk."""
    made_from: dict[str, Any]
    """Model, tokens and settings that the cache was made from, for the record."""
    index: Path
    """The file that describes the cache."""

    model_folder: Path | None = None
    """The model that computes streamed residuals."""
    device: torch.device | str = "cpu"
    """Where the model computes."""

    @property
    def n_rows(self) -> int:
        """Tokens in the split."""
        return self.n_sequences * self.n_ctx

    def shard(self, index: int) -> Shard:
        """Open one shard. Its residuals are read from disk on use, or computed now if they are not there.

        Computed residuals equal cached ones to the bit: the same sequences share a forward pass and are rounded alike.

        Raises:
            ValueError: the file is missing, truncated, of the wrong shape or made from other inputs than the index, or no model
                is given to compute its residuals, or computed ones of kept tokens do not fit float16.
        """
        columns = self._read(index)
        kept = self._is_kept(columns)
        if index in self.streamed:
            ids = columns["tokens"].view(-1, self.n_ctx)
            columns["residuals"] = residuals_of(self._model, ids, self.layer, self.batch_sequences)
            check_kept(columns["residuals"], columns["norms"], kept, self.layer)
        return Shard(**columns, kept=kept)

    def table_rows(self, shard: Shard, rows_of: RowsOf) -> Tensor:
        """What stands for each token of a shard (n,): `rows_of` of its whole sequences."""
        return rows_of(shard.tokens.view(-1, self.n_ctx)).flatten()

    def kept(self, index: int) -> Tensor:
        """The mask `kept` of a shard (n,) bool, without its residuals."""
        return self._is_kept(self._read(index))

    def _read(self, index: int) -> dict[str, Tensor]:
        path, cache = self.shards[index], {"streams": bool(self.streamed), "sampled": self.sampled}

        def read(layer: int) -> dict[str, Tensor]:
            return read_shard(
                path if layer == self.layer else path.parent.with_name(f"layer{layer}") / path.name,
                self.fingerprints[layer],
                n_rows_of(index, self.n_sequences, self.shard_sequences, self.n_ctx),
                self.d_model,
                columns_in(self.split, index, layer, self.fingerprints, cache),
                f"delete {self.index} and {self.index.parent / 'parts'} and run again, which makes this shard again",
            )

        return with_ids(read, self.layer, self.fingerprints, self.n_ctx)

    def _is_kept(self, columns: dict[str, Tensor]) -> Tensor:
        return is_kept(columns["norms"], columns["positions"], self.median_norm, self.max_norm, self.include_bos)

    @cached_property
    def _model(self) -> LanguageModel:
        if self.model_folder is None:
            raise ValueError(
                f"{self.index}: training residuals do not fit residuals.disk_gb and are not on disk; name the model's folder "
                "(--model) to compute them"
            )
        return load_model(self.model_folder, self.made_from["compatibility_mode"], self.device)

    def mean(self) -> Tensor:
        """Mean of the kept training tokens (d_model,) float32; of a large cache, over a sample of shards."""
        return self._load_statistics()["mean"]

    def token_counts(self, vocab_size: int) -> Tensor:
        """Counts of each token among the kept training tokens (vocab_size,) int64.

        Raises:
            ValueError: the model has another vocabulary.
        """
        counts = self._load_statistics()["token_counts"]
        if len(counts) != vocab_size:
            raise ValueError(f"{self._statistics}: counts {len(counts)} tokens of the vocabulary, and not {vocab_size}")
        return counts

    @property
    def _statistics(self) -> Path:
        return self.index.with_name(f"layer{self.layer}.safetensors")

    def _load_statistics(self) -> dict[str, Tensor]:
        expected = {"mean": ((self.d_model,), torch.float32), "token_counts": ((None,), torch.int64)}
        return load_as(self._statistics, expected)

    def kept_rows(self, rows_of: RowsOf = lambda tokens: tokens) -> KeptRows:
        """All kept tokens of the split in memory, 4 * d_model bytes each: for small splits.

        Args:
            rows_of: what stands for the tokens (n_seq, n_ctx) of whole sequences; by default their ids.
        """
        parts = []
        for index in range(len(self.shards)):
            shard = self.shard(index)
            rows = shard.kept.nonzero().squeeze(1)
            sequences = index * self.shard_sequences + rows // self.n_ctx
            tokens = self.table_rows(shard, rows_of)
            parts.append(KeptRows(shard.residuals[rows].float(), tokens[rows], sequences))
        return KeptRows(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def open_residuals(
    index: Path, split: str, layer: int, model_folder: Path | None = None, device: torch.device | str = "cpu"
) -> ResidualCache:
    """Open the cache of one split at one layer.

    Args:
        index: the `index.json` of `index_residuals`.
        split: `train` or `heldout`.
        layer: a cached layer.
        model_folder: the model that the cache was made with, for training residuals that are not on disk; loaded on demand.
        device: where it computes.

    Raises:
        ValueError: there is no index, it has no such split or layer, or it was made with another model.
    """
    if not index.is_file():
        raise ValueError(f"{index} is missing; cache the residuals first")
    content = json.loads(files.read_text(index))
    if content["format"] != FORMAT:
        raise ValueError(f"{index}: format {content['format']}, this version reads {FORMAT}; cache the residuals again")
    if split not in content["splits"]:
        raise ValueError(f"{index}: no split {split!r}; it has {', '.join(content['splits'])}")
    if str(layer) not in content["layers"]:
        raise ValueError(
            f"{index}: layer {layer} is not cached; add it to residuals.layers ({', '.join(content['layers'])})"
        )
    described = content["layers"][str(layer)]
    shards = content["splits"][split]["shards"]
    streamed = frozenset(i for i in range(len(shards)) if not holds_residuals(split, i, content))
    if streamed and model_folder is not None and model_source(model_folder) != content["made_from"]["model"]:
        raise ValueError(
            f"{model_folder}: not the model that {index} was made with; name that one, or cache the residuals again"
        )
    folder = index.parent / split / f"layer{layer}"
    return ResidualCache(
        d_model=content["d_model"],
        vocab_size=content["vocab_size"],
        n_ctx=content["n_ctx"],
        n_sequences=content["splits"][split]["n_sequences"],
        n_kept=described[split]["kept"],
        n_outliers=described[split]["outliers"],
        scale=described["scale"],
        median_norm=described["median_norm"],
        max_norm=content["max_norm"],
        include_bos=content["include_bos"],
        shards=[folder / name for name in shards],
        shard_sequences=content["shard_sequences"],
        batch_sequences=content["batch_sequences"],
        split=split,
        layer=layer,
        fingerprints={int(at): each["fingerprints"][split] for at, each in content["layers"].items()},
        streamed=streamed,
        sampled=tuple(content["sampled"]),
        made_from=content["made_from"]
        | {key: content[key] for key in ("n_ctx", "max_norm", "include_bos", "fingerprint")}
        | {"median_norm": described["median_norm"], "kept": described["train"]["kept"]},
        index=index,
        model_folder=model_folder,
        device=device,
    )
