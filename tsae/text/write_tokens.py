"""The stage that tokenizes documents: splits them into training and held-out text, packed into sequences of fixed length."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from tsae.profile.inputs import Tokens
from tsae.profile.shape import check_context
from tsae.store import files
from tsae.store.arguments import Folder
from tsae.store.tensors import save_tensors
from tsae.text.documents import Document, read_documents
from tsae.text.heldout import TokenizedDocument, hold_out
from tsae.text.tokens import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOG = logging.getLogger(__name__)

BATCH_DOCUMENTS = 64


def write_tokens(
    documents: Path, model: Folder, settings: Tokens, train: Path, heldout: Path, batch_size: int = 1
) -> None:
    """Pack documents into sequences of tokens; hold some out.

    Repeated texts count once, and no document is in both splits. `heldout.hold_out` chooses the held-out pieces. The other
    documents, in shuffled order, fill the training split; the last one is cut where it is full. If they are too few and
    `settings.short_text` is "take", the split is as large as they make it. Documents follow each other without separator in
    sequences of BOS and n_ctx - 1 tokens of text.

    Args:
        documents: a file of `write_documents`.
        model: a model folder, for its tokenizer and the length of sequences that it takes.
        settings: sizes of the splits and the seed.
        train: where the training split goes.
        heldout: where the held-out split goes.
        batch_size: fewest tokens of text in the training split.

    Raises:
        ValueError: no documents file, no tokenizer, neither BOS nor EOS, sequences longer than the model takes, or too few
            documents or tokens for the two splits.
    """
    tokenizer = load_tokenizer(model)
    check_context(model / "config.json", "model folder", settings.n_ctx)
    bos = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if bos is None:
        raise ValueError(f"{model}: the tokenizer has neither BOS nor EOS; set bos_token in tokenizer_config.json")
    corpus = list(read_documents(documents))
    order = _shuffled(corpus, settings.seed)
    reader = _Reader(corpus, tokenizer)
    heldout_pieces = hold_out(corpus, order, reader.read, settings)
    held = {piece.line for piece in heldout_pieces}
    rest = [line for line in order if line not in held]
    n_lost = sum(len(document.ids) for document in reader.read(list(held))) - settings.heldout_text
    train_documents, n_train = _take_training(rest, reader, settings, n_lost, batch_size)
    metadata = {
        "bos": bos,
        "n_ctx": settings.n_ctx,
        "n_vocabulary": len(tokenizer),
        "n_documents": len(corpus),
        "seed": settings.seed,
        "documents_sha256": files.sha256(documents),
    }
    n_sources = 1 + max(document.source for document in corpus)
    n_heldout = _n_sequences(settings.heldout, settings.n_ctx)
    for path, n_sequences, split in ((train, n_train, train_documents), (heldout, n_heldout, heldout_pieces)):
        ids, indices = _pack(split, n_sequences, settings.n_ctx, bos)
        source_tokens = [0] * n_sources
        lines, lengths = indices[:, 1:].unique(return_counts=True)
        for line, n_tokens in zip(lines.tolist(), lengths.tolist(), strict=True):
            source_tokens[corpus[line].source] += n_tokens
        save_tensors(path, {"ids": ids, "documents": indices}, metadata | {"source_tokens": source_tokens})
        LOG.info(
            "%s: %d documents, the largest %.1f%% of the text; tokens by source: %s",
            path,
            len(lines),
            100 * lengths.max() / lengths.sum(),
            ", ".join(map(str, source_tokens)),
        )


def _shuffled(corpus: Sequence[Document], seed: int) -> list[int]:
    """Shuffled indices of the documents, of equal texts only the first."""
    first_with: dict[str, int] = {}
    for line, document in enumerate(corpus):
        first_with.setdefault(document.text, line)
    order: list[int] = np.random.default_rng(seed).permutation(list(first_with.values())).tolist()
    return order


class _Reader:
    """Tokenizes each document when it is first asked for, with the following ones of its batch."""

    def __init__(self, corpus: Sequence[Document], tokenizer: "PreTrainedTokenizerBase"):
        self._corpus, self._tokenizer = corpus, tokenizer
        self._known: dict[int, np.ndarray] = {}

    def read(self, lines: Sequence[int]) -> Iterator[TokenizedDocument]:
        """Documents in the order of `lines`."""
        for start in range(0, len(lines), BATCH_DOCUMENTS):
            batch = lines[start : start + BATCH_DOCUMENTS]
            if new := [line for line in batch if line not in self._known]:
                # A document that spells out <|endoftext|> must not become a second BOS.
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


def _take_training(
    lines: Sequence[int], reader: _Reader, settings: Tokens, n_lost: int, batch_size: int
) -> tuple[list[TokenizedDocument], int]:
    """Documents that together fill the training split, and its number of sequences. `n_lost`: tokens beside held-out pieces."""
    n_sequences, n_text = _n_sequences(settings.train, settings.n_ctx), settings.n_ctx - 1
    wanted = n_sequences * n_text
    taken, n_tokens = [], 0
    with tqdm(total=wanted, unit="token", unit_scale=True, disable=None) as progress:
        for document in reader.read(lines):
            taken.append(document)
            n_tokens += len(document.ids)
            progress.update(len(document.ids))
            if n_tokens >= wanted:
                return taken, n_sequences
    n_whole = n_tokens // n_text
    found = (
        f"tokens.train: the corpus is too small: {settings.train} needs {wanted} tokens of text, and the documents of which nothing "
        f"is held out hold {n_tokens}, each text counted once"
    )
    advice = "add to corpus.sources" + (
        f", or cut long documents of local files there (`cut`): {n_lost} tokens are beside held-out pieces in their documents"
        if n_tokens + n_lost >= wanted
        else ""
    )
    if settings.short_text == "refuse":
        most = n_whole * settings.n_ctx
        lower = f"lower it to {most} at most, set tokens.short_text: take, or " if most else "lower tokens.heldout, or "
        raise ValueError(f"{found}; {lower}{advice}")
    if n_whole * n_text < batch_size:
        raise ValueError(f"{found}, less than a batch (training.batch_size: {batch_size}); {advice}")
    LOG.warning(
        "tokens.train: %d of %d tokens, for the corpus has no more (tokens.short_text: take)",
        n_whole * settings.n_ctx,
        settings.train,
    )
    return taken, n_whole


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
