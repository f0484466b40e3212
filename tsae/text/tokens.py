"""The training or held-out split as token sequences of fixed length, and the tokenizer."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from tsae.store import files
from tsae.store.reasons import first_line_of
from tsae.store.tensors import load_metadata, load_rows, load_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TokenSplit(NamedTuple):
    """One split of the corpus as sequences."""

    ids: torch.Tensor
    """Token ids (n_seq, n_ctx) int32, BOS at position 0."""
    documents: torch.Tensor
    """Line of each token's document in the documents file (n_seq, n_ctx) int32; -1 at BOS."""
    document_sources: torch.Tensor
    """Place in `corpus.sources` of each line's source (n_documents,) int32."""
    bos: int
    """Token id of BOS."""
    n_ctx: int
    """Length of a sequence, BOS included [tokens]."""
    n_vocabulary: int
    """Size of the tokenizer's vocabulary, added tokens included [tokens]."""
    n_documents: int
    """Lines of the documents file [documents]."""
    seed: int
    """Seed of the split and of the order of documents."""
    documents_sha256: str
    """sha256 of the documents file."""
    source_tokens: Sequence[int] = ()
    """Tokens of text from each of `corpus.sources` in order; empty: not recorded."""


def load_tokens(path: Path) -> TokenSplit:
    """Read a split that `write_tokens` wrote.

    Raises:
        ValueError: the file is missing, truncated, or no token split.
    """
    tensors, metadata = load_tensors(path), load_metadata(path)
    try:
        split = TokenSplit(tensors["ids"], tensors["documents"], tensors["document_sources"], **metadata)
    except (KeyError, TypeError):
        split = None
    if split is None or not _fits(split):
        raise ValueError(f"{path}: not a token split of this version; {files.REMEDY}")
    return split


class TokenText(NamedTuple):
    """The tokens of a split one after the other, of which memory holds only those that are read."""

    n_tokens: int
    """Tokens of the split, BOS included."""
    read: Callable[[int, int], tuple[np.ndarray, np.ndarray]]
    """The ids of the tokens from one place up to another, and the document of each, -1 at BOS (n,) int64."""


def open_text(path: Path) -> TokenText:
    """Open a split that `write_tokens` wrote.

    Raises:
        ValueError: as `load_tokens`.
    """
    split = load_tokens(path)
    n_sequences, n_ctx = split.ids.shape

    def read(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        rows = slice(start // n_ctx, -(-stop // n_ctx))
        inside = slice(start - rows.start * n_ctx, stop - rows.start * n_ctx)
        ids, documents = (
            column.ravel()[inside].astype(np.int64) for column in load_rows(path, ("ids", "documents"), rows)
        )
        return ids, documents

    return TokenText(n_sequences * n_ctx, read)


def _fits(split: TokenSplit) -> bool:
    numbers = (split.bos, split.n_ctx, split.n_vocabulary, split.n_documents, split.seed)
    return (
        all(isinstance(number, int) and number >= 0 for number in numbers)
        and isinstance(split.documents_sha256, str)
        and split.ids.dtype == split.documents.dtype == split.document_sources.dtype == torch.int32
        and split.ids.shape == split.documents.shape == (len(split.ids), split.n_ctx)
        and split.ids.numel() > 0
        and split.document_sources.shape == (split.n_documents,)
    )


def load_tokenizer(model: Path) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a model's folder.

    Raises:
        ValueError: the folder or the tokenizer is missing, or one of its files is damaged.
    """
    from transformers import AutoTokenizer

    if not model.is_dir():
        raise ValueError(f"{model}: no such folder; prepare the model first")
    for path in sorted(model.iterdir()):
        if path.suffix != ".safetensors":
            files.check(path)
    try:
        return AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{model}: no tokenizer there ({first_line_of(error)}); save it beside the model") from error
