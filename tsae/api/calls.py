"""A tokenized SAE of one's own model and text, in one call.

The work folder has the layout of a profile's results. Stages whose files it holds are not run again, so an interrupted
call continues where it was.
"""

import contextlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from torch import Tensor

from tsae.api.inputs import corpus_of, model_of, profile_in, profile_of
from tsae.api.stages import job_of, run, sae_in, stages_of_evaluation, stages_of_training
from tsae.compute.devices import Device
from tsae.measure.sequences import load_sequences
from tsae.measure.table import read_table
from tsae.profile.inputs import Corpus, Model
from tsae.residuals.read import open_residuals
from tsae.sae.checkpoint import load
from tsae.sae.sae import SAE
from tsae.store import layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Heldout(NamedTuple):
    """Residuals of the held-out text."""

    x: Tensor
    """(N, d_model) float32 residuals."""
    tokens: Tensor
    """(N,) int64, the token at each."""


def train(
    model: "str | Path | Model | PreTrainedModel",
    texts: "Iterable[str] | Path | Sequence[Path] | Corpus",
    *,
    layer: int | None = None,
    k: int = 32,
    table: str = "learned",
    expansion: float = 4.0,
    tokens: int = 500_000,
    heldout: int = 16_000,
    seed: int = 0,
    prefix: str = "",
    folder: str | Path | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    device: Device = "cpu",
    settings: Mapping[str, Any] | None = None,
) -> SAE:
    """Train a TopK SAE on the residual stream of a language model.

    Args:
        model: a folder or an id of the Hugging Face hub (`id` or `id@revision`), a loaded model with its `tokenizer`, or
            the section `model` of a profile.
        texts: documents, files or folders of text (.txt, or .jsonl with a field `text`), or the section `corpus` of a
            profile.
        layer: the residual entering this block, counted from 0; by default the middle one.
        k: active features per token.
        table: none (a baseline), fixed or learned token-biases.
        expansion: features / d_model.
        tokens: size of the training text, at most, and tokens trained on [tokens].
        heldout: size of the held-out text [tokens].
        seed: of initialisation, order of data and choice of the held-out text.
        prefix: text between BOS and a token, where the table's rows start from its residual. In models whose first positions are
            attention sinks an empty one gives rows that say little of their token; docs/other_models.md says how to measure one.
        folder: where everything is kept, and from where an interrupted call continues; by default nothing is kept.
        tokenizer: of a loaded model.
        device: where the model and the SAE compute, for example `cuda`.
        settings: further sections of a profile, for example `{"training": {"lr": 1e-3}}`; see config/README.md.

    Returns:
        The SAE, in units of raw residuals. `encode(x, tokens)` takes residuals (..., d_model) and token ids (...) and gives
        activations (..., n_features); `decode(acts, tokens)` gives residuals again.

    Raises:
        ValueError: an input is missing or unfit, or the folder holds a training with other settings.
    """
    sections = {
        "residuals": {} if layer is None else {"layers": [layer]},
        "tokens": {"train": tokens, "heldout": heldout, "seed": seed, "short_text": "take"},
        "unigrams": {"prefix": prefix},
        "training": {"tokens": tokens},
        "sweep": {"headline": [{"k": [k], "expansion": [expansion], "table": [table], "seeds": [seed]}]},
    }
    for name, section in (settings or {}).items():
        sections[name] = sections.get(name, {}) | section
    with contextlib.ExitStack() as stack:
        kept = Path(folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="tsae-")))
        kept.mkdir(parents=True, exist_ok=True)
        profile = profile_of(kept, model_of(model, tokenizer, kept), corpus_of(texts, kept), sections)
        run(stages_of_training(profile, kept, device))
        return load(sae_in(kept, profile))


def evaluate(folder: str | Path, *, device: Device = "cpu") -> pd.DataFrame:
    """Evaluate the SAE of `train` on held-out text.

    Args:
        folder: the folder of that call.
        device: where the model and the SAE compute.

    Returns:
        A row for each `metric` of the SAE (`subject`), with its `value` and the ends of its 95% interval, `low` and `high`.
        docs/metrics.md has definitions and units, results/README.md all columns.

    Raises:
        ValueError: the folder holds no trained SAE.
    """
    kept = Path(folder)
    profile = profile_in(kept)
    run(stages_of_evaluation(profile, kept, device))
    return read_table(kept / layout.TABLE.format(table="headline"))


def heldout(folder: str | Path) -> Heldout:
    """The held-out residuals of `train`, to look at the SAE with.

    Args:
        folder: the folder of that call.

    Returns:
        `x` (N, d_model) float32, raw residuals entering the SAE's block, and `tokens` (N,) int64, the token at each. BOS and
        tokens of outlying norm are left out.

    Raises:
        ValueError: the folder holds no trained SAE.
    """
    kept = Path(folder)
    cache = open_residuals(kept / layout.RESIDUALS, "heldout", job_of(profile_in(kept)).layer)
    sequences = load_sequences(cache, kept / layout.HELDOUT_TOKENS)
    return Heldout(sequences.residuals[sequences.kept].float(), sequences.tokens[sequences.kept].long())
