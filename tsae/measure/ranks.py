"""Rows of a table as features: the rank of a token's own row by its product with the residual.

The pre-activation of token v is x . table[v], a similarity that also depends on the length of the row and on its part
along the mean residual. The authors read token-biases so, relative to unigram residuals, whose products are reported
too. Last-token detection (C9) uses the cosine similarity instead.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tsae.compute.products import product
from tsae.measure.intervals import median
from tsae.measure.measurement import Measurement
from tsae.measure.sums import DocumentSums
from tsae.profile.evaluation import Evaluation

if TYPE_CHECKING:
    from tsae.measure.sequences import Sequences

PART = 4  # a quarter of the tokens sampled for detection is enough for a median
ROWS = 256  # tokens per product, which bounds the memory
METRICS = {
    "{rows}_feature_rank{input}": "median rank of a token's own {rows} among the products of {input} with all of them, 1 for the largest",
    "{rows}_feature_first{input}": "share of tokens whose own {rows} has the largest product with {input}",
    "token_bias_score_fvu": "share of the variance of x . W_lookup[t] that the best line in x . unigram residual of t leaves",
}
METRIC_WORDS = {
    "rows": {"token_bias": "token-bias", "unigram": "unigram residual"},
    "input": {"": "its residual", "_centred": "its residual less the mean training residual"},
}


def measure_ranks(
    name: str, table: Tensor, mean: Tensor, sequences: "Sequences", settings: Evaluation, sums: DocumentSums
) -> list[Measurement]:
    """Rank of a held-out token's own row among the products of its residual with all rows, 1 for the largest.

    `{name}_feature_rank` is the median rank, and `{name}_feature_first`, which goes to the sums, the share of tokens at
    rank 1. The suffix `_centred` subtracts the mean training residual, as an encoder does.

    Args:
        name: of the rows, token_bias or unigram.
        table: (V, d), a row per token.
        mean: (d,) mean training residual.
        sequences: held-out sequences.
        settings: a quarter of its `detection_tokens` are sampled, with its seed.
        sums: where the sums go.
    """
    places = sequences.kept.flatten().nonzero().flatten()
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(settings.seed))
    sample = places[order[: max(1, settings.detection_tokens // PART)]]
    own = sequences.tokens.flatten()[sample]
    ranks: dict[str, list[Tensor]] = {"": [], "_centred": []}
    along_mean = table @ mean.to(table.device)
    for chosen, tokens in zip(sample.split(ROWS), own.to(table.device).split(ROWS), strict=True):
        x = sequences.residuals.flatten(0, 1)[chosen].to(table.device).float()
        scores = product(x, table)
        for suffix in ranks:
            if suffix:
                scores -= along_mean
            ranks[suffix].append((scores > scores.gather(1, tokens[:, None])).sum(1).cpu() + 1)
    rows = []
    for suffix, parts in ranks.items():
        rank = torch.cat(parts)
        rows.append(median(f"{name}_feature_rank{suffix}", rank.double()))
        sums.add(f"{name}_feature_first{suffix}", rank == 1, 1, sequences.documents.flatten()[sample])
    return rows


def measure_relative_scores(table: Tensor, unigrams: Tensor, sequences: "Sequences", sums: DocumentSums) -> None:
    """Sum the variance of token-bias scores that scores of unigram residuals leave unexplained.

    `token_bias_score_fvu` is the share of the variance of x . W_lookup[t] over held-out tokens that the best line in x
    . u_t leaves. Near zero, the two scores say the same.
    """
    x, tokens = sequences.residuals[sequences.kept].float(), sequences.tokens[sequences.kept]
    biases, own = ((x * rows.cpu()[tokens]).sum(1, dtype=torch.float64) for rows in (table, unigrams))
    deviation, own_deviation = biases - biases.mean(), own - own.mean()
    slope = (deviation * own_deviation).sum() / own_deviation.square().sum()
    left = (deviation - slope * own_deviation).square()
    sums.add("token_bias_score_fvu", left, deviation.square(), sequences.documents[sequences.kept])
