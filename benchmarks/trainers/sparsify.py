"""SAEs as sparsify trains them."""

import os
from importlib.metadata import version

import torch
from peers import sparsify_step
from torch import Tensor

from trainers.settings import Settings, Trained
from tsae.training.batches import Batch


def topk(settings: Settings) -> Trained:
    """`sparsify.Trainer`'s step with Adam, its other optimizer, which has a learning rate for a cosine, and with AuxK, off by default."""
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its Triton decoder needs a GPU
    from sparsify import SparseCoder, SparseCoderConfig

    training = settings.training
    sae = SparseCoder(settings.cache.d_model, SparseCoderConfig(num_latents=settings.n_features, k=settings.k))
    sae.b_dec.data.copy_(settings.mean)
    adam = torch.optim.Adam(sae.parameters(), lr=training.lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, settings.n_steps, training.lr_end)
    update = sparsify_step(sae, adam, settings.dead_window, auxk_alpha=1 / 32)

    def step(batch: Batch) -> None:
        update(batch)
        cosine.step()

    def reconstruct(x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        acts, features, _ = sae.encode(x)
        fired = torch.bincount(features[acts > 0], minlength=settings.n_features)
        return sae.decode(acts, features), fired

    path = f"eai-sparsify {version('eai-sparsify')}: Adam, cosine, decoder rows of length 1, AuxK"
    return Trained(step, reconstruct, path)
