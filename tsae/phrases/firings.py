"""What fires on what an encoder sees, and on that with directions taken out of it."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tsae.sae.architectures.base import Active
from tsae.sae.sae import SAE

Encode = Callable[[Tensor], Active]
METRICS = {
    "phrase_firings_{removal}": "share of the firings of phrases' best features on their phrases that are lost {removal}",
}
# What is taken out of the encoder's input, and what is done to it as a control, in the order of `without_unigrams`.
METRIC_WORDS = {
    "removal": {
        "lost": "when the encoder's input loses its part along the token's unigram direction",
        "lost_control": "when the encoder's input loses its part along another token's unigram direction",
        "lost_matched": "when the encoder's input moves as far along another token's unigram direction",
        "lost_raw": "when the encoder's input loses its part along the token's unigram residual, which is not centred",
        "lost_raw_control": "when the encoder's input loses its part along another token's unigram residual, which is not centred",
        "lost_span": "when the encoder's input loses its part in the span of the unigram directions of the phrase's tokens",
        "lost_span_control": "when the encoder's input loses its part in the span of as many other tokens' unigram directions",
    },
}
REMOVALS = tuple(METRIC_WORDS["removal"])


def encoders(sae: SAE, mean: Tensor, seed: int) -> tuple[Encode, Encode]:
    """The active features of what the encoder sees less its mean (N, d): those of the SAE, and of random directions."""
    directions = torch.randn(sae.W_enc.shape, generator=torch.Generator().manual_seed(seed))
    directions /= directions.norm(dim=1, keepdim=True)

    def trained(inputs: Tensor) -> Active:
        return sae.active_of(inputs + mean)

    def untrained(inputs: Tensor) -> Active:
        return sae.activation(inputs, directions, torch.zeros_like(sae.b_enc))

    return trained, untrained


def fired(encode: Encode, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Token, feature and activation of all that fires on inputs (N, d)."""
    active = encode(inputs)
    on = active.values != 0
    return active.rows[on], active.features[on], active.values[on]


def rates(encode: Encode, inputs: Tensor, n_features: int) -> Tensor:
    """Share of inputs (m, n, d) on which each feature fires, by place (n, F)."""
    m, n, _ = inputs.shape
    rows, features, _ = fired(encode, inputs.flatten(0, 1))
    counts = torch.bincount(rows % n * n_features + features, minlength=n * n_features)
    return counts.view(n, -1).double() / m


def activations(encode: Encode, inputs: Tensor, feature: int) -> Tensor:
    """Activation of one feature: inputs (..., d) give (...)."""
    rows, features, values = fired(encode, inputs.reshape(-1, inputs.shape[-1]))
    found = values.new_zeros(inputs.shape[:-1].numel())
    found[rows[features == feature]] = values[features == feature]
    return found.view(inputs.shape[:-1])


def remove_span(inputs: Tensor, rows: Tensor) -> Tensor:
    """Vectors less their part in the span of some others.

    Args:
        inputs: (..., d).
        rows: (..., r, d), what spans; what is linearly dependent or zero counts once or not at all. It broadcasts.

    Returns:
        (..., d) float32; computed in float64, since unigram residuals are alike.
    """
    directions, column = normalize(rows.double(), dim=-1), inputs.double().unsqueeze(-1)
    gram = directions @ directions.mT
    along = torch.linalg.pinv(gram, hermitian=True, rtol=1e-10) @ (directions @ column)
    return (column - directions.mT @ along).squeeze(-1).float()


def without_unigrams(inputs: Tensor, own: Tensor, other: Tensor, mean: Tensor) -> dict[str, Tensor]:
    """What an encoder is given of a phrase's tokens once the unigram directions are taken out of it.

    The encoder's input is centred, and so a token's unigram direction is that of its unigram residual less the mean one: most of
    two unigram residuals is what all have in common.

    Args:
        inputs: (m, n, d), n tokens in each of m occurrences, less their mean.
        own: (n, d) unigram residuals of the phrase's tokens.
        other: (m, n, d) those of other tokens, for the controls.
        mean: (d,) mean unigram residual.

    Returns:
        (m, n, d) each, in the order of `REMOVALS`: without the token's unigram direction; without another token's; moved as far
        as by the first, along the other token's; without the token's unigram residual as it is; without another token's; without
        the span of the unigram directions of all tokens of the phrase; without that of as many others.
    """
    directions, others = normalize(own - mean, dim=-1), normalize(other - mean, dim=-1)
    along = (inputs * directions).sum(-1, keepdim=True)
    removed = (
        remove_span(inputs, directions.unsqueeze(1)),
        remove_span(inputs, others.unsqueeze(2)),
        inputs - along * others,
        remove_span(inputs, own.unsqueeze(1)),
        remove_span(inputs, other.unsqueeze(2)),
        remove_span(inputs, directions),
        remove_span(inputs, others.unsqueeze(1)),
    )
    return dict(zip(REMOVALS, removed, strict=True))


def draw_others(rng: np.random.Generator, tokens: Sequence[int], n_occurrences: int, pool: Sequence[int]) -> Tensor:
    """For each token of each occurrence (m, n) another token, drawn from a pool, one that is not in the phrase.

    The pool is the tokens of all phrases: tokens of the vocabulary at random would mostly be rare ones, whose directions an encoder has
    little reason to read, and so no match for tokens that recur.

    Raises:
        ValueError: the pool has no other token.
    """
    others = np.setdiff1d(pool, tokens)
    if not len(others):
        raise ValueError("no phrase has a token that is not in this one, so there is nothing to compare with")
    weights = np.isin(pool, others)
    return torch.from_numpy(np.asarray(pool)[weights][rng.integers(weights.sum(), size=(n_occurrences, len(tokens)))])
