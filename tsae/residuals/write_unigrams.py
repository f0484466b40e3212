"""The stage that computes the unigram residuals of all tokens: the last residual of the prompt [BOS, *prefix, token]."""

import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from tsae.compute.devices import Device
from tsae.model.language_model import LanguageModel, load_model
from tsae.profile.inputs import Unigrams
from tsae.store.arguments import Folder
from tsae.store.tensors import save_tensors
from tsae.text.tokens import load_tokenizer, load_tokens

LOG = logging.getLogger(__name__)


def last_residuals(
    model: LanguageModel, bos: int, prefix_ids: list[int], ngrams: Tensor, layers: Iterable[int], batch: int
) -> dict[int, Tensor]:
    """Residuals at the last position of the prompts [BOS, *prefix, n-gram], at every layer from one pass.

    Args:
        model: the language model.
        bos: token id of BOS.
        prefix_ids: token ids between BOS and the n-gram.
        ngrams: (n, length) int64 token ids; (n, 1) for unigram residuals.
        layers: layers in any order.
        batch: prompts per forward pass.

    Returns:
        layer -> (n, d_model) float32.

    Raises:
        ValueError: the model lacks a layer, or the prompt is too long for it.
    """
    rows = {layer: torch.empty(len(ngrams), model.d_model) for layer in layers}
    with tqdm(total=len(ngrams), desc="residuals of prompts", unit_scale=True, disable=None) as progress:
        for places in torch.arange(len(ngrams)).split(batch):
            for layer, residuals in model.residuals(ngrams[places], rows, [bos, *prefix_ids]).items():
                rows[layer][places] = residuals[:, -1]
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
    """Rescale rows (n, d_model) longer than max_norm times the median norm to the median norm, in place."""
    norms = rows.norm(dim=1)
    median_norm = norms.median()
    too_long = norms > max_norm * median_norm
    rows[too_long] *= (median_norm / norms[too_long])[:, None]
    return RowNorms(median_norm.item(), (norms.max() / median_norm).item(), int(too_long.sum()))


def write_unigrams(
    model: Folder,
    train: Path,
    settings: Unigrams,
    layers: Sequence[int],
    compatibility_mode: bool,
    folder: Path,
    device: Device = "cpu",
) -> None:
    """Write the unigram residuals of every layer.

    `{folder}/layer{L}.safetensors` holds `residuals` (vocab_size, d_model) float32. Beside them, `embedding.safetensors` holds the
    model's `embedding` (vocab_size, e) float32.

    Rows longer than `settings.max_norm` times the median norm are rescaled to it. The file's metadata hold their number, the
    largest norm before, and the prompt.

    Args:
        model: a model folder with its tokenizer.
        train: the training split, which gives BOS.
        settings: the prompt's prefix, the batch size and the norm above which rows are rescaled.
        layers: layers in any order.
        compatibility_mode: fold layer norms and centre residual-writing weights.
        folder: where the files go.
        device: where to compute.

    Raises:
        ValueError: an input is missing or does not fit, or the model lacks a layer.
    """
    bos = load_tokens(train).bos
    language_model = load_model(model, compatibility_mode, device)
    save_tensors(folder / "embedding.safetensors", {"embedding": language_model.embedding()})
    tokenizer = load_tokenizer(model)
    prefix_ids = tokenizer.encode(settings.prefix, add_special_tokens=False)

    start = time.perf_counter()
    tokens, layers = torch.arange(language_model.vocab_size), sorted(set(layers))
    unigrams = last_residuals(language_model, bos, prefix_ids, tokens[:, None], layers, settings.batch_tokens)
    rate = language_model.vocab_size / (time.perf_counter() - start)
    prefix = tokenizer.decode([bos, *prefix_ids])
    LOG.info("unigram residuals: %d tokens after %r, %.0f tokens/s", language_model.vocab_size, prefix, rate)
    for layer, residuals in unigrams.items():
        norms = rescale_long_rows_(residuals, settings.max_norm)
        LOG.info(
            "unigram residuals, layer %d: median norm %.4g, the largest %.3g times that; %d rows rescaled to it",
            layer,
            *norms,
        )
        save_tensors(
            folder / f"layer{layer}.safetensors",
            {"residuals": residuals},
            {
                "prefix": settings.prefix,
                "bos": bos,
                "median_norm": norms.median_norm,
                "n_rescaled": norms.n_rescaled,
                "max_norm_ratio": norms.max_norm_ratio,
            },
        )
