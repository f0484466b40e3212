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
    return losses_of(model.logits_from(residuals, layer, tokens), tokens)


def losses_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy of every next token.

    Args:
        logits: (batch, pos, V).
        tokens: (batch, pos) int64, on the same device.

    Returns:
        (batch, pos - 1) [nats].
    """
    predicted = logits[:, :-1].flatten(0, 1)
    return F.cross_entropy(predicted, tokens[:, 1:].flatten(), reduction="none").view(len(tokens), -1)
