"""Training one SAE from cached residuals."""

import csv
import io
import logging
import math
import platform
import shutil
from collections.abc import Callable, Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from tqdm import tqdm

from tsae.batches import Batch, training_batches
from tsae.config import Training
from tsae.devices import describe
from tsae.files import DamagedError, check, load_metadata, remove, sha256, write_text
from tsae.lookup import load_embedding, load_unigrams
from tsae.metrics import reconstruction_errors
from tsae.residuals import ResidualCache, open_residuals
from tsae.resume import DIVERGED, NotFiniteError, Progress, Saved, check_finite
from tsae.sae import SAE, save
from tsae.start import MOST_OFFSET, offset_at_start, start_from
from tsae.sweep import Job
from tsae.token_tables import token_table

LOG = logging.getLogger(__name__)
FORMAT = 3
HISTORY = ("step", "tokens", "lr", "loss", "l0", "heldout_nmse", "heldout_fvu")


class Step(NamedTuple):
    """What came of one optimization step."""

    loss: float  # penalty included; mean over tokens, and over the width of a residual
    fired: Tensor  # (n,) int64: the feature of every non-zero activation


class Trainer:
    """An SAE, its optimizers, and what changes with the step: learning rates and the penalty."""

    def __init__(self, sae: SAE, settings: Training, embedding: Tensor | None = None):
        """Take the SAE at initialisation, in scaled units; its point says whether, and how, the token-biases are trained too.

        Args:
            sae: the SAE.
            settings: how to train.
            embedding: (V, e) the model's embedding, for a table that is a map of it.
        """
        self.sae, self.settings = sae, settings
        self.n_steps = settings.tokens // settings.batch_size
        self.adam = torch.optim.Adam(sae.parameters(), lr=settings.lr, fused=True)
        self.table = token_table(sae, settings, embedding)
        optimizers = [self.adam] if self.table is None else [self.adam, self.table.optimizer]
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
        rows: Tensor | None
        if self.table is not None:
            rows = self.table.rows(tokens).requires_grad_()
        else:
            # A baseline's zeros would cost several passes over the batch.
            rows = None if sae.W_lookup is None else sae.token_biases(tokens)
        # An encoder that sees what the table leaves gives the table no gradient.
        active = sae.active(x, tokens, None if rows is None else rows.detach())
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
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(sae.parameters(), self.settings.clip_norm)
        self.adam.step()
        self.adam.zero_grad()
        if self.table is not None and rows is not None and rows.grad is not None:
            self.table.step(tokens, rows.grad)
        for scheduler in self.schedulers:
            scheduler.step()
        return Step(loss.item() / x.shape[1], active.features[active.values.detach() != 0])

    def settle(self) -> None:
        """Make the SAE's table the one that is trained, before the SAE is used."""
        if self.table is not None:
            self.table.settle()

    def state(self) -> dict[str, Tensor]:
        """Every tensor that the next step depends on, by name; not copied."""
        self.settle()
        tensors = {f"sae.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        for name, parameter in self.sae.named_parameters():
            tensors |= {f"adam.{key}.{name}": value for key, value in self.adam.state[parameter].items()}
        if self.table is not None:
            tensors |= {f"table.{key}": value for key, value in self.table.tensors().items()}
        return tensors

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Go on from such tensors, after so many steps."""
        self.sae.load_state_dict(_below("sae", tensors))
        moments = {key: _below(f"adam.{key}", tensors) for key in ("step", "exp_avg", "exp_avg_sq")}
        for name, parameter in self.sae.named_parameters():
            if name in moments["step"]:
                self.adam.state[parameter] = {key: values[name].to(self.sae.device) for key, values in moments.items()}
        if self.table is not None:
            self.table.restore(_below("table", tensors))
        self.steps = step
        for scheduler in self.schedulers:
            scheduler.last_epoch = step
            for group, base in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
                group["lr"] = base * self.schedule(step)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): part for name, part in tensors.items() if name.startswith(f"{prefix}.")}


def history_steps(n_steps: int, n_points: int) -> set[int]:
    """Steps, counted from 1, after which the history is recorded: evenly spaced in log, the last one always."""
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
) -> Progress:
    """Train in place, where the SAE is, from the start or from where an interrupted training was.

    Args:
        sae: the SAE at initialisation, in scaled units.
        cache: training residuals.
        heldout: held-out residuals, for the history only.
        settings: how to train.
        seed: seed of the order of data.
        label: what to call it on the progress bar.
        at_checkpoint: called at the steps of `checkpoints`.
        checkpoints: steps, counted from 1.
        saved: what to go on from, and where to write it now and then.
        embedding: (V, e) the model's embedding, for a table that is a map of it.

    Raises:
        NotFiniteError: the loss is not finite, or a parameter is not; the message says at which step, and why perhaps.
    """
    trainer = Trainer(sae, settings, embedding)
    n_steps = trainer.n_steps
    sample = heldout.kept_rows()
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
        LOG.info("%s: goes on after step %d of %d", label, start, n_steps)
    bar = tqdm(
        total=n_steps * settings.batch_size,
        initial=start * settings.batch_size,
        desc=label,
        unit="tok",
        unit_scale=True,
        disable=None,
    )
    for step, batch in enumerate(training_batches(cache, settings, seed, start, sae.W_enc.is_cuda), start=start + 1):
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
        return "residuals of its batch are not either: remove the residual cache and make it anew"
    return DIVERGED


def train(
    job: Job,
    settings: Training,
    residuals: Path,
    unigrams: Path,
    folder: Path,
    checkpoints: Collection[int] = (),
    device: torch.device | str = "cpu",
    model_folder: Path | None = None,
    embedding: Path | None = None,
) -> None:
    """Train the SAE of a job and write `sae.safetensors`, `history.csv` and `config.json` into `folder`.

    Checkpoints on the way, SAEs like the last with their table in half precision, go to `checkpoints/step00000123`.

    An interrupted training goes on from what it saved last. One that fails, its numbers being finite no longer, leaves the SAE
    as it was then, or at initialisation, and says so in `config.json`, under `failed`.

    Args:
        job: layer, point of the sweep and seed.
        settings: how to train.
        residuals: index of the residual cache.
        unigrams: unigram residuals of the layer.
        folder: where the SAE goes.
        checkpoints: steps, counted from 1, after which a checkpoint is written.
        device: where to compute.
        model_folder: the model, which computes the residuals that are not on disk.
        embedding: the model's embedding, for a table that is a map of it.
    """
    settings = settings.model_copy(update={"tokens": round(job.point.budget * settings.tokens)})
    cache = open_residuals(residuals, "train", job.layer, model_folder, device)
    heldout = open_residuals(residuals, "heldout", job.layer)

    mapped = None if embedding is None or job.point.table != "embedding" else load_embedding(embedding)
    start = start_from(job.point, cache, load_unigrams(unigrams), job.seed, mapped)

    def initialise() -> SAE:
        return SAE.initialise(job.point, start._replace(W_lookup=_copy(start.W_lookup)), job.seed).to(device)

    sae = initialise()
    offset = offset_at_start(sae, cache)
    if job.point.is_centred and offset.share > MOST_OFFSET:
        LOG.warning(
            "%s: the encoder's input starts off centre, by %.2g of its spread (at most %g is expected): its mean over all "
            "training tokens, which is taken away, is not that of these shards",
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

    # What is here survives when a workflow removes the outputs of an interrupted job.
    under_way = folder / ".training"
    # Not of the GPU: a job that was ended may go on on another.
    saved = Saved(under_way / "state.safetensors", metadata | {"job": job.id}, settings.save_minutes)
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
            seed=job.seed + 1,
            label=job.id,
            at_checkpoint=lambda at: write(on_the_way / _name(at.step), at, torch.float16),
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
    # All is written before anything takes its place, so that a full disk loses nothing of what was saved.
    done = under_way / "done"
    shutil.rmtree(done, ignore_errors=True)
    write_text(done / "history.csv", text.getvalue())
    write(done, progress, torch.float32, **failed)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    for path in (on_the_way, *sorted(done.iterdir())):  # what is recorded of a file before the file
        path.replace(folder / path.name)
    shutil.rmtree(under_way)


def _copy(table: Tensor | None) -> Tensor | None:
    return None if table is None else table.clone()


def _name(step: int) -> str:
    return f"step{step:08d}"


def _keep_checkpoints(folder: Path, saved: Saved, checkpoints: Collection[int]) -> None:
    """Keep the checkpoints that are wanted up to where the training was saved; if one is not whole, forget what was saved."""
    found = saved.read()
    if found is None:
        return
    wanted = {_name(step) for step in checkpoints if step <= found[1].step}
    for path in folder.glob("*"):
        if path.name not in wanted:
            shutil.rmtree(path)
    if broken := sorted(name for name in wanted if not _is_whole(folder / name)):
        LOG.warning("%s is not there, or damaged: training starts anew", folder / broken[0])
        remove(saved.path)


def _is_whole(checkpoint: Path) -> bool:
    parts = [checkpoint / name for name in ("sae.safetensors", "config.json")]
    try:
        for path in parts:
            check(path)
    except DamagedError:
        return False
    return all(path.is_file() for path in parts)
