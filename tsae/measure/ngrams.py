"""Residuals of common n-grams against the unigram residual of their last token (C12).

The similarity shows how much of a token's own residual is left as its context grows.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tsae.measure.intervals import median
from tsae.measure.measurement import Measurement
from tsae.residuals.ngrams import NgramResiduals

METRICS = {
    "ngram_{other}_cosine{how}": "median cosine similarity of the residual of a common n-gram of `at` tokens to {other}, {how} (C12)",
}
METRIC_WORDS = {
    "other": {
        "unigram": "the unigram residual of its last token",
        "other": "the unigram residual of another common token at random, the floor",
    },
    "how": {"": "as they are", "_centred": "each less its mean over the n-grams of that length"},
}


def measure_ngrams(ngrams: NgramResiduals, unigram_table: Tensor, seed: int) -> list[Measurement]:
    """Median cosine similarity of an n-gram's residual to its last token's unigram residual, by length `at` (C12).

    `ngram_other_cosine`, the floor, takes the unigram residual of another common token at random. The suffix `_centred`
    subtracts from both residuals their means over the n-grams of that length: the shared mean alone gives a high cosine
    similarity.

    Args:
        ngrams: of the layer.
        unigram_table: (V, d) unigram residuals.
        seed: seed of the other tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length, ids in ngrams.ids.items():
        x, own = ngrams.residuals[length][: ngrams.per_length], ids[: ngrams.per_length, -1]
        drawn = torch.randint(len(ngrams.unigrams), own.shape, generator=generator)
        same = ngrams.unigrams[drawn] == own
        other = ngrams.unigrams[(drawn + same) % len(ngrams.unigrams)]
        for name, tokens in (("unigram", own), ("other", other)):
            u = unigram_table[tokens]
            for suffix, cosines in (
                ("", cosine_similarity(x, u, dim=1)),
                ("_centred", cosine_similarity(x - x.mean(0), u - u.mean(0), dim=1)),
            ):
                measured = median(f"ngram_{name}_cosine{suffix}", cosines, over="n-grams")
                rows.append(replace(measured, at=float(length)))
    return rows
