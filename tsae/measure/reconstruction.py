"""Reconstruction and sparsity on held-out tokens."""

from collections import defaultdict

import torch
from torch import Tensor

from tsae.measure.counts import add_by_count
from tsae.measure.features import Firings, firings_of
from tsae.measure.sequences import Sequences
from tsae.measure.sums import DocumentSums
from tsae.profile.evaluation import Evaluation
from tsae.sae.reconstruction import reconstruction_errors
from tsae.sae.sae import SAE

METRICS = {
    "nmse": "mean over tokens of |x - x_hat|^2 / |x|^2",
    "nmse_by_count": "NMSE of the tokens of one bin of training counts",
    "nmse_original": "the authors' NMSE, with 1e-4 in the denominator",
    "fvu": "sum |x - x_hat|^2 / sum |x - mean x|^2",
    "mse": "mean over tokens and coordinates of (x - x_hat)^2 [squared units of raw residuals]",
    "l0": "mean count of non-zero activations [features per token]",
    "l0_original": "mean count of activations above zero, which is how the authors count [features per token]",
}


def measure_reconstruction(
    sae: SAE,
    sequences: Sequences,
    settings: Evaluation,
    sums: DocumentSums,
    firings: list[Firings] | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """Measure reconstruction and sparsity on kept tokens.

    Args:
        sae: the SAE, speaking raw residuals.
        sequences: held-out sequences.
        settings: how many of them are encoded together.
        sums: where the sums go.
        firings: where the non-zero activations go, in parts, if they are wanted.
        counts: (V,) how often each token was seen in training, if NMSE by count is wanted.

    Returns:
        (F,) int64, how many tokens each feature fired on.
    """
    n_sequences, n_ctx = sequences.tokens.shape
    mean = sequences.residuals[sequences.kept].double().mean(0).to(sae.device)
    parts: dict[str, list[Tensor]] = defaultdict(list)
    fired = torch.zeros(sae.n_features, dtype=torch.int64)
    for chosen in torch.arange(n_sequences).split(settings.batch_sequences):
        kept = sequences.kept[chosen]
        x = sequences.residuals[chosen][kept].to(sae.device).float()
        tokens = sequences.tokens[chosen][kept].to(sae.device)
        active = sae.active(x, tokens)
        errors = reconstruction_errors(x, sae.decode_active(active, sae.token_biases(tokens)), mean)
        rows, nonzero = active.rows, active.values != 0
        fired += torch.bincount(active.features[nonzero], minlength=sae.n_features).cpu()
        for name, values in (
            ("nmse", errors.nmse),
            ("nmse_original", errors.nmse_original),
            ("squared_error", errors.squared_error),
            ("squared_deviation", errors.squared_deviation),
            ("l0", torch.bincount(rows[nonzero], minlength=len(x))),
            ("l0_original", torch.bincount(rows[active.values > 0], minlength=len(x))),
        ):
            parts[name].append(values.cpu())
        if firings is not None:
            firings.append(firings_of(active, (chosen[:, None] * n_ctx + torch.arange(n_ctx))[kept]))
    per_token, documents = {name: torch.cat(parts[name]) for name in parts}, sequences.documents[sequences.kept]
    for name in ("nmse", "nmse_original", "l0", "l0_original"):
        sums.add(name, per_token[name], 1, documents)
    sums.add("fvu", per_token["squared_error"], per_token["squared_deviation"], documents)
    sums.add("mse", per_token["squared_error"], sequences.residuals.shape[-1], documents)
    if counts is not None:
        add_by_count(sums, "nmse_by_count", per_token["nmse"], counts[sequences.tokens[sequences.kept]], documents)
    return fired
