"""The stage that finds common n-grams of the training text and computes the residual of each, alone in a prompt.

The residual of an n-gram at layer L is at the last position of the prompt [BOS, *prefix, n-gram]. For a single token that is the
unigram residual. Long ones are rescaled in the same way.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tsae.compute.devices import Device
from tsae.model.language_model import load_model
from tsae.profile.evaluation import Ngrams
from tsae.profile.inputs import Unigrams
from tsae.residuals.shards import evenly_spaced
from tsae.residuals.write_unigrams import last_residuals, rescale_long_rows_
from tsae.store.arguments import Folder
from tsae.store.tensors import save_tensors
from tsae.text.tokens import TokenSplit, load_tokenizer, load_tokens

LOG = logging.getLogger(__name__)


def find_ngrams(ids: Tensor, documents: Tensor, wanted: Mapping[int, int], min_documents: int) -> dict[int, Tensor]:
    """The most frequent runs of tokens within a document and a sequence, most frequent first, then lowest ids first.

    Args:
        ids: (n_seq, n_ctx) token ids.
        documents: (n_seq, n_ctx) each token's document, -1 at BOS.
        wanted: length -> number of runs.
        min_documents: documents that a run must occur in, so that repetitions in one long document do not count as common.

    Returns:
        length -> (at most that number, length) int64, without lengths that have no run.
    """
    tokens, lines = (column.numpy().astype(np.int64).ravel() for column in (ids, documents))
    n_vocabulary, n_lines = int(tokens.max()) + 1, int(lines.max()) + 1
    # Whether the next token is in the same document, and so in the same sequence, since BOS separates sequences.
    linked = lines == np.roll(lines, -1)
    # `run` holds the starts of runs, `label` a number per run: equal for equal tokens, in the order of their ids.
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
        # A longer run occurs in no more documents than its beginning.
        common = in_documents[label] >= min_documents
        run, label = run[common], label[common]
    return found


def common_ngrams(split: TokenSplit, settings: Ngrams) -> tuple[Tensor, dict[int, Tensor]]:
    """The most frequent tokens (n,), and the most frequent n-grams by length (n, length).

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


def write_ngrams(
    model: Folder,
    train: Path,
    settings: Ngrams,
    prompt: Unigrams,
    layers: Sequence[int],
    compatibility_mode: bool,
    folder: Path,
    device: Device = "cpu",
) -> None:
    """Write the residuals of common n-grams at every layer.

    `{folder}/layer{L}.safetensors` holds `NgramResiduals`. Beside them, `spelling.safetensors` holds `spelling` (vocab_size,) int64
    of `spellings`, which says which tokens are spelt alike.

    Args:
        model: a model folder with its tokenizer.
        train: the training split.
        settings: how many n-grams to find, and in how much text.
        prompt: the prompt's prefix, and the sequences per forward pass.
        layers: layers in any order.
        compatibility_mode: fold layer norms and centre residual-writing weights.
        folder: where the files go.
        device: where to compute.

    Raises:
        ValueError: a missing or unfit input, or no token occurs in enough documents.
    """
    layers = sorted(set(layers))
    split = load_tokens(train)
    unigrams, ngrams = common_ngrams(split, settings)
    tokenizer = load_tokenizer(model)
    prefix_ids = tokenizer.encode(prompt.prefix, add_special_tokens=False)
    language_model = load_model(model, compatibility_mode, device)
    residuals: dict[int, dict[int, Tensor]] = {layer: {} for layer in layers}
    for length, found in ngrams.items():
        rows = last_residuals(language_model, split.bos, prefix_ids, found, layers, prompt.batch_tokens)
        for layer in layers:
            rescale_long_rows_(rows[layer], prompt.max_norm)
            residuals[layer][length] = rows[layer]
    LOG.info("n-grams: %s", ", ".join(f"{len(found)} of length {length}" for length, found in ngrams.items()))
    for layer in layers:
        save_tensors(
            folder / f"layer{layer}.safetensors",
            {
                "unigrams": unigrams,
                **{f"ids/{length}": found for length, found in ngrams.items()},
                **{f"residuals/{length}": rows for length, rows in residuals[layer].items()},
            },
            {"per_length": settings.per_length},
        )
    texts = [str(tokenizer.decode([token])) for token in range(min(len(tokenizer), language_model.vocab_size))]
    save_tensors(folder / "spelling.safetensors", {"spelling": spellings(texts, language_model.vocab_size)})


def spellings(texts: list[str], vocab_size: int) -> Tensor:
    """A number per token (vocab_size,) int64, equal for tokens whose texts differ only by a leading space or by case.

    Tokens without letters, with part of a character or beyond the texts have a number of their own.
    """
    first: dict[str, int] = {}
    numbers = torch.arange(vocab_size)
    for token, text in enumerate(texts):
        spelt = text.removeprefix(" ").casefold()
        if any(map(str.isalpha, spelt)) and "\N{REPLACEMENT CHARACTER}" not in spelt:
            numbers[token] = first.setdefault(spelt, token)
    return numbers
