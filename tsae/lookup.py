"""The lookup table's starting point: unigram residuals, what the model makes of a token that it sees almost alone.

The unigram residual of token t at layer L is the residual at the last position of the prompt [BOS, *prefix, t].
"""

import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from tsae import files
from tsae.config import Unigrams
from tsae.models import LanguageModel, load_model

LOG = logging.getLogger(__name__)


def unigram_residuals(
    model: LanguageModel,
    bos: int,
    prefix_ids: list[int],
    layers: Iterable[int],
    batch_tokens: int,
    tokens: Tensor | None = None,
) -> dict[int, Tensor]:
    """Unigram residuals of the whole vocabulary or of some tokens, at every layer from one pass.

    Args:
        model: the language model.
        bos: token id of BOS.
        prefix_ids: token ids between BOS and the token.
        layers: layers, in any order.
        batch_tokens: vocabulary tokens per forward pass.
        tokens: (n,) int64, the tokens whose rows are made; None: all.

    Returns:
        layer -> (vocab_size or n, d_model) float32.

    Raises:
        ValueError: a layer that the model does not have, or a prompt that is too long for it.
    """
    tokens = torch.arange(model.vocab_size) if tokens is None else tokens
    rows = {layer: torch.empty(len(tokens), model.d_model) for layer in layers}
    with tqdm(total=len(tokens), desc="unigram residuals", unit="tok", unit_scale=True, disable=None) as progress:
        for places in torch.arange(len(tokens)).split(batch_tokens):
            for layer, residuals in model.residuals(tokens[places, None], rows, [bos, *prefix_ids]).items():
                rows[layer][places] = residuals[:, 0]
            progress.update(len(places))
    return rows


class RowNorms(NamedTuple):
    """Norms of a table's rows before the longest were rescaled."""

    median_norm: float
    """Median norm."""
    max_norm_ratio: float
    """The largest norm / the median."""
    n_rescaled: int
    """Rows that were rescaled."""


def rescale_long_rows_(rows: Tensor, max_norm: float) -> RowNorms:
    """Rescale rows (n, d_model) longer than max_norm times the median row to the median, in place."""
    norms = rows.norm(dim=1)
    median_norm = norms.median()
    too_long = norms > max_norm * median_norm
    rows[too_long] *= (median_norm / norms[too_long])[:, None]
    return RowNorms(median_norm.item(), (norms.max() / median_norm).item(), int(too_long.sum()))


def write_unigrams(
    model_folder: Path,
    train_tokens: Path,
    settings: Unigrams,
    layers: Iterable[int],
    compatibility_mode: bool,
    outputs: Mapping[int, Path],
    embedding: Path,
    device: torch.device | str = "cpu",
) -> None:
    """Write the unigram residuals of every layer, `residuals` (vocab_size, d_model) float32, and the model's embedding.

    Rows longer than `settings.max_norm` times the median row are rescaled to the median, and their number is reported
    and kept in the file's metadata with the prompt and the largest norm before.

    Args:
        model_folder: a model folder with its tokenizer.
        train_tokens: a split of `tokens.write_tokens`, which says what BOS is.
        settings: the prompt's prefix, the batch size and the norm above which rows are rescaled.
        layers: layers, in any order.
        compatibility_mode: see `models.load_model`.
        outputs: layer -> file to write.
        embedding: file to write the embedding to, `embedding` (vocab_size, e) float32.
        device: where to compute.

    Raises:
        ValueError: a missing or unfit input, a layer that the model does not have or that has no output.
    """
    from transformers import AutoTokenizer

    from tsae.tokens import load_tokens

    layers = sorted(set(layers))
    if layers != sorted(outputs):
        raise ValueError(f"unigram residuals of layers {layers} asked for, with outputs for {sorted(outputs)}")
    bos = load_tokens(train_tokens).bos
    model = load_model(model_folder, compatibility_mode, device)
    files.save_tensors(embedding, {"embedding": model.embedding()})
    tokenizer = AutoTokenizer.from_pretrained(model_folder, local_files_only=True, trust_remote_code=False)
    prefix_ids = tokenizer.encode(settings.prefix, add_special_tokens=False)

    start = time.perf_counter()
    unigrams = unigram_residuals(model, bos, prefix_ids, layers, settings.batch_tokens)
    rate = model.vocab_size / (time.perf_counter() - start)
    prefix = tokenizer.decode([bos, *prefix_ids])
    LOG.info("unigram residuals: %d tokens after %r, %.0f tokens/s", model.vocab_size, prefix, rate)
    for layer, residuals in unigrams.items():
        norms = rescale_long_rows_(residuals, settings.max_norm)
        LOG.info(
            "unigram residuals, layer %d: median norm %.4g, the largest %.3g times that; %d rows rescaled to it",
            layer,
            *norms,
        )
        files.save_tensors(
            outputs[layer],
            {"residuals": residuals},
            {
                "prefix": settings.prefix,
                "bos": bos,
                "median_norm": norms.median_norm,
                "n_rescaled": norms.n_rescaled,
                "max_norm_ratio": norms.max_norm_ratio,
            },
        )


def load_unigrams(path: Path) -> Tensor:
    """Read the unigram residuals of one layer, (vocab_size, d_model) float32.

    Raises:
        ValueError: the file is missing, truncated, or holds no unigram residuals.
    """
    return files.load_as(path, {"residuals": ((None, None), torch.float32)})["residuals"]


def load_embedding(path: Path) -> Tensor:
    """Read the model's embedding, (vocab_size, e) float32.

    Raises:
        ValueError: the file is missing, truncated, or holds no embedding.
    """
    return files.load_as(path, {"embedding": ((None, None), torch.float32)})["embedding"]
