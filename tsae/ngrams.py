"""Common n-grams of the training text, and the residuals that the model has after each of them alone.

The residual of an n-gram at layer L is the one at the last position of the prompt [BOS, *prefix, n-gram]; that of a single token is
its unigram residual, and long ones are rescaled as those are. How far it lies along the unigram residual of its last token says what is left of a token as its context
grows (C12), and features that have the direction of one say that a dictionary has learned what is common (C11).
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from tqdm import tqdm

from tsae import files
from tsae.config import Ngrams, Unigrams
from tsae.lookup import rescale_long_rows_
from tsae.metrics import Measurement, median
from tsae.models import LanguageModel, load_model
from tsae.shards import evenly_spaced
from tsae.tokens import TokenSplit, load_tokenizer, load_tokens

LOG = logging.getLogger(__name__)


class NgramResiduals(NamedTuple):
    """Common n-grams and their residuals at one layer, the most frequent first."""

    unigrams: Tensor
    """(n,) int64, the most frequent tokens."""
    ids: dict[int, Tensor]
    """By length, (n, length) int64 token ids."""
    residuals: dict[int, Tensor]
    """By length, (n, d_model) float32."""
    per_length: int
    """Of each length so many are measured; of two tokens there may be more, which features are compared with."""


def find_ngrams(ids: Tensor, documents: Tensor, wanted: Mapping[int, int], min_documents: int) -> dict[int, Tensor]:
    """The most frequent runs of tokens, most frequent first; of equally frequent ones the lowest ids first.

    Args:
        ids: (n_seq, n_ctx) token ids.
        documents: (n_seq, n_ctx) each token's document, -1 at BOS; a run is of one document and one sequence.
        wanted: length -> runs.
        min_documents: documents that a run must occur in, so that what one long document repeats is not common.

    Returns:
        length -> (at most as many, length) int64; no lengths of which there is none.
    """
    tokens, lines = (column.numpy().astype(np.int64).ravel() for column in (ids, documents))
    n_vocabulary, n_lines = int(tokens.max()) + 1, int(lines.max()) + 1
    # Whether the next token is of the same document, and so of the same sequence, which BOS ends.
    linked = lines == np.roll(lines, -1)
    # `run` holds where runs start, `label` which run it is: the same number for the same tokens, in the order of their ids.
    run = (lines >= 0).nonzero()[0]
    label = np.unique(tokens[run], return_inverse=True)[1]
    found = {}
    for length in range(1, max(wanted) + 1):
        if length > 1:
            longer = linked[run + length - 2]
            run = run[longer]
            label = np.unique(label[longer] * n_vocabulary + tokens[run + length - 1], return_inverse=True)[1]
        counts = np.bincount(label)
        in_documents = np.bincount(np.unique(label * n_lines + lines[run]) // n_lines, minlength=len(counts))
        first = np.unique(label, return_index=True)[1]
        order = np.argsort(-counts, kind="stable")
        chosen = run[first[order[in_documents[order] >= min_documents][: wanted.get(length, 0)]]]
        if len(chosen):
            found[length] = torch.from_numpy(tokens[chosen[:, None] + np.arange(length)])
        # A longer run is in no more documents than its beginning.
        common = in_documents[label] >= min_documents
        run, label = run[common], label[common]
    return found


def common_ngrams(split: TokenSplit, settings: Ngrams) -> tuple[Tensor, dict[int, Tensor]]:
    """The most frequent tokens (n,), and by length the most frequent n-grams whose residuals are made (n, length).

    Raises:
        ValueError: no token occurs in enough documents.
    """
    chosen = evenly_spaced(len(split.ids), max(1, settings.tokens // split.n_ctx))
    wanted = dict.fromkeys(range(1, settings.max_length + 1), settings.per_length)
    wanted |= {length: max(settings.common, settings.per_length) for length in (1, 2)}
    found = find_ngrams(split.ids[chosen], split.documents[chosen], wanted, settings.min_documents)
    if 1 not in found:
        raise ValueError(
            f"no training token occurs in {settings.min_documents} documents; lower ngrams.min_documents ({settings.min_documents})"
        )
    unigrams = found[1].flatten()[: settings.common].clone()
    return unigrams, found | {1: found[1][: settings.per_length]}


def last_residuals(
    model: LanguageModel, bos: int, prefix_ids: list[int], ngrams: Tensor, layers: Iterable[int], batch: int
) -> dict[int, Tensor]:
    """The last residual of [BOS, *prefix, n-gram] for n-grams (n, length) of one length: layer -> (n, d_model) float32.

    Raises:
        ValueError: a layer that the model does not have, or a prompt that is too long for it.
    """
    rows = {layer: torch.empty(len(ngrams), model.d_model) for layer in layers}
    for places in torch.arange(len(ngrams)).split(batch):
        for layer, residuals in model.residuals(ngrams[places], rows, [bos, *prefix_ids]).items():
            rows[layer][places] = residuals[:, -1]
    return rows


def write_ngrams(
    model_folder: Path,
    train_tokens: Path,
    settings: Ngrams,
    prompt: Unigrams,
    layers: Iterable[int],
    compatibility_mode: bool,
    outputs: Mapping[int, Path],
    spelling: Path,
    device: torch.device | str = "cpu",
) -> None:
    """Write the `NgramResiduals` of every layer, and `spelling` (vocab_size,) int64, of `spellings`.

    Args:
        model_folder: a model folder with its tokenizer.
        train_tokens: the training split.
        settings: how many n-grams, and where they are sought.
        prompt: the prompt's prefix, and the sequences per forward pass.
        layers: layers, in any order.
        compatibility_mode: see `models.load_model`.
        outputs: layer -> file to write.
        spelling: file to write the spellings to.
        device: where to compute.

    Raises:
        ValueError: a missing or unfit input, or no token occurs in enough documents.
    """
    layers = sorted(set(layers))
    split = load_tokens(train_tokens)
    unigrams, ngrams = common_ngrams(split, settings)
    tokenizer = load_tokenizer(model_folder)
    prefix_ids = tokenizer.encode(prompt.prefix, add_special_tokens=False)
    model = load_model(model_folder, compatibility_mode, device)
    residuals: dict[int, dict[int, Tensor]] = {layer: {} for layer in layers}
    for length, found in tqdm(ngrams.items(), desc="n-grams", unit="length", disable=None):
        rows = last_residuals(model, split.bos, prefix_ids, found, layers, prompt.batch_tokens)
        for layer in layers:
            rescale_long_rows_(rows[layer], prompt.max_norm)
            residuals[layer][length] = rows[layer]
    LOG.info("n-grams: %s", ", ".join(f"{len(found)} of length {length}" for length, found in ngrams.items()))
    for layer in layers:
        files.save_tensors(
            outputs[layer],
            {
                "unigrams": unigrams,
                **{f"ids/{length}": found for length, found in ngrams.items()},
                **{f"residuals/{length}": rows for length, rows in residuals[layer].items()},
            },
            {"per_length": settings.per_length},
        )
    texts = [str(tokenizer.decode([token])) for token in range(min(len(tokenizer), model.vocab_size))]
    files.save_tensors(spelling, {"spelling": spellings(texts, model.vocab_size)})


def spellings(texts: list[str], vocab_size: int) -> Tensor:
    """A number per token (vocab_size,) int64, the same for tokens whose texts differ only by a leading space or by case.

    A token without letters, or of a part of a character, is like no other; so is one beyond the texts.
    """
    first: dict[str, int] = {}
    numbers = torch.arange(vocab_size)
    for token, text in enumerate(texts):
        spelt = text.removeprefix(" ").casefold()
        if any(map(str.isalpha, spelt)) and "\N{REPLACEMENT CHARACTER}" not in spelt:
            numbers[token] = first.setdefault(spelt, token)
    return numbers


def load_ngrams(path: Path) -> NgramResiduals:
    """Read the n-grams that `write_ngrams` wrote.

    Raises:
        ValueError: the file is missing, damaged, or holds something else.
    """
    tensors, per_length = files.load_tensors(path), files.load_metadata(path).get("per_length")
    parts: dict[str, dict[int, Tensor]] = {"ids": {}, "residuals": {}}
    for name, tensor in tensors.items():
        part, _, length = name.partition("/")
        if part in parts and length.isdigit():
            parts[part][int(length)] = tensor
    ids, residuals = (dict(sorted(parts[part].items())) for part in ("ids", "residuals"))
    fits = "unigrams" in tensors and ids and ids.keys() == residuals.keys()
    fits = fits and all(
        ids[n].shape[1:] == (n,) and len(ids[n]) == len(residuals[n]) and residuals[n].ndim == 2 for n in ids
    )
    if not fits or not isinstance(per_length, int):
        raise ValueError(f"{path}: holds no residuals of n-grams; {files.REMEDY}")
    return NgramResiduals(tensors["unigrams"], ids, residuals, per_length)


def load_spelling(path: Path) -> Tensor:
    """Read the spellings (V,) int64 that `write_ngrams` wrote.

    Raises:
        ValueError: the file is missing, damaged, or holds something else.
    """
    return files.load_as(path, {"spelling": ((None,), torch.int64)})["spelling"]


def measure_ngrams(ngrams: NgramResiduals, unigram_table: Tensor, seed: int) -> list[Measurement]:
    """Median cosine similarity of an n-gram's residual to its last token's unigram residual, by length `at` (C12).

    `ngram_other_cosine`, the floor, takes the unigram residual of another common token at random. With suffix `_centred`, the
    residuals of a length are taken less their mean, and the unigram residuals less theirs over the same n-grams: residuals share a
    large mean, which alone gives a high cosine similarity.

    Args:
        ngrams: of the layer.
        unigram_table: (V, d) unigram residuals.
        seed: seed of the other tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length, ids in ngrams.ids.items():
        x, own = ngrams.residuals[length][: ngrams.per_length], ids[: ngrams.per_length, -1]
        drawn = torch.randint(len(ngrams.unigrams), own.shape, generator=generator)
        same = ngrams.unigrams[drawn] == own
        other = ngrams.unigrams[(drawn + same) % len(ngrams.unigrams)]
        for name, tokens in (("unigram", own), ("other", other)):
            u = unigram_table[tokens]
            for suffix, cosines in (
                ("", cosine_similarity(x, u, dim=1)),
                ("_centred", cosine_similarity(x - x.mean(0), u - u.mean(0), dim=1)),
            ):
                measured = median(f"ngram_{name}_cosine{suffix}", cosines, over="n-grams")
                rows.append(replace(measured, at=float(length)))
    return rows
