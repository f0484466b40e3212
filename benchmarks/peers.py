"""The training steps of other tools, as their trainers run them with defaults, on the CPU in float32.

Work between steps (reading data, logging, checkpoints) is left out. No feature is dead within a benchmark, so no auxiliary loss is
computed. Each tool is imported where it is used, so a missing or broken one does not stop the others.
"""

import itertools
import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from steps import Contender, Shape, initial_rows
from torch import Tensor

from tsae.training.batches import Batch


def sparsify(shape: Shape, optimizer: str) -> Contender:
    """`sparsify.Trainer`, copied line by line, because its loop takes activations from a hook on a model.

    The decoder's rows are normalised before the forward pass, and gradients along them removed before the optimizer's step. Its
    `fit` also allows TF32 products for the whole process, which is left out.

    Args:
        shape: sizes.
        optimizer: "signum", its default; "adam", its other choice, here PyTorch's because bitsandbytes needs a GPU; or
            "fused adam", which it does not offer, to compare everything but the optimizer.
    """
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its Triton decoder needs a GPU
    from schedulefree import ScheduleFreeWrapper
    from sparsify import SparseCoder, SparseCoderConfig
    from sparsify.sign_sgd import SignSGD
    from sparsify.utils import decoder_impl

    W = initial_rows(shape)
    sae = SparseCoder(shape.d_model, SparseCoderConfig(num_latents=shape.n_features, k=shape.k))
    sae.encoder.weight.data.copy_(W)
    sae.W_dec.data.copy_(W)
    scale = (shape.n_features / 2**14) ** 0.5
    match optimizer:
        case "signum":
            updates = ScheduleFreeWrapper(SignSGD(sae.parameters(), lr=5e-3 / scale), momentum=0.95)
            updates.train()
        case "adam":
            updates = torch.optim.Adam(sae.parameters(), lr=2e-4 / scale)
        case _:
            updates = torch.optim.Adam(sae.parameters(), lr=2e-4 / scale, fused=True)

    def reconstruct(x: Tensor) -> Tensor:
        x_hat: Tensor = sae(x).sae_out
        return x_hat

    step = sparsify_step(sae, updates)
    return Contender(step, reconstruct, f"eai-sparsify {version('eai-sparsify')}, {optimizer}, {decoder_impl.__name__}")


def sparsify_step(
    sae: Any, updates: torch.optim.Optimizer, dead_window: int = 10_000_000, auxk_alpha: float = 0.0
) -> Callable[[Batch], float]:
    """A training step of `sparsify.Trainer`.

    Args:
        sae: a `SparseCoder`.
        updates: its optimizer.
        dead_window: tokens without firing after which a feature is dead.
        auxk_alpha: weight of the loss of dead features.
    """
    since_fired = torch.zeros(sae.num_latents, dtype=torch.long)
    did_fire = torch.zeros(sae.num_latents, dtype=torch.bool)

    def step(batch: Batch) -> float:
        x = batch.residuals
        sae.set_decoder_norm_to_unit_norm()
        dead = since_fired > dead_window if auxk_alpha > 0 else None
        out = sae(x=x, y=x, dead_mask=dead, total_variance=(x - x.mean(0)).pow(2).sum())
        did_fire[out.latent_indices.flatten()] = True
        fvu = float(out.fvu.detach())
        (out.fvu + auxk_alpha * out.auxk_loss + out.multi_topk_fvu / 8).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        updates.step()
        updates.zero_grad()
        since_fired.add_(len(x))
        since_fired[did_fire] = 0
        did_fire.zero_()
        return fvu

    return step


def dictionary_learning(shape: Shape) -> Contender:
    """`TopKTrainer.update`, from the step at which it begins to estimate its threshold, as in most of a run."""
    from dictionary_learning.trainers.top_k import TopKTrainer

    W = initial_rows(shape)
    trainer = TopKTrainer(
        steps=1_000_000,
        activation_dim=shape.d_model,
        dict_size=shape.n_features,
        k=shape.k,
        layer=0,
        lm_name="none",
        device="cpu",
    )
    trainer.ae.encoder.weight.data.copy_(W)
    trainer.ae.decoder.weight.data.copy_(W.T)
    steps = itertools.count(trainer.threshold_start_step + 1)
    path = f"dictionary-learning {version('dictionary-learning')}, Adam, gradient clipping"
    return Contender(lambda batch: trainer.update(next(steps), batch.residuals), trainer.ae, path)


def sae_lens(shape: Shape, sparse: bool) -> Contender:
    """`SAETrainer.step`, and what its `fit` does around it.

    Args:
        shape: sizes.
        sparse: turn on `use_sparse_activations`, off by default, and turn off `rescale_acts_by_decoder_norm`, with which its
            backward pass fails on a CPU.
    """
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    W = initial_rows(shape)
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=shape.d_model,
            d_sae=shape.n_features,
            k=shape.k,
            use_sparse_activations=sparse,
            rescale_acts_by_decoder_norm=not sparse,
            device="cpu",
        )
    )
    sae.W_enc.data.copy_(W.T)
    sae.W_dec.data.copy_(W)
    settings = SAETrainerConfig(
        total_training_samples=1_000_000 * shape.n_tokens, train_batch_size_samples=shape.n_tokens, lr=3e-4, lr_end=3e-5
    )
    trainer = SAETrainer(settings, sae, data_provider=iter(()))

    def step(batch: Batch) -> None:
        trainer.maybe_reset_sparsity()
        trainer.step(batch.residuals)
        trainer.n_training_steps += 1

    activations = "sparse activations, not rescaled by the decoder's norm" if sparse else "dense activations"
    path = f"sae-lens {version('sae-lens')}, Adam, gradient clipping, {activations}"
    return Contender(step, sae, path)
