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
    x_hat: Tensor, model: LanguageModel, sequences: Sequences, layer: int, n_sequences: int, sums: DocumentSums
) -> None:
    """Sum the divergence over the predictions made from kept tokens of the first sequences, one sequence at a time.

    Args:
        x_hat: (N, d) float32, reconstructions of the kept tokens of all sequences, in their order.
        model: the language model.
        sequences: held-out sequences.
        layer: the SAE's.
        n_sequences: how many of the sequences count; 0: nothing is measured.
        sums: where the sums go.
    """
    done = 0
    for residuals, tokens, kept, documents in zip(*(part[:n_sequences] for part in sequences), strict=True):
        n = int(kept.sum())
        clean = residuals.to(torch.float32)
        patched = clean.clone()
        patched[kept] = x_hat[done : done + n]
        done += n
        scored = kept[:-1]
        if not scored.any():
            continue
        chosen = scored.nonzero().flatten().to(model.device)
        logits = (model.logits_from(x[None], layer, tokens[None])[0, chosen] for x in (clean, patched))
        sums.add("logit_kl", divergences(*logits), 1, documents[:-1][scored])
