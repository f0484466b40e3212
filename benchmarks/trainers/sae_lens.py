"""SAEs as SAELens trains them: `SAETrainer`, with a cosine and with the start of its configurations, b_dec apart."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from torch import Tensor

from trainers.settings import Settings, Trained, firings
from tsae.training.batches import Batch


def topk(settings: Settings) -> Trained:
    """TopK; its loss has an auxiliary part, so this is its AuxK too."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(k=settings.k, **_sizes(settings)))
    return _trained(settings, sae, sae.encode, "AuxK, activations rescaled by decoder norms")


def batchtopk(settings: Settings) -> Trained:
    """BatchTopK."""
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(k=settings.k, **_sizes(settings)))
    return _trained(settings, sae, _above_threshold(sae), "AuxK, activations rescaled by decoder norms")


def matryoshka(settings: Settings) -> Trained:
    """BatchTopK with nested reconstructions."""
    from sae_lens import MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig

    sizes = _sizes(settings) | {"matryoshka_widths": settings.widths}
    sae = MatryoshkaBatchTopKTrainingSAE(MatryoshkaBatchTopKTrainingSAEConfig(k=settings.k, **sizes))
    return _trained(settings, sae, _above_threshold(sae), "AuxK, activations rescaled by decoder norms")


def jumprelu(settings: Settings, aim: bool = True) -> Trained:
    """JumpReLU, with the quadratic penalty around our L0, or with our penalty and its coefficient."""
    from sae_lens import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig

    penalty: dict[str, Any] = {"l0_coefficient": settings.point.penalty}
    said = f"L0 penalty {settings.point.penalty:g}"
    if aim:
        penalty = {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": settings.target_l0}
        said = f"quadratic penalty around L0 {settings.target_l0:.1f}"
    config = JumpReLUTrainingSAEConfig(l0_warm_up_steps=settings.penalty_steps, **penalty, **_sizes(settings))
    sae = JumpReLUTrainingSAE(config)
    return _trained(settings, sae, sae.encode, said)


def _sizes(settings: Settings) -> dict[str, Any]:
    return {"d_in": settings.cache.d_model, "d_sae": settings.n_features, "device": "cpu"}


def _above_threshold(sae: Any) -> Callable[[Tensor], Tensor]:
    """Activations as in the JumpReLU SAE as which it saves a BatchTopK SAE."""

    def encode(x: Tensor) -> Tensor:
        pre: Tensor = sae.encode_with_hidden_pre(x)[1]
        return pre * (pre > sae.topk_threshold)

    return encode


def _trained(settings: Settings, sae: Any, encode: Callable[[Tensor], Tensor], said: str) -> Trained:
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    training = settings.training
    sae.b_dec.data.copy_(settings.mean)
    trainer: Any = SAETrainer(
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
        acts = encode(x)
        return sae.decode(acts), firings(acts)

    return Trained(step, reconstruct, f"sae-lens {version('sae-lens')}: Adam, cosine, gradient clipping, {said}")
