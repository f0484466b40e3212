"""Training curves: the checkpoints of one SAE, each measured like the final SAE."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tsae.baselines import load_ablations, load_sequences, spread
from tsae.config import Curves, Evaluation
from tsae.evaluate import measure_reconstruction, patched_losses
from tsae.metrics import Bootstrap, failure
from tsae.models import load_model
from tsae.residuals import open_residuals
from tsae.sae import check_fits, load
from tsae.shards import evenly_spaced
from tsae.table import labelled


def measure_curve(
    sae_folder: Path,
    checkpoints: Sequence[int],
    model_folder: Path,
    residuals: Path,
    ablations: Path,
    settings: Evaluation,
    curves: Curves,
    compatibility_mode: bool,
    device: torch.device | str = "cpu",
) -> list[dict[str, Any]]:
    """Measure every checkpoint of an SAE, the trained one last.

    Args:
        sae_folder: the trained SAE, with its checkpoints in `checkpoints/`.
        checkpoints: their steps.
        model_folder: the language model.
        residuals: index of the residual cache.
        ablations: losses of the layer without an SAE.
        settings: how to evaluate.
        curves: on how many of the sequences the loss is measured.
        compatibility_mode: see the model's configuration.
        device: where to compute.

    Returns:
        Rows of a table with columns `step` and `tokens`; of an SAE whose training was stopped, one that says so.

    Raises:
        ValueError: a checkpoint or the losses without an SAE are missing or damaged, or the SAE is of another model.
    """
    folders = [*(sae_folder / f"checkpoints/step{step:08d}" for step in checkpoints), sae_folder]
    trained = load(sae_folder)
    if stopped := failure(trained.metadata):
        return labelled({"step": trained.metadata["step"], "tokens": trained.metadata["tokens_trained"]}, stopped)
    layer = trained.metadata["layer"]
    cache = open_residuals(residuals, "heldout", layer)
    check_fits(trained, sae_folder, cache.d_model, cache.vocab_size)
    sequences = load_sequences(cache)
    scored = spread(sequences, settings.ce_sequences)
    without_sae = load_ablations(ablations, len(scored.tokens))
    chosen = evenly_spaced(len(scored.tokens), curves.ce_sequences)
    fewer = spread(scored, curves.ce_sequences)
    clean, count = without_sae["clean"][chosen], without_sae["count"][chosen]
    bootstrap = Bootstrap(len(chosen), settings.bootstrap, settings.seed)
    rows: list[dict[str, Any]] = []
    model = load_model(model_folder, compatibility_mode, device)
    with torch.inference_mode():
        for folder in folders:
            sae = load(folder).to(device)
            reconstruction, _ = measure_reconstruction(sae, sequences, settings)
            patched = patched_losses(sae, model, fewer, layer, settings, label=folder.name)
            measured = [
                *reconstruction,
                bootstrap.ratio("ce_added", patched - clean, clean, int(count.sum())),
                bootstrap.ratio("ce_added_nats", patched - clean, count, int(count.sum())),
            ]
            rows += labelled({"step": sae.metadata["step"], "tokens": sae.metadata["tokens_trained"]}, measured)
    return rows
