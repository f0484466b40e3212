"""The stage that makes unigram residuals: what the model makes of a token that it sees almost alone.

The unigram residual of token t at layer L is the residual at the last position of the prompt [BOS, *prefix, t].
"""

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
from tsae.text.tokens import load_tokens

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
    model: Folder,
    train: Path,
    settings: Unigrams,
    layers: Sequence[int],
    compatibility_mode: bool,
    folder: Path,
    device: Device = "cpu",
) -> None:
    """Write the unigram residuals of every layer.

    `{folder}/layer{L}.safetensors` holds `residuals` (vocab_size, d_model) float32. Beside them `embedding.safetensors` holds the
    model's `embedding` (vocab_size, e) float32.

    Rows longer than `settings.max_norm` times the median row are rescaled to the median, and their number is reported
    and kept in the file's metadata with the prompt and the largest norm before.

    Args:
        model: a model folder with its tokenizer.
        train: the training split, which says what BOS is.
        settings: the prompt's prefix, the batch size and the norm above which rows are rescaled.
        layers: layers, in any order.
        compatibility_mode: fold layer norms and centre residual-writing weights.
        folder: where the files go.
        device: where to compute.

    Raises:
        ValueError: a missing or unfit input, or a layer that the model does not have.
    """
    from transformers import AutoTokenizer

    bos = load_tokens(train).bos
    language_model = load_model(model, compatibility_mode, device)
    save_tensors(folder / "embedding.safetensors", {"embedding": language_model.embedding()})
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    prefix_ids = tokenizer.encode(settings.prefix, add_special_tokens=False)

    start = time.perf_counter()
    unigrams = unigram_residuals(language_model, bos, prefix_ids, sorted(set(layers)), settings.batch_tokens)
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
