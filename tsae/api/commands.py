"""The same on the command line."""

from pathlib import Path
from typing import Literal

import pandas as pd

from tsae.api.calls import evaluate, train
from tsae.api.inputs import profile_in
from tsae.api.stages import sae_in
from tsae.profile.validation import read_yaml
from tsae.store import layout
from tsae.store.arguments import Files

# What `tsae evaluate` prints.
SUMMARY = ("nmse", "fvu", "ce_added", "l0", "dead_heldout", "token_bias_unigram_cosine", "last_token_detection")


def train_from_files(
    model: str,
    folder: Path,
    text: Files,
    layer: int | None = None,
    k: int = 32,
    table: Literal["none", "fixed", "learned"] = "learned",
    expansion: float = 4.0,
    tokens: int = 500_000,
    heldout: int = 16_000,
    seed: int = 0,
    prefix: str = "",
    settings: Path | None = None,
    device: str = "cpu",
) -> str:
    """Train one SAE of your model on your text.

    For example: tsae train --model ./my-model --folder my-sae --layer 12 book.txt

    Run again, an interrupted training continues.

    Args:
        model: a folder, or an id of the Hugging Face hub, `id` or `id@revision`.
        folder: where everything is kept.
        text: files or folders of text; .jsonl has a field `text`.
        layer: the residual entering this block; by default the middle one.
        k: active features per token.
        table: none (a baseline), fixed or learned token-biases.
        expansion: features / d_model.
        tokens: size of the training text, at most, and tokens trained on [tokens].
        heldout: size of the held-out text [tokens].
        seed: of initialisation, order of data and choice of the held-out text.
        prefix: text between BOS and a token, where the table's rows start from its residual; see docs/other_models.md.
        settings: a YAML file of further sections of a profile; see config/README.md.
        device: where the model and the SAE compute, for example cuda.

    Raises:
        ValueError: as `train`.
    """
    more = {} if settings is None else read_yaml(settings)
    if not isinstance(more, dict):
        raise ValueError(f"{settings}: expected a mapping of sections at the top level")
    sae = train(
        model,
        text,
        layer=layer,
        k=k,
        table=table,
        expansion=expansion,
        tokens=tokens,
        heldout=heldout,
        seed=seed,
        prefix=prefix,
        folder=folder,
        device=device,
        settings=more,
    )
    return f"{sae_in(folder, profile_in(folder))}: {sae.n_features} features; next: tsae evaluate --folder {folder}"


def summarise(folder: Path, device: str = "cpu") -> str:
    """Evaluate the SAE of `train`, and print its main metrics.

    Args:
        folder: the folder of `tsae train`.
        device: where the model and the SAE compute, for example cuda.

    Raises:
        ValueError: the folder holds no trained SAE.
    """
    rows = evaluate(folder, device=device)
    shown = rows[rows["metric"].isin(SUMMARY) & rows["at"].isna() & rows["min_count"].isin([1, pd.NA])]
    intervals = shown["low"].map("   {:.4g} to ".format) + shown["high"].map("{:.4g}".format)
    intervals = intervals.where(shown["low"].notna(), "")
    lines = shown["metric"].str.ljust(32) + shown["value"].map("{:8.4g}".format) + intervals
    return "\n".join([*lines, f"all of {len(rows)} rows: {folder / layout.TABLE.format(table='headline')}"])
