"""The loss of a model that continues from given residuals."""

import torch.nn.functional as F
from torch import Tensor

from tsae.model.language_model import LanguageModel


def next_token_losses(model: LanguageModel, residuals: Tensor, tokens: Tensor, layer: int) -> Tensor:
    """Cross-entropy of every next token when the model continues from these residuals.

    Args:
        model: the language model.
        residuals: (batch, pos, d) float32, entering block `layer`.
        tokens: (batch, pos) int64, on the model's device.
        layer: the block to start from.

    Returns:
        (batch, pos - 1) [nats], on the model's device.
    """
    logits = model.logits_from(residuals, layer, tokens)[:, :-1].flatten(0, 1)
    return F.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="none").view(len(tokens), -1)
