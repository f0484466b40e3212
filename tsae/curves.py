"""Training curves: the checkpoints of one SAE, each measured like the final SAE."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tsae.baselines import load_ablations, load_sequences, spread
from tsae.config import Curves, Evaluation
from tsae.evaluate import measure_dead_on_heldout, measure_loss, measure_reconstruction
from tsae.evolution import TrainedPaths, measure_checkpoint
from tsae.metrics import failure
from tsae.models import load_model
from tsae.residuals import open_residuals
from tsae.sae import check_fits, load
from tsae.shards import evenly_spaced
from tsae.sums import DocumentSums, save_curve
from tsae.table import labelled
from tsae.tokens import load_tokens


def measure_curve(
    sae_folder: Path,
    checkpoints: Sequence[int],
    model_folder: Path,
    residuals: Path,
    heldout_tokens: Path,
    ablations: Path,
    trained_ones: TrainedPaths,
    settings: Evaluation,
    curves: Curves,
    compatibility_mode: bool,
    sums_output: Path,
    device: torch.device | str = "cpu",
) -> list[dict[str, Any]]:
    """Measure every checkpoint of an SAE, the trained one last, and write the sums per document.

    Args:
        sae_folder: the trained SAE, with its checkpoints in `checkpoints/`.
        checkpoints: their steps.
        model_folder: the language model.
        residuals: index of the residual cache.
        heldout_tokens: the held-out split, for its documents.
        ablations: losses of the layer without an SAE.
        trained_ones: what features and token-biases on the way are compared with.
        settings: how to evaluate.
        curves: on how many of the sequences the loss is measured.
        compatibility_mode: see the model's configuration.
        sums_output: where the sums of all checkpoints go; of an SAE whose training was stopped, none.
        device: where to compute.

    Returns:
        Rows of a table with columns `step` and `tokens`; of an SAE whose training was stopped, one that says so.

    Raises:
        ValueError: a checkpoint or the losses without an SAE are missing or damaged, or the SAE is of another model.
    """
    folders = [*(sae_folder / f"checkpoints/step{step:08d}" for step in checkpoints), sae_folder]
    trained = load(sae_folder)
    if stopped := failure(trained.metadata):
        save_curve(sums_output, {}, load_tokens(heldout_tokens).documents)
        return labelled({"step": trained.metadata["step"], "tokens": trained.metadata["tokens_trained"]}, stopped)
    layer = trained.metadata["layer"]
    cache = open_residuals(residuals, "heldout", layer)
    check_fits(trained, sae_folder, cache.d_model, cache.vocab_size)
    sequences = load_sequences(cache, heldout_tokens)
    scored = spread(sequences, settings.ce_sequences)
    chosen = evenly_spaced(len(scored.tokens), curves.ce_sequences)
    fewer = spread(scored, curves.ce_sequences)
    without_sae = {name: losses[chosen] for name, losses in load_ablations(ablations, scored).items()}
    compared_with = trained_ones.load(open_residuals(residuals, "train", layer), device)
    rows: list[dict[str, Any]] = []
    curve: dict[int, DocumentSums] = {}
    model = load_model(model_folder, compatibility_mode, device)
    with torch.inference_mode():
        for folder in folders:
            sae = load(folder).to(device)
            sums = DocumentSums(sequences.documents)
            fired = measure_reconstruction(sae, sequences, settings, sums)
            measure_loss(sae, model, fewer, without_sae, layer, settings, sums, label=folder.name)
            measured = [
                *sums.measure(settings.bootstrap, settings.seed),
                measure_dead_on_heldout(fired, settings),
                *measure_checkpoint(sae, compared_with, settings),
            ]
            rows += labelled({"step": sae.metadata["step"], "tokens": sae.metadata["tokens_trained"]}, measured)
            curve[sae.metadata["step"]] = sums
    save_curve(sums_output, curve, sequences.documents)
    return rows
