"""The stage that tokenizes documents: splits them into training and held-out text, packed into sequences of fixed length."""

import io
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from tsae.profile.inputs import Tokens
from tsae.profile.shape import check_context
from tsae.store import files
from tsae.store.arguments import Folder
from tsae.store.tensors import Column, save_columns
from tsae.text.documents import Catalogue, read_catalogue
from tsae.text.heldout import hold_out
from tsae.text.tokens import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOG = logging.getLogger(__name__)

BATCH_DOCUMENTS = 256
BLOCK_TOKENS = 1 << 20  # that wait in memory to be packed


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
    catalogue = read_catalogue(documents)
    order = np.random.default_rng(settings.seed).permutation(np.flatnonzero(catalogue.is_first))
    reader = _Reader(catalogue, tokenizer)
    pieces = hold_out(catalogue, order, reader.lengths, settings)
    held = np.array([piece.line for piece in pieces])
    n_lost = sum(reader.lengths(held)) - settings.heldout_text
    metadata = {
        "bos": bos,
        "n_ctx": settings.n_ctx,
        "n_vocabulary": len(tokenizer),
        "n_documents": len(catalogue.starts),
        "seed": settings.seed,
        "documents_sha256": files.known_sha256(documents),
    }
    training = _training(order[~np.isin(order, held)], reader, settings, n_lost, batch_size)
    _write_split(train, training, catalogue.sources, metadata)
    parts = (
        document._replace(ids=document.ids[piece.start : piece.stop])
        for piece, document in zip(pieces, reader.read(held), strict=True)
    )
    _write_split(heldout, parts, catalogue.sources, metadata)


class TokenizedDocument(NamedTuple):
    """Tokens of a document or of a piece of it, without BOS."""

    line: int
    """Index of its line in the documents file."""
    ids: np.ndarray
    """Token ids (n,) int32."""


class _Reader:
    """Tokenizes documents when they are asked for, with the following ones of their batch."""

    def __init__(self, catalogue: Catalogue, tokenizer: "PreTrainedTokenizerBase"):
        self._catalogue, self._tokenizer = catalogue, tokenizer
        self._lengths = np.full(len(catalogue.starts), -1, dtype=np.int32)  # tokens; -1: not yet known

    def read(self, lines: np.ndarray) -> Iterator[TokenizedDocument]:
        """Documents in the order of `lines`."""
        for batch in _batches(lines):
            # A document that spells out <|endoftext|> must not become a second BOS.
            encoded = self._tokenizer(
                [document.text for document in self._catalogue.read(batch)],
                add_special_tokens=False,
                split_special_tokens=True,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
            for line, ids in zip(batch.tolist(), encoded["input_ids"], strict=True):
                self._lengths[line] = len(ids)
                yield TokenizedDocument(line, np.asarray(ids, dtype=np.int32))

    def lengths(self, lines: np.ndarray) -> Iterator[int]:
        """Lengths of documents [tokens] in the order of `lines`."""
        for batch in _batches(lines):
            for _ in self.read(batch[self._lengths[batch] < 0]):
                pass
            yield from self._lengths[batch].tolist()


def _batches(lines: np.ndarray) -> Iterator[np.ndarray]:
    return (lines[start : start + BATCH_DOCUMENTS] for start in range(0, len(lines), BATCH_DOCUMENTS))


def _training(
    lines: np.ndarray, reader: _Reader, settings: Tokens, n_lost: int, batch_size: int
) -> Iterator[TokenizedDocument]:
    """Documents that together fill the training split. `n_lost`: tokens beside held-out pieces."""
    n_text = settings.n_ctx - 1
    wanted = -(-settings.train // settings.n_ctx) * n_text
    n_tokens = 0
    with tqdm(total=wanted, unit="token", unit_scale=True, disable=None) as progress:
        for document in reader.read(lines):
            taken = document.ids[: wanted - n_tokens]
            yield document._replace(ids=taken)
            n_tokens += len(taken)
            progress.update(len(taken))
            if n_tokens == wanted:
                return
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


def _write_split(
    path: Path, documents: Iterable[TokenizedDocument], sources: np.ndarray, metadata: Mapping[str, Any]
) -> None:
    """Write the whole sequences that documents fill. They wait in nameless files, which end with the process."""
    lengths = np.zeros(len(sources), dtype=np.int64)  # tokens of each document in the split
    n_sequences = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent) as ids, tempfile.TemporaryFile(dir=path.parent) as lines:
        for block in _sequences(documents, metadata["n_ctx"], metadata["bos"]):
            with files.naming(path):
                ids.write(block.ids.tobytes())
                lines.write(block.lines.tobytes())
            n_sequences += len(block.ids)
            np.add.at(lengths, block.lines[:, 1:].ravel(), 1)
        source_tokens = np.zeros(1 + sources.max(), dtype=np.int64)
        np.add.at(source_tokens, sources, lengths)
        shape = (n_sequences, metadata["n_ctx"])
        columns = {
            "ids": Column(ids, "I32", shape),
            "documents": Column(lines, "I32", shape),
            "document_sources": Column(io.BytesIO(sources.astype("<i4").tobytes()), "I32", sources.shape),
        }
        save_columns(path, columns, {**metadata, "source_tokens": source_tokens.tolist()})
    LOG.info(
        "%s: %d documents, the largest %.1f%% of the text; tokens by source: %s",
        path,
        np.count_nonzero(lengths),
        100 * lengths.max() / lengths.sum(),
        ", ".join(map(str, source_tokens)),
    )


class _Block(NamedTuple):
    """Whole sequences, BOS first."""

    ids: np.ndarray  # (n, n_ctx) int32
    lines: np.ndarray  # (n, n_ctx) int32, of their documents; -1 at BOS


def _sequences(documents: Iterable[TokenizedDocument], n_ctx: int, bos: int) -> Iterator[_Block]:
    """The sequences that documents fill, one after the other, without a last one that is not whole."""
    waiting, n_waiting = [np.empty((2, 0), dtype=np.int32)], 0
    for document in documents:
        waiting.append(np.stack([document.ids, np.full_like(document.ids, document.line)]))
        n_waiting += len(document.ids)
        if n_waiting >= BLOCK_TOKENS:
            block, rest = _pack(np.concatenate(waiting, axis=1), n_ctx, bos)
            yield block
            waiting, n_waiting = [rest], rest.shape[1]
    yield _pack(np.concatenate(waiting, axis=1), n_ctx, bos)[0]


def _pack(text: np.ndarray, n_ctx: int, bos: int) -> tuple[_Block, np.ndarray]:
    """The whole sequences of a text of ids and lines (2, n), and the tokens that are left (2, m)."""
    n_sequences = text.shape[1] // (n_ctx - 1)
    size = n_sequences * (n_ctx - 1)
    columns = text[:, :size].reshape(2, n_sequences, n_ctx - 1)
    padded = (
        np.pad(column, ((0, 0), (1, 0)), constant_values=first)
        for column, first in zip(columns, (bos, -1), strict=True)
    )
    return _Block(*padded), text[:, size:]
