"""Tokens: documents split into training and held-out text, tokenised and packed into sequences of fixed length."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from tsae import files
from tsae.config import Tokens
from tsae.documents import read_documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_DOCUMENTS = 64
# No document may fill more of the held-out split than this: of a longer one only the beginning is held out, and the rest
# is in neither split. Sending long documents to training instead would hold out another kind of text.
MAX_HELDOUT_SHARE = 0.1


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


class TokenizedDocument(NamedTuple):
    """One document's tokens, without BOS."""

    line: int
    """Index of its line in the documents file."""
    ids: np.ndarray
    """Token ids (n,) int32."""


def write_tokens(documents: Path, model: Path, settings: Tokens, train: Path, heldout: Path) -> None:
    """Tokenise documents with the tokenizer in the folder `model`, and write the training and the held-out split.

    Documents are visited in shuffled order, each text once, and belong to one split alone: the held-out one until that
    is full, then the training one. Of a document longer than a tenth of the held-out split only the beginning is held
    out; its rest is in neither. In a split they follow each other
    without separator, in sequences of BOS and n_ctx - 1 tokens of text; the last one is cut where the split is full.

    Raises:
        ValueError: no documents file, no tokenizer, neither BOS nor EOS, or too few tokens for the two splits.
    """
    tokenizer = load_tokenizer(model)
    bos = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if bos is None:
        raise ValueError(f"{model}: the tokenizer has neither BOS nor EOS; set bos_token in tokenizer_config.json")
    texts = [document.text for document in read_documents(documents)]
    metadata = {
        "bos": bos,
        "n_ctx": settings.n_ctx,
        "n_vocabulary": len(tokenizer),
        "n_documents": len(texts),
        "seed": settings.seed,
        "documents_sha256": files.sha256(documents),
    }
    visited = _tokenize_shuffled(texts, tokenizer, settings.seed)
    for path, size, split in zip(
        (train, heldout), (settings.train, settings.heldout), _split(visited, settings), strict=True
    ):
        ids, indices = _pack(split, _n_sequences(size, settings.n_ctx), settings.n_ctx, bos)
        files.save_tensors(path, {"ids": ids, "documents": indices}, metadata)


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


def _tokenize_shuffled(
    texts: list[str], tokenizer: "PreTrainedTokenizerBase", seed: int
) -> Iterator[TokenizedDocument]:
    """Tokenised documents in shuffled order; of several with the same text, the first one only."""
    first_with: dict[str, int] = {}
    for line, text in enumerate(texts):
        first_with.setdefault(text, line)
    order = np.random.default_rng(seed).permutation(list(first_with.values()))
    for start in range(0, len(order), BATCH_DOCUMENTS):
        batch = order[start : start + BATCH_DOCUMENTS].tolist()
        # A document that spells a special token, such as <|endoftext|>, must not become a second BOS.
        encoded = tokenizer(
            [texts[line] for line in batch], add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        for line, ids in zip(batch, encoded["input_ids"], strict=True):
            yield TokenizedDocument(line, np.asarray(ids, dtype=np.int32))


def _split(
    visited: Iterator[TokenizedDocument], settings: Tokens
) -> tuple[list[TokenizedDocument], list[TokenizedDocument]]:
    """Documents of the training and of the held-out split, each with at least the tokens that its sequences need."""
    wanted_train, wanted_heldout = (
        _n_sequences(size, settings.n_ctx) * (settings.n_ctx - 1) for size in (settings.train, settings.heldout)
    )
    longest = max(1, int(MAX_HELDOUT_SHARE * settings.heldout))
    train: list[TokenizedDocument] = []
    heldout: list[TokenizedDocument] = []
    n_train = n_heldout = n_visited = 0
    with tqdm(unit="token", unit_scale=True, disable=None) as progress:
        for document in visited:
            n_tokens = len(document.ids)
            n_visited += n_tokens
            progress.update(n_tokens)
            if n_heldout < wanted_heldout:
                heldout.append(document._replace(ids=document.ids[:longest]))
                n_heldout += len(heldout[-1].ids)
            elif n_train < wanted_train:
                train.append(document)
                n_train += n_tokens
            if n_train >= wanted_train and n_heldout >= wanted_heldout:
                return train, heldout
    raise ValueError(
        f"the corpus is too small: its documents hold {n_visited} tokens, each text counted once. tokens.train = "
        f"{settings.train} needs {wanted_train} of text and got {n_train}; tokens.heldout = {settings.heldout} needs "
        f"{wanted_heldout}, at most {longest} (a tenth of it) from one document, and got {n_heldout}. Lower these keys, or "
        "add to corpus.sources"
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
