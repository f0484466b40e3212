"""The loop over the training tokens of one SAE."""

import logging
import math
from collections.abc import Callable, Collection

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tsae.profile.training import Training
from tsae.residuals.read import ResidualCache
from tsae.sae.reconstruction import reconstruction_errors
from tsae.sae.sae import SAE
from tsae.training.batches import Batch, training_batches
from tsae.training.resume import DIVERGED, NotFiniteError, Progress, Saved, check_finite
from tsae.training.trainer import Trainer

LOG = logging.getLogger(__name__)


def history_steps(n_steps: int, n_points: int) -> set[int]:
    """Steps, counted from 1, after which the history is recorded: evenly spaced in log, with the last one."""
    return {round(step) for step in np.geomspace(max(1, n_steps / 100), n_steps, n_points)}


def train_sae(
    sae: SAE,
    cache: ResidualCache,
    heldout: ResidualCache,
    settings: Training,
    seed: int,
    label: str,
    at_checkpoint: Callable[[Progress], None],
    checkpoints: Collection[int] = (),
    saved: Saved | None = None,
    embedding: Tensor | None = None,
    distinct: float = 1.0,
) -> Progress:
    """Train an SAE in place, on its device, from the start or from a saved state.

    Args:
        sae: the SAE at initialisation, in scaled units.
        cache: training residuals.
        heldout: held-out residuals, for the history only.
        settings: how to train.
        seed: seed of the order of data.
        label: name on the progress bar.
        at_checkpoint: called at the steps of `checkpoints`.
        checkpoints: steps, counted from 1.
        saved: the saved state to resume from, written again at intervals.
        embedding: (V, e) the model's embedding, for a table that is a linear map of it.
        distinct: share of the training sequences that it is trained on.

    Raises:
        NotFiniteError: the loss or a parameter is not finite; the message has the step and a likely cause.
    """
    trainer = Trainer(sae, settings, embedding)
    n_steps = trainer.n_steps
    sample = heldout.kept_rows(sae.rows_of)
    chosen = torch.linspace(0, len(sample.tokens) - 1, min(settings.history_tokens, len(sample.tokens))).long()
    heldout_residuals = sample.residuals[chosen].to(sae.device) / cache.scale
    heldout_tokens = sample.tokens[chosen].to(sae.device).long()
    del sample

    recorded = history_steps(n_steps, settings.history_points)
    start, history, losses, active_per_token, last_fired = Progress(
        0, [], [], [], torch.full((sae.n_features,), -1, dtype=torch.int64, device=sae.device)
    )
    if saved is not None and (found := saved.read()) is not None:
        tensors, (start, history, losses, active_per_token, last_fired) = found
        trainer.restore(tensors, start)
        last_fired = last_fired.to(sae.device)
        LOG.info("%s: continues after step %d of %d", label, start, n_steps)
    bar = tqdm(
        total=n_steps * settings.batch_size,
        initial=start * settings.batch_size,
        desc=label,
        unit="tok",
        unit_scale=True,
        disable=None,
    )
    batches = training_batches(cache, settings, seed, start, sae.W_enc.is_cuda, distinct, sae.rows_of)
    for step, batch in enumerate(batches, start=start + 1):
        loss, fired = trainer.step(batch.to(sae.device))
        last_fired[fired] = step * settings.batch_size
        losses.append(loss)
        active_per_token.append(len(fired) / settings.batch_size)
        if not math.isfinite(loss):
            raise NotFiniteError(step, f"the loss is not finite; {_cause(batch)}")
        bar.update(settings.batch_size)
        if step in recorded:
            trainer.settle()
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
        progress = Progress(step, history, losses, active_per_token, last_fired)
        if step in checkpoints:
            check_finite(trainer.state(), step)
            at_checkpoint(progress)
        if saved is not None and step < n_steps and saved.is_due():
            saved.write(trainer.state(), progress)
    bar.close()
    check_finite(trainer.state(), n_steps)
    return Progress(n_steps, history, losses, active_per_token, last_fired)


def _cause(batch: Batch) -> str:
    if not batch.residuals.isfinite().all():
        return "residuals of its batch are not either: remove the residual cache and make it again"
    return DIVERGED
