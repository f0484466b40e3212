"""Firings on the encoder's input, and on the input with directions removed."""

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
# Removals and their controls, in the order of `without_unigrams`.
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
    """Encoders of centred inputs (N, d): that of the SAE, and one of as many random directions."""
    directions = torch.randn(sae.W_enc.shape, generator=torch.Generator().manual_seed(seed))
    directions /= directions.norm(dim=1, keepdim=True)

    def trained(inputs: Tensor) -> Active:
        return sae.active_of(inputs + mean)

    def untrained(inputs: Tensor) -> Active:
        return sae.activation(inputs, directions, torch.zeros_like(sae.b_enc))

    return trained, untrained


def fired(encode: Encode, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Token, feature and activation of every firing on inputs (N, d)."""
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
    """Vectors less their part in the span of others.

    Args:
        inputs: (..., d).
        rows: (..., r, d), broadcast; they may be linearly dependent or zero.

    Returns:
        (..., d) float32; computed in float64, since unigram residuals are alike.
    """
    directions, column = normalize(rows.double(), dim=-1), inputs.double().unsqueeze(-1)
    gram = directions @ directions.mT
    along = torch.linalg.pinv(gram, hermitian=True, rtol=1e-10) @ (directions @ column)
    return (column - directions.mT @ along).squeeze(-1).float()


def without_unigrams(inputs: Tensor, own: Tensor, other: Tensor, mean: Tensor) -> dict[str, Tensor]:
    """Encoder inputs of a phrase's tokens with unigram directions removed.

    A token's unigram direction is that of its unigram residual less the mean one, since the encoder's input is centred.

    Args:
        inputs: (m, n, d), n tokens in each of m occurrences, less their mean.
        own: (n, d) unigram residuals of the phrase's tokens.
        other: (m, n, d) those of other tokens, for the controls.
        mean: (d,) mean unigram residual.

    Returns:
        (m, n, d) each, as `METRIC_WORDS` describes them, in the order of `REMOVALS`.
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
    """For each token of each occurrence (m, n) a token from a pool that is not in the phrase.

    The pool is the tokens of all phrases. Random tokens of the vocabulary would mostly be rare, with directions that an
    encoder has little reason to read.

    Raises:
        ValueError: the pool has no other token.
    """
    others = np.setdiff1d(pool, tokens)
    if not len(others):
        raise ValueError("no phrase has a token that is not in this one, so there is nothing to compare with")
    weights = np.isin(pool, others)
    return torch.from_numpy(np.asarray(pool)[weights][rng.integers(weights.sum(), size=(n_occurrences, len(tokens)))])
