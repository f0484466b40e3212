"""SAEs as this project trains them."""

from typing import Any

import torch
from torch import Tensor

from trainers.settings import Settings, Trained
from tsae.profile.point import Point
from tsae.sae.sae import SAE
from tsae.training.start import start_from
from tsae.training.trainer import Trainer


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
        fired = torch.bincount(active.features[active.values > 0], minlength=settings.n_features)
        return sae.decode_active(active, sae.token_biases(tokens)), fired

    path = f"tsae, {point.id}: fused Adam, cosine{'' if training.clip_norm is None else ', gradient clipping'}"
    return Trained(Trainer(sae, training).step, reconstruct, path)
