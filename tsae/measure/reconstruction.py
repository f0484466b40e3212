"""Reconstruction and sparsity on held-out tokens."""

from typing import NamedTuple

import torch
from torch import Tensor

from tsae.measure.counts import add_by_count
from tsae.measure.features import Firings, firings_of
from tsae.measure.positions import add_by_position
from tsae.measure.sequences import Sequences
from tsae.measure.sums import DocumentSums
from tsae.profile.evaluation import Evaluation
from tsae.sae.reconstruction import ReconstructionErrors, reconstruction_errors
from tsae.sae.sae import SAE

METRICS = {
    "nmse": "mean over tokens of |x - x_hat|^2 / |x|^2",
    "nmse_by_count": "NMSE of the tokens of one bin of training counts",
    "nmse_by_position": "NMSE of the tokens of one bin of context lengths, without BOS",
    "nmse_by_source": "NMSE of the tokens of one source of the text; `at` is its place in `corpus.sources`, from 0",
    "nmse_original": "the authors' NMSE, with 1e-4 in the denominator",
    "fvu": "sum |x - x_hat|^2 / sum |x - mean x|^2",
    "mse": "mean over tokens and coordinates of (x - x_hat)^2 [squared units of raw residuals]",
    "cosine": "mean over tokens of the cosine similarity of x and x_hat",
    "l2_ratio": "mean over tokens of |x_hat| / |x|",
    "relative_reconstruction_bias": "sum |x_hat|^2 / sum x . x_hat; below 1, longer reconstructions would be better",
    "l0": "mean count of non-zero activations [features per token]",
    "l0_original": "mean count of activations above zero, which is how the authors count [features per token]",
}


class Reconstruction(NamedTuple):
    """What one pass of an SAE over the N kept tokens leaves for all measurements."""

    errors: ReconstructionErrors
    """Errors of the tokens."""
    l0: Tensor
    """(N,) int64, non-zero activations of each token."""
    l0_original: Tensor
    """(N,) int64, activations above zero."""
    fired: Tensor
    """(F,) int64, tokens that each feature fired on."""


def reconstruct(
    sae: SAE,
    sequences: Sequences,
    settings: Evaluation,
    scored: Tensor,
    firings: list[Firings] | None = None,
) -> tuple[Reconstruction, Tensor]:
    """Encode and decode the kept tokens, once for all measurements.

    Args:
        sae: the SAE, speaking raw residuals.
        sequences: held-out sequences.
        settings: how many of them are encoded together.
        scored: (n,) int64, ascending indices of the sequences on which the loss is measured.
        firings: a list to which the non-zero activations are added, in parts.

    Returns:
        What it found, and the reconstructions (n_scored, d) float32 of the kept tokens of the scored sequences.
    """
    n_sequences, n_ctx = sequences.tokens.shape
    mean = sequences.residuals[sequences.kept].double().mean(0).to(sae.device)
    is_scored = torch.isin(torch.arange(n_sequences), scored)
    fired = torch.zeros(sae.n_features, dtype=torch.int64)
    parts = []
    for chosen in torch.arange(n_sequences).split(settings.batch_sequences):
        kept = sequences.kept[chosen]
        x = sequences.residuals[chosen][kept].to(sae.device).float()
        of_table = sae.rows_of(sequences.tokens[chosen])[kept].to(sae.device)
        active = sae.active(x, of_table)
        x_hat = sae.decode_active(active, sae.token_biases(of_table))
        rows, nonzero = active.rows, active.values != 0
        fired += torch.bincount(active.features[nonzero], minlength=sae.n_features).cpu()
        part = (
            *reconstruction_errors(x, x_hat, mean),
            torch.bincount(rows[nonzero], minlength=len(x)),
            torch.bincount(rows[active.values > 0], minlength=len(x)),
            x_hat[is_scored[chosen].repeat_interleave(kept.sum(1)).to(sae.device)],
        )
        parts.append([values.cpu() for values in part])
        if firings is not None:
            firings.append(firings_of(active, (chosen[:, None] * n_ctx + torch.arange(n_ctx))[kept]))
    *errors, l0, l0_original, x_hat = (torch.cat(values) for values in zip(*parts, strict=True))
    return Reconstruction(ReconstructionErrors(*errors), l0, l0_original, fired), x_hat


def measure_reconstruction(found: Reconstruction, sequences: Sequences, sums: DocumentSums) -> None:
    """Sum reconstruction and sparsity over the kept tokens.

    Args:
        found: the pass over the same sequences.
        sequences: held-out sequences.
        sums: where the sums go.
    """
    errors, documents = found.errors, sequences.documents[sequences.kept]
    sums.add("nmse", errors.nmse, 1, documents)
    sums.add("nmse_original", errors.nmse_original, 1, documents)
    sums.add("cosine", errors.cosine, 1, documents)
    sums.add("l2_ratio", errors.l2_ratio, 1, documents)
    sums.add("relative_reconstruction_bias", errors.squared_norm_hat, errors.product, documents)
    sums.add("l0", found.l0, 1, documents)
    sums.add("l0_original", found.l0_original, 1, documents)
    sums.add("fvu", errors.squared_error, errors.squared_deviation, documents)
    sums.add("mse", errors.squared_error, sequences.residuals.shape[-1], documents)


def break_down_nmse(
    found: Reconstruction, sequences: Sequences, counts: Tensor, document_sources: Tensor, sums: DocumentSums
) -> None:
    """Sum NMSE by training count of the token, by its position in the sequence, and by the source of its document.

    Args:
        found: the pass over the same sequences.
        sequences: held-out sequences.
        counts: (V,) how often each token was seen in training.
        document_sources: (n_documents,) the source of each document.
        sums: where the sums go.
    """
    kept, nmse = sequences.kept, found.errors.nmse
    documents, positions = sequences.documents[kept], kept.nonzero()[:, 1]
    add_by_count(sums, "nmse_by_count", nmse, counts[sequences.tokens[kept]], documents)
    add_by_position(sums, "nmse_by_position", nmse, positions, documents)
    sources = document_sources[documents]
    for source in sources.unique().tolist():
        inside = sources == source
        sums.add("nmse_by_source", nmse[inside], 1, documents[inside], at=float(source))
