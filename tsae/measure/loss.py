"""The model's loss with an SAE's reconstructions in place of the residuals."""

from collections.abc import Mapping

import torch
from torch import Tensor
from tqdm import tqdm

from tsae.measure.ablations import ABLATIONS
from tsae.measure.divergence import measure_divergence
from tsae.measure.sequences import Sequences
from tsae.measure.sums import DocumentSums
from tsae.model.language_model import LanguageModel
from tsae.model.losses import losses_of
from tsae.profile.evaluation import Evaluation

METRICS = {
    "ce": "loss of the next token with x_hat in place of x at every kept position [nats]",
    "ce_clean": "loss of the next token with the residuals as they are [nats]",
    "ce_added": "(CE - clean CE) / clean CE",
    "ce_added_nats": "CE - clean CE [nats]",
    "ce_added_original": "the authors' CE added, with 0.001 in the denominator",
    "ce_recovered_zero": "1 - (CE - clean CE) / (CE of the residuals set to zero - clean CE)",
    "ce_recovered_mean": "1 - (CE - clean CE) / (CE of the residuals set to the mean training residual - clean CE)",
}


def patched_losses(
    x_hat: Tensor,
    model: LanguageModel,
    sequences: Sequences,
    layer: int,
    settings: Evaluation,
    divergence: DocumentSums | None = None,
    label: str = "loss",
) -> Tensor:
    """Loss of every prediction (n_seq, n_ctx - 1) float32 [nats] with reconstructions for the residuals of kept tokens.

    Args:
        x_hat: (N, d) float32, reconstructions of the kept tokens, in their order.
        model: the language model.
        sequences: held-out sequences.
        layer: the SAE's.
        settings: how many sequences share a forward pass, and on how many the divergence is measured.
        divergence: where the sums of the divergence go, which is then measured from the same passes.
        label: of the progress bar.
    """
    parts, done, first = [], 0, 0
    progress = tqdm(total=sequences.tokens.numel(), desc=label, unit="tok", unit_scale=True, disable=None)
    for batch in map(Sequences._make, zip(*(part.split(settings.batch_sequences) for part in sequences), strict=True)):
        patched, n = batch.residuals.to(torch.float32, copy=True), int(batch.kept.sum())
        patched[batch.kept] = x_hat[done : done + n]
        tokens = batch.tokens.to(model.device)
        logits = model.logits_from(patched, layer, tokens)
        parts.append(losses_of(logits, tokens).cpu())
        if divergence is not None:
            measure_divergence(logits[: max(settings.kl_sequences - first, 0)], model, batch, layer, divergence)
        done, first = done + n, first + len(tokens)
        progress.update(tokens.numel())
    progress.close()
    return torch.cat(parts)


def measure_loss(losses: Tensor, sequences: Sequences, ablations: Mapping[str, Tensor], sums: DocumentSums) -> None:
    """Sum the model's loss over the predictions made from kept tokens, each with the document of that token.

    Args:
        losses: of `patched_losses`.
        sequences: held-out sequences.
        ablations: the losses of their predictions without an SAE, as of `load_ablations`.
        sums: where the sums go.
    """
    scored = sequences.kept[:, :-1]
    documents = sequences.documents[:, :-1][scored]
    ce, clean, zero, mean = (of[scored].double() for of in (losses, *(ablations[name] for name in ABLATIONS)))
    for metric, numerator, denominator in (
        ("ce", ce, 1.0),
        ("ce_clean", clean, 1.0),
        ("ce_added", ce - clean, clean),
        ("ce_added_original", ce - clean, clean + 0.001),
        ("ce_added_nats", ce - clean, 1.0),
        # 1 - (CE - clean) / (ablated - clean), as one ratio
        ("ce_recovered_zero", zero - ce, zero - clean),
        ("ce_recovered_mean", mean - ce, mean - clean),
    ):
        sums.add(metric, numerator, denominator, documents)
