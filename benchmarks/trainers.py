"""TopK SAEs as this project and other tools train them at equal settings, for quality.py.

Each tool has its own start, except that b_dec starts at the mean, or at the tool's estimate of it. The window after which a
feature is dead is the profile's, because the tools' own are longer than a training of the embedded default. Each tool is imported
where it is used, so a missing or broken one does not stop the others.
"""

import os
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from peers import sparsify_step
from torch import Tensor

from tsae.profile.point import Point
from tsae.profile.training import Training
from tsae.residuals.read import ResidualCache
from tsae.sae.sae import SAE
from tsae.training.batches import Batch
from tsae.training.start import start_from
from tsae.training.trainer import Trainer

# Shares of dictionary_learning's steps at which the learning rate is reached, and begins to fall.
WARMUP, DECAY = 0.02, 0.8


class Settings(NamedTuple):
    """The settings of all tools."""

    point: Point  # k and the number of features
    training: Training
    cache: ResidualCache  # training residuals; batches are divided by its scale
    unigrams: Tensor  # (V, d) unigram residuals, raw
    dead_window: int  # tokens without firing after which a feature is dead
    seed: int

    @property
    def n_features(self) -> int:
        """F."""
        return self.point.n_features(self.cache.d_model)

    @property
    def n_steps(self) -> int:
        """Steps of training."""
        return self.training.tokens // self.training.batch_size

    @property
    def mean(self) -> Tensor:
        """(d,) mean training residual, divided by the scale."""
        return self.cache.mean() / self.cache.scale

    @property
    def k(self) -> int:
        """Active features per token."""
        assert self.point.k is not None
        return self.point.k


class Trained(NamedTuple):
    """An SAE under training."""

    step: Callable[[Batch], object]
    reconstruct: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """x (N, d) and tokens (N,) -> x_hat (N, d), and the features that fire on any token, (F,) bool."""
    path: str  # what runs, in words


def ours(settings: Settings, clip: bool = True, lr: float = 1.0, **changes: Any) -> Trained:
    """`tsae.training.trainer.Trainer`; without clipping, with changes of the point, or with `lr` times the schedule's learning rates."""
    point = Point.model_validate(settings.point.model_dump() | changes)
    training = settings.training.model_copy(
        update={"lr": lr * settings.training.lr, "lr_end": lr * settings.training.lr_end}
        | ({} if clip else {"clip_norm": None})
    )
    start = start_from(point, settings.cache, settings.unigrams, settings.seed)
    sae = SAE.initialise(point, start, settings.seed)

    def reconstruct(x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        active = sae.active(x, tokens)
        fired = torch.zeros(settings.n_features, dtype=torch.bool)
        fired[active.features[active.values > 0]] = True
        return sae.decode_active(active, sae.token_biases(tokens)), fired

    path = f"tsae, {point.id}: fused Adam, cosine{'' if training.clip_norm is None else ', gradient clipping'}"
    return Trained(Trainer(sae, training).step, reconstruct, path)


def sae_lens(settings: Settings) -> Trained:
    """`SAETrainer`: activations rescaled by the decoder's norms, gradients clipped, AuxK."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    training = settings.training
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(d_in=settings.cache.d_model, d_sae=settings.n_features, k=settings.k, device="cpu")
    )
    sae.b_dec.data.copy_(settings.mean)
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=settings.n_steps * training.batch_size,
            train_batch_size_samples=training.batch_size,
            lr=training.lr,
            lr_end=training.lr_end,
            lr_scheduler_name="cosineannealing",
            dead_feature_window=settings.dead_window // training.batch_size,
        ),
        sae,
        data_provider=iter(()),
    )

    def step(batch: Batch) -> None:
        trainer.maybe_reset_sparsity()
        trainer.step(batch.residuals)
        trainer.n_training_steps += 1

    def reconstruct(x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        acts = sae.encode(x)
        return sae.decode(acts), (acts > 0).any(0)

    path = (
        f"sae-lens {version('sae-lens')}: Adam, cosine, gradient clipping, AuxK, activations rescaled by decoder norms"
    )
    return Trained(step, reconstruct, path)


def sparsify(settings: Settings) -> Trained:
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
        fired = torch.zeros(settings.n_features, dtype=torch.bool)
        fired[features[acts > 0]] = True
        return sae.decode(acts, features), fired

    path = f"eai-sparsify {version('eai-sparsify')}: Adam, cosine, decoder rows of length 1, AuxK"
    return Trained(step, reconstruct, path)


def dictionary_learning(settings: Settings) -> Trained:
    """`TopKTrainer.update`, on its own schedule: warmup, constant learning rate, linear decay to zero."""
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=settings.n_steps,
        activation_dim=settings.cache.d_model,
        dict_size=settings.n_features,
        k=settings.k,
        layer=settings.cache.layer,
        lm_name="none",
        lr=settings.training.lr,
        warmup_steps=round(WARMUP * settings.n_steps),
        decay_start=round(DECAY * settings.n_steps),
        seed=settings.seed,
        device="cpu",
    )
    trainer.dead_feature_threshold = settings.dead_window
    steps = iter(range(settings.n_steps))

    def reconstruct(x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x_hat, acts = trainer.ae(x, output_features=True)
        return x_hat, (acts > 0).any(0)

    path = (
        f"dictionary-learning {version('dictionary-learning')}: Adam, its own schedule, decoder rows of length 1, "
        "gradient clipping, AuxK"
    )
    return Trained(lambda batch: trainer.update(next(steps), batch.residuals), reconstruct, path)


TOOLS: dict[str, Callable[[Settings], Trained]] = {
    "ours": ours,
    "ours, gradients not clipped": partial(ours, clip=False),
    "ours, decoder rows of length 1": partial(ours, decoder_norm=1.0),
    "ours, half the learning rate": partial(ours, lr=0.5),
    "ours, twice the learning rate": partial(ours, lr=2.0),
    "ours, the authors' start": partial(ours, start="authors"),
    "ours, tokenized": partial(ours, table="learned"),
    "ours, tokenized, remainder": partial(ours, table="learned", encoder_input="remainder"),
    "SAELens": sae_lens,
    "dictionary_learning": dictionary_learning,
    "sparsify": sparsify,
}
