"""Training one SAE from cached residuals."""

import csv
import io
import math
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tsae.config import Training
from tsae.files import load_metadata, sha256, write_text
from tsae.lookup import load_unigrams
from tsae.metrics import reconstruction_errors
from tsae.residuals import ResidualCache, open_residuals
from tsae.sae import SAE, save
from tsae.sweep import Job


class Batch(NamedTuple):
    """A training batch."""

    residuals: Tensor  # (N, d) float32, divided by the scale
    tokens: Tensor  # (N,) int64


def training_batches(cache: ResidualCache, settings: Training, seed: int) -> Iterator[Batch]:
    """Yield whole batches for `settings.tokens` tokens, in as many epochs as that takes.

    Shards are visited in random order, and their kept rows are shuffled in a buffer of `settings.buffer_tokens` rows;
    rows that do not fill a batch go on to the next buffer.
    """
    generator = torch.Generator().manual_seed(seed)
    n_batches = settings.tokens // settings.batch_size
    residuals, tokens = torch.empty(0, cache.d_model, dtype=torch.float16), torch.empty(0, dtype=torch.int32)
    while True:
        pending: list[tuple[Tensor, Tensor]] = [(residuals, tokens)]
        order = torch.randperm(len(cache.shards), generator=generator).tolist()
        for place, index in enumerate(order):
            shard = cache.shard(index)
            pending.append((shard.residuals[shard.kept], shard.tokens[shard.kept]))
            if place < len(order) - 1 and sum(len(rows) for rows, _ in pending) < settings.buffer_tokens:
                continue
            residuals, tokens = torch.cat([rows for rows, _ in pending]), torch.cat([ids for _, ids in pending])
            permutation = torch.randperm(len(tokens), generator=generator)
            for chosen in permutation.split(settings.batch_size):
                if len(chosen) < settings.batch_size:
                    break
                yield Batch(residuals[chosen].float() / cache.scale, tokens[chosen].long())
                n_batches -= 1
                if n_batches == 0:
                    return
            rest = permutation[len(permutation) - len(permutation) % settings.batch_size :]
            residuals, tokens = residuals[rest], tokens[rest]
            pending = [(residuals, tokens)]


class TableOptimizer:
    """Row-sparse Adam: only the rows of tokens in the batch, and their moments, move.

    Dense Adam would move rows of absent tokens by momentum and touch the whole table at every step.
    """

    def __init__(self, table: Tensor, lr: float):
        self.table = torch.nn.Parameter(table)
        self.adam = torch.optim.SparseAdam([self.table], lr=lr)

    def step(self, tokens: Tensor, gradients: Tensor) -> None:
        """Apply the gradients (N, d) of the rows at tokens (N,)."""
        rows, place = torch.unique(tokens, return_inverse=True)
        summed = gradients.new_zeros(len(rows), gradients.shape[1]).index_add_(0, place, gradients)
        self.table.grad = torch.sparse_coo_tensor(
            rows[None], summed, self.table.shape, is_coalesced=True, check_invariants=False
        )
        self.adam.step()


def history_steps(n_steps: int, n_points: int) -> set[int]:
    """Steps, counted from 1, after which the history is recorded: evenly spaced in log, the last one always."""
    return {round(step) for step in np.geomspace(max(1, n_steps / 100), n_steps, n_points)}


def train_sae(
    sae: SAE, cache: ResidualCache, heldout: ResidualCache, settings: Training, learn_table: bool, seed: int, label: str
) -> tuple[list[dict[str, float]], Tensor]:
    """Train in place.

    Args:
        sae: the SAE at initialisation, in scaled units.
        cache: training residuals.
        heldout: held-out residuals, for the history only.
        settings: how to train.
        learn_table: train the token-biases too.
        seed: seed of the order of data.
        label: what to call it on the progress bar.

    Returns:
        The history, one row per recorded step, and (F,) int64 training tokens seen when each feature last fired.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    n_steps = settings.tokens // settings.batch_size
    dense = torch.optim.Adam(sae.parameters(), lr=settings.lr, fused=True)
    table = TableOptimizer(sae.W_lookup, settings.table_lr) if learn_table and sae.W_lookup is not None else None
    optimizers = [dense] if table is None else [dense, table.adam]

    def schedule(step: int) -> float:
        """Cosine from lr to lr_end."""
        end = settings.lr_end / settings.lr
        return end + (1 - end) * (1 + math.cos(math.pi * step / n_steps)) / 2

    schedulers = [torch.optim.lr_scheduler.LambdaLR(optimizer, schedule) for optimizer in optimizers]
    sample = heldout.kept_rows()
    chosen = torch.linspace(0, len(sample.tokens) - 1, min(settings.history_tokens, len(sample.tokens))).long()
    heldout_residuals, heldout_tokens = sample.residuals[chosen] / cache.scale, sample.tokens[chosen].long()

    recorded = history_steps(n_steps, settings.history_points)
    history: list[dict[str, float]] = []
    losses: list[float] = []
    last_fired = torch.full((sae.n_features,), -1, dtype=torch.int64)
    progress = tqdm(total=n_steps * settings.batch_size, desc=label, unit="tok", unit_scale=True, disable=None)
    for step, (x, tokens) in enumerate(training_batches(cache, settings, seed), start=1):
        rows = sae.token_biases(tokens)
        if table is not None:
            rows.requires_grad_()
        active = sae.active(x)
        squared_error = (sae.decode_active(active, rows) - x).square().sum(1)
        loss = squared_error.mean()
        loss.backward()
        dense.step()
        dense.zero_grad()
        if table is not None and rows.grad is not None:
            table.step(tokens, rows.grad)
        for scheduler in schedulers:
            scheduler.step()

        last_fired[active.indices[active.values.detach() != 0]] = step * settings.batch_size
        losses.append(loss.item() / x.shape[1])
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(
                f"{label}: the loss is not finite at step {step}; lower training.lr or training.table_lr"
            )
        progress.update(len(tokens))
        if step in recorded:
            with torch.no_grad():
                errors = reconstruction_errors(heldout_residuals, sae(heldout_residuals, heldout_tokens))
            history.append(
                {
                    "step": step,
                    "tokens": step * settings.batch_size,
                    "lr": settings.lr * schedule(step),
                    "loss": sum(losses) / len(losses),
                    "heldout_nmse": errors.nmse.mean().item(),
                    "heldout_fvu": (errors.squared_error.sum() / errors.squared_deviation.sum()).item(),
                }
            )
            progress.set_postfix(nmse=f"{history[-1]['heldout_nmse']:.4f}")
            losses.clear()
    progress.close()
    return history, last_fired


def train(job: Job, settings: Training, residuals: Path, unigrams: Path, folder: Path) -> None:
    """Train the SAE of a job and write `sae.safetensors`, `history.csv` and `config.json` into `folder`.

    Args:
        job: layer, point of the sweep and seed.
        settings: how to train.
        residuals: index of the residual cache.
        unigrams: unigram residuals of the layer.
        folder: where the checkpoint goes.
    """
    cache = open_residuals(residuals, "train", job.layer)
    heldout = open_residuals(residuals, "heldout", job.layer)
    table = load_unigrams(unigrams) / cache.scale
    share = cache.token_counts(len(table)) / cache.n_kept
    sae = SAE.initialise(job.point, table, cache.mean() / cache.scale, share @ table, job.seed)
    history, last_fired = train_sae(
        sae, cache, heldout, settings, learn_table=job.point.table == "learned", seed=job.seed + 1, label=job.id
    )
    text = io.StringIO()
    writer = csv.DictWriter(text, history[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(folder / "history.csv", text.getvalue())
    metadata: dict[str, Any] = {
        "format": 1,
        "layer": job.layer,
        "hook_point": f"blocks.{job.layer}.hook_resid_pre",
        "seed": job.seed,
        "point": job.point.model_dump(mode="json"),
        "initial_encoder_scale": job.point.initial_encoder_scale,
        "n_features": sae.n_features,
        "d_model": cache.d_model,
        "scale": cache.scale,
        "training": settings.model_dump(mode="json"),
        "tokens_trained": history[-1]["tokens"],
        "final": history[-1],
        "residuals": cache.made_from,
        "unigrams": {"sha256": sha256(unigrams)} | load_metadata(unigrams),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("tsae", "torch", "transformers", "transformer_lens")},
    }
    save(folder, sae, metadata, last_fired)
