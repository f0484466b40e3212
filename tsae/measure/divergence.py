"""The distance of the model's predictions with an SAE's reconstructions from those with the residuals as they are."""

import torch
from torch import Tensor

from tsae.measure.sequences import Sequences
from tsae.measure.sums import DocumentSums
from tsae.model.language_model import LanguageModel

METRICS = {
    "logit_kl": "mean of KL(p || p_hat) over predictions, the distributions of the next token with x and with x_hat "
    "in place of x [nats]",
}
PART = 64  # predictions whose distributions are in memory together


def divergences(clean: Tensor, patched: Tensor) -> Tensor:
    """KL(p || p_hat) (n,) float32 [nats] of predictions with logits (n, V), a part of them at a time."""
    parts = []
    for logits in zip(clean.split(PART), patched.split(PART), strict=True):
        log_p, log_p_hat = (of.float().log_softmax(-1) for of in logits)
        parts.append((log_p.exp() * (log_p - log_p_hat)).sum(-1))
    return torch.cat(parts)


def measure_divergence(
    patched: Tensor, model: LanguageModel, sequences: Sequences, layer: int, sums: DocumentSums
) -> None:
    """Sum the divergence over the predictions made from kept tokens. The model runs on one sequence at a time.

    Args:
        patched: (n, n_ctx, V) logits of the first n of the sequences, with reconstructions in place; on the model's device.
        model: the language model.
        sequences: held-out sequences.
        layer: the SAE's.
        sums: where the sums go.
    """
    for logits, residuals, tokens, kept, documents in zip(
        patched, *(part[: len(patched)] for part in sequences), strict=True
    ):
        scored = kept[:-1]
        if not scored.any():
            continue
        chosen = scored.nonzero().flatten().to(model.device)
        clean = model.logits_from(residuals[None].float(), layer, tokens[None])[0, chosen]
        sums.add("logit_kl", divergences(clean, logits[chosen]), 1, documents[:-1][scored])
