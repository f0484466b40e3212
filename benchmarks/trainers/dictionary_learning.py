"""SAEs as dictionary_learning trains them, on its own schedule: warmup, constant learning rate, linear decay to zero."""

from importlib.metadata import version
from typing import Any

from torch import Tensor

from trainers.settings import Settings, Trained, firings

# Shares of its steps at which the learning rate is reached, and begins to fall. By default a BatchTopK SAE estimates its threshold
# from step 1000 on, later than the end of a short training; here, while the learning rate falls.
WARMUP, DECAY = 0.02, 0.8


def topk(settings: Settings) -> Trained:
    """`TopKTrainer`; its loss has an auxiliary part, so this is its AuxK too."""
    from dictionary_learning.trainers.top_k import TopKTrainer

    return _trained(settings, TopKTrainer(k=settings.k, seed=settings.seed, **_arguments(settings)), "AuxK")


def batchtopk(settings: Settings) -> Trained:
    """`BatchTopKTrainer`."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer

    return _trained(settings, BatchTopKTrainer(**_of_batches(settings)), "AuxK")


def matryoshka(settings: Settings) -> Trained:
    """`MatryoshkaBatchTopKTrainer`, with groups that end at our nested widths."""
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer

    ends = settings.widths
    groups = [(end - start) / settings.n_features for start, end in zip([0, *ends], ends, strict=False)]
    return _trained(settings, MatryoshkaBatchTopKTrainer(group_fractions=groups, **_of_batches(settings)), "AuxK")


def jumprelu(settings: Settings) -> Trained:
    """`JumpReluTrainer`, whose penalty is around our L0.

    Its threshold and bandwidth are for residuals of length 1 (its `normalize_activations`).
    """
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer

    trainer = JumpReluTrainer(
        target_l0=settings.target_l0, sparsity_warmup_steps=settings.penalty_steps, **_arguments(settings)
    )
    said = f"residuals of length 1, quadratic penalty around L0 {settings.target_l0:.1f}"
    return _trained(settings, trainer, said, length=settings.cache.d_model**0.5)


def _arguments(settings: Settings) -> dict[str, Any]:
    return {
        "steps": settings.n_steps,
        "activation_dim": settings.cache.d_model,
        "dict_size": settings.n_features,
        "layer": settings.cache.layer,
        "lm_name": "none",
        "lr": settings.training.lr,
        "warmup_steps": round(WARMUP * settings.n_steps),
        "decay_start": round(DECAY * settings.n_steps),
        "device": "cpu",
    }


def _of_batches(settings: Settings) -> dict[str, Any]:
    arguments = _arguments(settings)
    own = {"k": settings.k, "seed": settings.seed, "threshold_start_step": arguments["decay_start"]}
    return arguments | own


def _trained(settings: Settings, trainer: Any, said: str, length: float = 1.0) -> Trained:
    """Its training on residuals divided by `length`."""
    trainer.dead_feature_threshold = settings.dead_window
    steps = iter(range(settings.n_steps))

    def reconstruct(x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x_hat, acts = trainer.ae(x / length, output_features=True)
        return length * x_hat, firings(acts)

    path = (
        f"dictionary-learning {version('dictionary-learning')}: Adam, its own schedule, decoder rows of length 1, "
        f"gradient clipping, {said}"
    )
    return Trained(lambda batch: trainer.update(next(steps), batch.residuals / length), reconstruct, path)
