"""Tokens: documents split into training and held-out text, tokenised and packed into sequences of fixed length."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from tsae import files
from tsae.config import Tokens
from tsae.corpus import Document
from tsae.documents import read_documents
from tsae.heldout import TokenizedDocument, hold_out

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOG = logging.getLogger(__name__)
BATCH_DOCUMENTS = 64


class TokenSplit(NamedTuple):
    """One split of the corpus, as sequences."""

    ids: torch.Tensor
    """Token ids (n_seq, n_ctx) int32, BOS at position 0."""
    documents: torch.Tensor
    """Each token's document, as the index of its line in the documents file (n_seq, n_ctx) int32; -1 at BOS."""
    bos: int
    """Token id of BOS."""
    n_ctx: int
    """Length of a sequence, BOS included [tokens]."""
    n_vocabulary: int
    """Size of the tokenizer's vocabulary, added tokens included [tokens]."""
    n_documents: int
    """Lines of the documents file [documents]."""
    seed: int
    """Seed of the split by document and of the order of documents."""
    documents_sha256: str
    """sha256 of the documents file."""
    source_tokens: Sequence[int] = ()
    """Tokens of text from each of `corpus.sources`, in their order; empty: not recorded."""


def write_tokens(documents: Path, model: Path, settings: Tokens, train: Path, heldout: Path) -> None:
    """Tokenise documents with the tokenizer in the folder `model`, and write the training and the held-out split.

    Every text counts once, and a document belongs to one split alone. `heldout.hold_out` chooses pieces of documents; all other
    documents are trained on, in shuffled order, until the training split is full. In a split they follow each other without
    separator, in sequences of BOS and n_ctx - 1 tokens of text; the last one of training is cut where the split is full.

    Raises:
        ValueError: no documents file, no tokenizer, neither BOS nor EOS, or too few documents or tokens for the two splits.
    """
    tokenizer = load_tokenizer(model)
    bos = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if bos is None:
        raise ValueError(f"{model}: the tokenizer has neither BOS nor EOS; set bos_token in tokenizer_config.json")
    corpus = list(read_documents(documents))
    order = _shuffled(corpus, settings.seed)
    reader = _Reader(corpus, tokenizer)
    heldout_pieces = hold_out(corpus, order, reader.read, settings)
    held = {piece.line for piece in heldout_pieces}
    rest = [line for line in order if line not in held]
    train_documents = _take_training(rest, reader, settings)
    metadata = {
        "bos": bos,
        "n_ctx": settings.n_ctx,
        "n_vocabulary": len(tokenizer),
        "n_documents": len(corpus),
        "seed": settings.seed,
        "documents_sha256": files.sha256(documents),
    }
    n_sources = 1 + max(document.source for document in corpus)
    for path, size, split in ((train, settings.train, train_documents), (heldout, settings.heldout, heldout_pieces)):
        ids, indices = _pack(split, _n_sequences(size, settings.n_ctx), settings.n_ctx, bos)
        source_tokens = [0] * n_sources
        lengths = indices[:, 1:].unique(return_counts=True)
        for line, n_tokens in zip(*(column.tolist() for column in lengths), strict=True):
            source_tokens[corpus[line].source] += n_tokens
        files.save_tensors(path, {"ids": ids, "documents": indices}, metadata | {"source_tokens": source_tokens})
        LOG.info(
            "%s: %d documents, the largest %.1f%% of the text; tokens by source: %s",
            path,
            len(lengths[1]),
            100 * lengths[1].max() / lengths[1].sum(),
            ", ".join(map(str, source_tokens)),
        )


def load_tokens(path: Path) -> TokenSplit:
    """Read a split that `write_tokens` wrote.

    Raises:
        ValueError: the file is missing, truncated, or no token split.
    """
    tensors, metadata = files.load_tensors(path), files.load_metadata(path)
    try:
        split = TokenSplit(ids=tensors["ids"], documents=tensors["documents"], **metadata)
    except (KeyError, TypeError):
        split = None
    if split is None or not _fits(split):
        raise ValueError(f"{path}: not a token split of this version; {files.REMEDY}")
    return split


def _fits(split: TokenSplit) -> bool:
    numbers = (split.bos, split.n_ctx, split.n_vocabulary, split.n_documents, split.seed)
    return (
        all(isinstance(number, int) and number >= 0 for number in numbers)
        and isinstance(split.documents_sha256, str)
        and split.ids.dtype == split.documents.dtype == torch.int32
        and split.ids.shape == split.documents.shape == (len(split.ids), split.n_ctx)
        and split.ids.numel() > 0
    )


def load_tokenizer(model: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer in a model's folder.

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
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{model}: no tokenizer there ({reason}); save it beside the model") from error


def _shuffled(corpus: Sequence[Document], seed: int) -> list[int]:
    """Indices of documents in shuffled order; of several with the same text, the first one only."""
    first_with: dict[str, int] = {}
    for line, document in enumerate(corpus):
        first_with.setdefault(document.text, line)
    order: list[int] = np.random.default_rng(seed).permutation(list(first_with.values())).tolist()
    return order


class _Reader:
    """Documents as tokens: each tokenised when it is first asked for, with those that follow it."""

    def __init__(self, corpus: Sequence[Document], tokenizer: "PreTrainedTokenizerBase"):
        self._corpus, self._tokenizer = corpus, tokenizer
        self._known: dict[int, np.ndarray] = {}

    def read(self, lines: Sequence[int]) -> Iterator[TokenizedDocument]:
        """Documents in the order of `lines`."""
        for start in range(0, len(lines), BATCH_DOCUMENTS):
            batch = lines[start : start + BATCH_DOCUMENTS]
            if new := [line for line in batch if line not in self._known]:
                # A document that spells a special token, such as <|endoftext|>, must not become a second BOS.
                encoded = self._tokenizer(
                    [self._corpus[line].text for line in new],
                    add_special_tokens=False,
                    split_special_tokens=True,
                    verbose=False,
                )
                for line, ids in zip(new, encoded["input_ids"], strict=True):
                    self._known[line] = np.asarray(ids, dtype=np.int32)
            for line in batch:
                yield TokenizedDocument(line, self._known[line])


def _take_training(lines: Sequence[int], reader: _Reader, settings: Tokens) -> list[TokenizedDocument]:
    """Documents with at least the tokens that the sequences of the training split need."""
    wanted = _n_sequences(settings.train, settings.n_ctx) * (settings.n_ctx - 1)
    taken, n_tokens = [], 0
    with tqdm(total=wanted, unit="token", unit_scale=True, disable=None) as progress:
        for document in reader.read(lines):
            taken.append(document)
            n_tokens += len(document.ids)
            progress.update(len(document.ids))
            if n_tokens >= wanted:
                return taken
    most = n_tokens // (settings.n_ctx - 1) * settings.n_ctx
    raise ValueError(
        f"tokens.train: the corpus is too small: {settings.train} needs {wanted} tokens of text, and the documents of which nothing "
        f"is held out hold {n_tokens}, each text counted once; lower it to {most} at most, or add to corpus.sources"
    )


def _pack(documents: Sequence[TokenizedDocument], n_sequences: int, n_ctx: int, bos: int) -> tuple[torch.Tensor, ...]:
    """Token ids and document indices of whole sequences, each (n_sequences, n_ctx) int32."""
    ids = np.concatenate([document.ids for document in documents])
    indices = np.repeat([document.line for document in documents], [len(document.ids) for document in documents])
    shape = (n_sequences, n_ctx - 1)
    size = n_sequences * (n_ctx - 1)
    return tuple(
        torch.nn.functional.pad(torch.from_numpy(column[:size].astype(np.int32)).view(shape), (1, 0), value=first)
        for column, first in ((ids, bos), (indices, -1))
    )


def _n_sequences(size: int, n_ctx: int) -> int:
    """Sequences that hold `size` tokens, BOS included."""
    return -(-size // n_ctx)
