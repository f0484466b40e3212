"""Training one SAE from cached residuals."""

import csv
import io
import logging
import platform
import shutil
from collections.abc import Collection, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tsae.compute.devices import Device, describe
from tsae.profile.sweep import Job
from tsae.profile.training import Training
from tsae.residuals.conditional_means import load_conditional_means
from tsae.residuals.read import open_residuals
from tsae.residuals.unigrams import load_embedding, load_unigrams
from tsae.sae.checkpoint import name_of_step, save
from tsae.sae.offset import MOST_OFFSET
from tsae.sae.sae import SAE
from tsae.store.arguments import Folder
from tsae.store.files import DamagedError, check, remove, sha256, write_text
from tsae.store.tensors import load_metadata
from tsae.training.loop import train_sae
from tsae.training.resume import NotFiniteError, Progress, Saved
from tsae.training.start import offset_at_start, start_from
from tsae.training.trainer import Trainer

LOG = logging.getLogger(__name__)
FORMAT = 3
HISTORY = ("step", "tokens", "lr", "loss", "l0", "heldout_nmse", "heldout_fvu")


def train(
    job: Job,
    settings: Training,
    residuals: Path,
    unigrams: Path,
    folder: Path,
    checkpoints: Sequence[int] = (),
    device: Device = "cpu",
    model: Folder | None = None,
    embedding: Path | None = None,
    conditional_means: Path | None = None,
    save_s: float | None = None,
) -> None:
    """Train one SAE.

    Writes `sae.safetensors`, `history.csv` and `config.json`, and checkpoints, with tables in float16, to
    `checkpoints/step00000123`.

    An interrupted training resumes from its last saved state. If a number becomes infinite or NaN, the training writes
    that state, or the SAE at initialisation, with `failed` in `config.json`.

    Args:
        job: layer, point of the sweep and seed.
        settings: how to train.
        residuals: index of the residual cache.
        unigrams: unigram residuals of the layer.
        folder: folder of the SAE.
        checkpoints: steps, counted from 1, after which a checkpoint is written.
        device: where to compute.
        model: the model, for residuals that are not on disk.
        embedding: the model's embedding, for a table that is a linear map of it.
        conditional_means: those of the layer, for a table that starts from them.
        save_s: interval between saved states [s]; by default `settings.save_minutes`.
    """
    settings = settings.model_copy(update={"tokens": round(job.point.budget * settings.tokens)})
    cache = open_residuals(residuals, "train", job.layer, model, device)
    heldout = open_residuals(residuals, "heldout", job.layer)

    mapped = None if embedding is None or job.point.table != "embedding" else load_embedding(embedding)
    means = None if conditional_means is None else load_conditional_means(conditional_means)
    start = start_from(job.point, cache, load_unigrams(unigrams), job.seed, mapped, means)

    def initialise() -> SAE:
        return SAE.initialise(job.point, start._replace(W_lookup=_copy(start.W_lookup)), job.seed).to(device)

    sae = initialise()
    offset = offset_at_start(sae, cache)
    if job.point.is_centred and offset.share > MOST_OFFSET:
        LOG.warning(
            "%s: the encoder's input starts off centre, by %.2g of its spread (at most %g is expected): the mean of "
            "these shards differs from that of all training tokens, which is subtracted",
            job.id,
            offset.share,
            MOST_OFFSET,
        )
    metadata: dict[str, Any] = {
        "format": FORMAT,
        "layer": job.layer,
        "hook_point": f"blocks.{job.layer}.hook_resid_pre",
        "seed": job.seed,
        "point": job.point.model_dump(mode="json"),
        "initial_encoder_scale": job.point.initial_encoder_scale,
        "initial_decoder_norm": job.point.initial_decoder_norm,
        "encoder_offset_at_start": offset.share,
        "n_features": sae.n_features,
        "d_model": cache.d_model,
        "scale": cache.scale,
        "training": settings.model_dump(mode="json", exclude={"save_minutes"}),
        "residuals": cache.made_from,
        "unigrams": {"sha256": sha256(unigrams)} | load_metadata(unigrams),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("tsae", "torch", "numba", "transformers", "transformer_lens")},
    }

    def write(to: Path, progress: Progress, table_dtype: torch.dtype, **more: Any) -> None:
        reached: dict[str, Any] = {"step": progress.step, "tokens_trained": progress.step * settings.batch_size}
        reached |= {"final": progress.history[-1]} if progress.history else {}
        save(to, sae, metadata | describe(device) | reached | more, progress.last_fired, table_dtype)

    # Not an output, so that it survives when a workflow removes the outputs of an interrupted job.
    under_way = folder / ".training"
    # Without the device: a job may resume on another.
    saved = Saved(
        under_way / "state.safetensors",
        metadata | {"job": job.id},
        60 * settings.save_minutes if save_s is None else save_s,
    )
    on_the_way = under_way / "checkpoints"
    _keep_checkpoints(on_the_way, saved, checkpoints)
    if saved.read() is None:
        shutil.rmtree(under_way, ignore_errors=True)
    on_the_way.mkdir(parents=True, exist_ok=True)
    failed: dict[str, Any] = {}
    try:
        progress = train_sae(
            sae,
            cache,
            heldout,
            settings,
            distinct=job.point.distinct,
            seed=job.seed + 1,
            label=job.id,
            at_checkpoint=lambda at: write(on_the_way / name_of_step(at.step), at, torch.float16),
            checkpoints=checkpoints,
            saved=saved,
            embedding=mapped,
        )
    except NotFiniteError as error:
        LOG.error("error: %s: %s", job.id, error)
        failed = {"failed": {"step": error.step, "why": error.why}}
        sae = initialise()
        progress = Progress(0, [], [], [], torch.full((sae.n_features,), -1, dtype=torch.int64))
        if (last_good := saved.read()) is not None:
            tensors, progress = last_good
            Trainer(sae, settings, mapped).restore(tensors, progress.step)
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY, lineterminator="\n")
    writer.writeheader()
    writer.writerows(progress.history)
    # Everything is written before anything is moved, so that a full disk loses no saved state.
    done = under_way / "done"
    shutil.rmtree(done, ignore_errors=True)
    write_text(done / "history.csv", text.getvalue())
    write(done, progress, torch.float32, **failed)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    for path in (on_the_way, *sorted(done.iterdir())):  # a file's digest before the file
        path.replace(folder / path.name)
    shutil.rmtree(under_way)


def _copy(table: Tensor | None) -> Tensor | None:
    return None if table is None else table.clone()


def _keep_checkpoints(folder: Path, saved: Saved, checkpoints: Collection[int]) -> None:
    """Keep the wanted checkpoints up to the saved step; if one is missing or damaged, remove the saved state."""
    found = saved.read()
    if found is None:
        return
    wanted = {name_of_step(step) for step in checkpoints if step <= found[1].step}
    for path in folder.glob("*"):
        if path.name not in wanted:
            shutil.rmtree(path)
    if broken := sorted(name for name in wanted if not _is_whole(folder / name)):
        LOG.warning("%s is not there, or damaged: training starts from step 0", folder / broken[0])
        remove(saved.path)


def _is_whole(checkpoint: Path) -> bool:
    parts = [checkpoint / name for name in ("sae.safetensors", "config.json")]
    try:
        for path in parts:
            check(path)
    except DamagedError:
        return False
    return all(path.is_file() for path in parts)
