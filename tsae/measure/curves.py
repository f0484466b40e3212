"""Training curves: the checkpoints of one SAE, each measured like the final SAE."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tsae.compute.devices import Float32Device
from tsae.measure.ablations import load_ablations
from tsae.measure.dead import measure_dead_on_heldout
from tsae.measure.evolution import TrainedPaths, measure_checkpoint
from tsae.measure.loss import measure_loss, patched_losses
from tsae.measure.measurement import Measurement, failure
from tsae.measure.reconstruction import measure_reconstruction, reconstruct
from tsae.measure.sequences import load_sequences, spread
from tsae.measure.sums import DocumentSums, save_curve
from tsae.measure.table import labelled
from tsae.model.language_model import load_model
from tsae.profile.evaluation import Evaluation
from tsae.profile.sweep import Job
from tsae.profile.training import Curves
from tsae.residuals.read import open_residuals
from tsae.residuals.shards import evenly_spaced
from tsae.sae.checkpoint import check_fits, load, name_of_step
from tsae.sae.sae import SAE
from tsae.store.arguments import Folder
from tsae.store.files import write_json
from tsae.text.tokens import load_tokens


def measure_curve(
    job: Job,
    sae: Folder,
    checkpoints: Sequence[int],
    model: Folder,
    residuals: Path,
    heldout: Path,
    ablations: Path,
    trained_ones: TrainedPaths,
    settings: Evaluation,
    curves: Curves,
    compatibility_mode: bool,
    metrics: Path,
    sums: Path,
    device: Float32Device = "cpu",
) -> list[dict[str, Any]]:
    """Measure the checkpoints of one SAE, the trained one last.

    Args:
        job: layer, point of the sweep and seed.
        sae: the trained SAE, with its checkpoints in `checkpoints/`.
        checkpoints: their steps.
        model: the language model.
        residuals: index of the residual cache.
        heldout: the held-out split, for its documents.
        ablations: losses of the layer without an SAE.
        trained_ones: trained SAEs and unigram residuals that checkpoints are compared with.
        settings: how to evaluate.
        curves: number of sequences for the loss.
        compatibility_mode: fold layer norms and centre residual-writing weights.
        metrics: file of the measurements.
        sums: file of the sums of all checkpoints; empty if the training failed.
        device: where to compute.

    Returns:
        The rows as written, with `step` and `tokens`; for a failed training one row that says so.

    Raises:
        ValueError: a checkpoint or the losses without an SAE are missing or damaged, or the SAE is of another model.
    """
    last = load(sae)
    if stopped := failure(last.metadata):
        save_curve(sums, {}, load_tokens(heldout).documents)
        rows = _rows(job, last, stopped)
        write_json(metrics, rows)
        return rows
    layer = last.metadata["layer"]
    cache = open_residuals(residuals, "heldout", layer)
    check_fits(last, sae, cache.d_model, cache.vocab_size)
    sequences = load_sequences(cache, heldout)
    scored = spread(sequences, settings.ce_sequences)
    of_scored = evenly_spaced(len(scored.tokens), curves.ce_sequences)
    in_loss = evenly_spaced(len(sequences.tokens), settings.ce_sequences)[of_scored]
    fewer = spread(scored, curves.ce_sequences)
    without_sae = {name: losses[of_scored] for name, losses in load_ablations(ablations, scored).items()}
    compared_with = trained_ones.load(open_residuals(residuals, "train", layer), device)
    rows = []
    curve: dict[int, DocumentSums] = {}
    language_model = load_model(model, compatibility_mode, device)
    with torch.inference_mode():
        for folder in [*(sae / "checkpoints" / name_of_step(step) for step in checkpoints), sae]:
            checkpoint = load(folder).to(device)
            by_document = DocumentSums(sequences.documents)
            found, x_hat = reconstruct(checkpoint, sequences, settings, in_loss)
            measure_reconstruction(found, sequences, by_document)
            losses = patched_losses(x_hat, language_model, fewer, layer, settings, label=folder.name)
            measure_loss(losses, fewer, without_sae, by_document)
            measured = [
                *by_document.measure(settings.bootstrap, settings.seed),
                measure_dead_on_heldout(found.fired, settings),
                *measure_checkpoint(checkpoint, compared_with, settings),
            ]
            rows += _rows(job, checkpoint, measured)
            curve[checkpoint.metadata["step"]] = by_document
    save_curve(sums, curve, sequences.documents)
    write_json(metrics, rows)
    return rows


def _rows(job: Job, checkpoint: SAE, measured: Sequence[Measurement]) -> list[dict[str, Any]]:
    reached = {"step": checkpoint.metadata["step"], "tokens": checkpoint.metadata["tokens_trained"]}
    return labelled({"subject": job.point.id, **job.labels, **reached}, measured)
