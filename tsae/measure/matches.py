"""Features whose decoder row matches the residual of a common unigram or bigram (C11).

The authors seem to have counted simple features so: by what they reconstruct, not by what they fire on. A feature
matches a set of residuals if its decoder row has a high cosine similarity to one of them. The authors publish no
threshold, so there is a curve.

    unigram            the residuals of the most frequent tokens alone
    bigram             the residuals of the most frequent bigrams alone, mostly along those of their last tokens
    bigram_remainder   the centred residual of a bigram less its part along the centred unigram residual of its last token:
                       a feature that matches it does not match a unigram

`_centred` subtracts the mean of the set. Residuals share a large mean, which a decoder row need not have: without
centring the mean keeps the similarity below 1 even for a feature of the token alone.
"""

from torch import Tensor
from torch.nn.functional import normalize

from tsae.measure.definitions import THRESHOLDS
from tsae.measure.intervals import share
from tsae.measure.measurement import Measurement
from tsae.measure.nearest import max_cosine_similarity
from tsae.profile.evaluation import Evaluation
from tsae.residuals.ngrams import NgramResiduals

SETS = ("unigram", "unigram_centred", "bigram", "bigram_centred", "bigram_remainder")
METRICS = {
    "features_match_{residuals}{of}": "share of {of} with a cosine similarity of `at` or more to {residuals} (C11)",
}
METRIC_WORDS = {
    "residuals": {
        "unigram": "the residual of a common token",
        "unigram_centred": "the residual of a common token less their mean",
        "bigram": "the residual of a common bigram",
        "bigram_centred": "the residual of a common bigram less their mean",
        "bigram_remainder": "the part of a common bigram's centred residual that is not along its last token's centred unigram residual",
    },
    "of": {"": "features", "_alive": "alive features"},
}


def common_directions(ngrams: NgramResiduals, unigram_table: Tensor) -> dict[str, Tensor]:
    """By name of `SETS`, the residuals (n, d) that features are compared with, without bigrams if none is common."""
    unigrams = unigram_table[ngrams.unigrams]
    found = {"unigram": unigrams, "unigram_centred": unigrams - unigrams.mean(0)}
    if 2 not in ngrams.ids:
        return found
    bigrams, last = ngrams.residuals[2], unigram_table[ngrams.ids[2][:, -1]]
    centred, along = bigrams - bigrams.mean(0), normalize(last - last.mean(0), dim=1)
    remainder = centred - (centred * along).sum(1, keepdim=True) * along
    return found | {"bigram": bigrams, "bigram_centred": centred, "bigram_remainder": remainder}


def measure_matches(
    W_dec: Tensor, alive: Tensor, ngrams: NgramResiduals, unigram_table: Tensor, settings: Evaluation
) -> list[Measurement]:
    """`features_match_{set}`: share of features whose most similar row of a set is at or above each threshold `at`.

    With suffix `_alive`, over the features that fire on held-out tokens.

    Args:
        W_dec: (F, d) decoder rows.
        alive: (F,) whether they fire.
        ngrams: common unigrams and bigrams of the layer.
        unigram_table: (V, d) unigram residuals.
        settings: the bootstrap and its seed.
    """
    rows = []
    for name, directions in common_directions(ngrams, unigram_table).items():
        cosine = max_cosine_similarity(W_dec, directions.to(W_dec.device))[0].cpu()
        for suffix, values in (("", cosine), ("_alive", cosine[alive])):
            rows += [
                share(f"features_match_{name}{suffix}", values >= at, settings.bootstrap, settings.seed, at)
                for at in THRESHOLDS
                if len(values)
            ]
    return rows
