"""Training one SAE from cached residuals."""

import csv
import io
import math
import platform
import shutil
from collections.abc import Callable, Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from tqdm import tqdm

from tsae.batches import Batch, training_batches
from tsae.config import Training
from tsae.files import load_metadata, sha256, write_text
from tsae.lookup import load_unigrams
from tsae.metrics import reconstruction_errors
from tsae.optimizers import RowAdam
from tsae.residuals import ResidualCache, open_residuals
from tsae.sae import SAE, save
from tsae.sweep import Job

FORMAT = 2


class Step(NamedTuple):
    """What came of one optimization step."""

    loss: float  # penalty included; mean over tokens, and over the width of a residual
    fired: Tensor  # (n,) int64: the feature of every non-zero activation


class Trainer:
    """An SAE, its optimizers, and what changes with the step: learning rates and the penalty."""

    def __init__(self, sae: SAE, settings: Training):
        """Take the SAE at initialisation, in scaled units; its point says whether the token-biases are trained too."""
        self.sae, self.settings = sae, settings
        self.n_steps = settings.tokens // settings.batch_size
        self.adam = torch.optim.Adam(sae.parameters(), lr=settings.lr, fused=True)
        learned = sae.W_lookup if sae.point.table == "learned" else None
        self.row_adam = None if learned is None else RowAdam(learned, lr=settings.table_lr)
        optimizers = [self.adam] if self.row_adam is None else [self.adam, self.row_adam]
        self.schedulers = [torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule) for optimizer in optimizers]
        self.steps = 0

    def schedule(self, step: int) -> float:
        """Cosine from lr to lr_end, as a share of lr."""
        end = self.settings.lr_end / self.settings.lr
        return end + (1 - end) * (1 + math.cos(math.pi * step / self.n_steps)) / 2

    def step(self, batch: Batch) -> Step:
        """Move every parameter once."""
        sae, (x, tokens) = self.sae, batch
        self.steps += 1
        # A baseline's zeros would cost several passes over the batch.
        rows = None if sae.W_lookup is None else sae.token_biases(tokens)
        if rows is not None and self.row_adam is not None:
            rows.requires_grad_()
        active = sae.active(x, tokens)
        # The squared error summed, which has one pass forward and one back.
        loss = mse_loss(sae.decode_active(active, rows), x, reduction="sum") / len(x)
        warmup = max(1, round(self.settings.l1_warmup * self.n_steps))
        penalty = (sae.point.l1 or 0.0) * min(1.0, self.steps / warmup)

        def target() -> Tensor:
            to_explain = x - sae.b_dec.detach()
            return to_explain if rows is None else to_explain - rows.detach()

        extra = sae.activation.extra_loss(active, sae.W_dec, target, penalty)
        if extra is not None:
            loss = loss + extra
        loss.backward()
        self.adam.step()
        self.adam.zero_grad()
        if self.row_adam is not None and rows is not None and rows.grad is not None:
            self.row_adam.step(tokens, rows.grad)
        for scheduler in self.schedulers:
            scheduler.step()
        return Step(loss.item() / x.shape[1], active.features[active.values.detach() != 0])


def history_steps(n_steps: int, n_points: int) -> set[int]:
    """Steps, counted from 1, after which the history is recorded: evenly spaced in log, the last one always."""
    return {round(step) for step in np.geomspace(max(1, n_steps / 100), n_steps, n_points)}


class Progress(NamedTuple):
    """What training knows of itself at a step."""

    step: int  # steps done
    history: list[dict[str, float]]  # one row per recorded step
    last_fired: Tensor  # (F,) int64, training tokens seen when each feature last fired; -1 if it never did


def train_sae(
    sae: SAE,
    cache: ResidualCache,
    heldout: ResidualCache,
    settings: Training,
    seed: int,
    label: str,
    at_checkpoint: Callable[[Progress], None],
    checkpoints: Collection[int] = (),
) -> Progress:
    """Train in place.

    Args:
        sae: the SAE at initialisation, in scaled units.
        cache: training residuals.
        heldout: held-out residuals, for the history only.
        settings: how to train.
        seed: seed of the order of data.
        label: what to call it on the progress bar.
        at_checkpoint: called at the steps of `checkpoints`.
        checkpoints: steps, counted from 1.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    trainer = Trainer(sae, settings)
    n_steps = trainer.n_steps
    sample = heldout.kept_rows()
    chosen = torch.linspace(0, len(sample.tokens) - 1, min(settings.history_tokens, len(sample.tokens))).long()
    heldout_residuals, heldout_tokens = sample.residuals[chosen] / cache.scale, sample.tokens[chosen].long()
    del sample

    recorded = history_steps(n_steps, settings.history_points)
    history: list[dict[str, float]] = []
    losses: list[float] = []
    active_per_token: list[float] = []
    last_fired = torch.full((sae.n_features,), -1, dtype=torch.int64)
    bar = tqdm(total=n_steps * settings.batch_size, desc=label, unit="tok", unit_scale=True, disable=None)
    for step, batch in enumerate(training_batches(cache, settings, seed), start=1):
        loss, fired = trainer.step(batch)
        last_fired[fired] = step * settings.batch_size
        losses.append(loss)
        active_per_token.append(len(fired) / settings.batch_size)
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(
                f"{label}: the loss is not finite at step {step}; lower training.lr or training.table_lr"
            )
        bar.update(settings.batch_size)
        if step in recorded:
            with torch.no_grad():
                errors = reconstruction_errors(heldout_residuals, sae(heldout_residuals, heldout_tokens))
            history.append(
                {
                    "step": step,
                    "tokens": step * settings.batch_size,
                    "lr": settings.lr * trainer.schedule(step),
                    "loss": sum(losses) / len(losses),
                    "l0": sum(active_per_token) / len(active_per_token),
                    "heldout_nmse": errors.nmse.mean().item(),
                    "heldout_fvu": (errors.squared_error.sum() / errors.squared_deviation.sum()).item(),
                }
            )
            bar.set_postfix(nmse=f"{history[-1]['heldout_nmse']:.4f}")
            losses.clear()
            active_per_token.clear()
        if step in checkpoints:
            at_checkpoint(Progress(step, history, last_fired))
    bar.close()
    return Progress(n_steps, history, last_fired)


def train(
    job: Job, settings: Training, residuals: Path, unigrams: Path, folder: Path, checkpoints: Collection[int] = ()
) -> None:
    """Train the SAE of a job and write `sae.safetensors`, `history.csv` and `config.json` into `folder`.

    Checkpoints on the way, SAEs like the last with their table in half precision, go to `checkpoints/step00000123`.

    Args:
        job: layer, point of the sweep and seed.
        settings: how to train.
        residuals: index of the residual cache.
        unigrams: unigram residuals of the layer.
        folder: where the SAE goes.
        checkpoints: steps, counted from 1, after which a checkpoint is written.
    """
    cache = open_residuals(residuals, "train", job.layer)
    heldout = open_residuals(residuals, "heldout", job.layer)
    table = load_unigrams(unigrams) / cache.scale
    share = cache.token_counts(len(table)) / cache.n_kept
    sae = SAE.initialise(job.point, table, cache.mean() / cache.scale, share @ table, job.seed)
    del table
    metadata: dict[str, Any] = {
        "format": FORMAT,
        "layer": job.layer,
        "hook_point": f"blocks.{job.layer}.hook_resid_pre",
        "seed": job.seed,
        "point": job.point.model_dump(mode="json"),
        "initial_encoder_scale": job.point.initial_encoder_scale,
        "n_features": sae.n_features,
        "d_model": cache.d_model,
        "scale": cache.scale,
        "training": settings.model_dump(mode="json"),
        "residuals": cache.made_from,
        "unigrams": {"sha256": sha256(unigrams)} | load_metadata(unigrams),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("tsae", "torch", "numba", "transformers", "transformer_lens")},
    }

    def write(to: Path, progress: Progress, table_dtype: torch.dtype) -> None:
        reached: dict[str, Any] = {"step": progress.step, "tokens_trained": progress.step * settings.batch_size}
        reached |= {"final": progress.history[-1]} if progress.history else {}
        save(to, sae, metadata | reached, progress.last_fired, table_dtype)

    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    (folder / "checkpoints").mkdir(parents=True)
    progress = train_sae(
        sae,
        cache,
        heldout,
        settings,
        seed=job.seed + 1,
        label=job.id,
        at_checkpoint=lambda reached: write(folder / f"checkpoints/step{reached.step:08d}", reached, torch.float16),
        checkpoints=checkpoints,
    )
    text = io.StringIO()
    writer = csv.DictWriter(text, progress.history[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(progress.history)
    write_text(folder / "history.csv", text.getvalue())
    write(folder, progress, torch.float32)
