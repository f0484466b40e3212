"""Geometry of tables: rows against unigram residuals, one another, and the neighbours in other tables (C7, C8).

Residuals share a large mean, so any two rows of a table have a high cosine similarity. Centred similarities subtract
the mean over the tokens compared, and are about zero for rows that share nothing but the mean.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from tsae.compute.products import product
from tsae.measure.counts import EDGES, count_bins
from tsae.measure.definitions import THRESHOLDS
from tsae.measure.intervals import Bootstrap, median, share
from tsae.measure.measurement import Measurement
from tsae.profile.evaluation import Evaluation

NEIGHBOURS = 10  # nearest tokens whose overlap is measured
OFTEN = 20  # training occurrences of tokens whose neighbours are compared, which have trained rows
BLOCK = 8  # rows of products
MOST = 8192  # tokens whose rows are centred, and compared with others: more would not move a median
FEWEST = 10  # tokens that centring needs: a mean of fewer depends too much on each
METRICS = {
    "{pair}_cosine": "median cosine similarity of {pair}",
    "{pair}_cosine_centred": "median cosine similarity of {pair}, each less the mean of its table over the tokens compared",
    "{pair}_cosine_by_count": "median cosine similarity of {pair}, over the tokens of one bin of training counts",
    "{pair}_cosine_centred_by_count": "median cosine similarity of {pair}, centred likewise, over the tokens of one bin of training counts",
    "{biases}_cosine_share": "share of token-biases with a cosine similarity of `at` or more to {biases}",
    "neighbour_overlap_{tables}": "mean share of a token's 10 nearest tokens that are the same by {tables} (C7)",
    "{rows}_same_word": "share of tokens whose nearest {rows} is that of the same word, but for a leading space or case",
}
METRIC_WORDS = {
    "pair": {
        "token_bias_unigram": "a token-bias and its own unigram residual (C8)",
        "token_bias_neighbour": "a token-bias and the most similar other one (C7)",
        "token_bias_other": "a token-bias and the unigram residual of another token at random, the floor of C8",
        "unigram_neighbour": "a unigram residual and the most similar other one, which C7 is compared with",
    },
    "biases": {
        "token_bias_unigram": "their own unigram residual",
        "token_bias_neighbour": "the most similar other one",
        "token_bias_other": "the unigram residual of another token at random",
    },
    "tables": {
        "embedding_unigram": "the model's embedding and by unigram residuals",
        "embedding_token_bias": "the model's embedding and by token-biases",
        "unigram_token_bias": "unigram residuals and by token-biases",
    },
    "rows": {
        "embedding": "row of the model's embedding",
        "unigram": "unigram residual",
        "token_bias": "token-bias",
    },
}


def measure_table(table: Tensor, unigrams: Tensor, counts: Tensor, settings: Evaluation) -> list[Measurement]:
    """Geometry of the token-biases over tokens seen in training at least `min_count` times, and in bins of their count.

    `token_bias_unigram_cosine` is the median cosine similarity of a token-bias to its own unigram residual (C8),
    `token_bias_neighbour_cosine` to the most similar other token-bias, on a sample of rows against all (C7), and
    `token_bias_other_cosine`, the floor of both, to the unigram residual of another token at random. The suffix
    `_centred` subtracts the mean, `_by_count` is over the tokens of the bin with lower edge `at`, and `_share` is the
    share of rows at or above each threshold.

    Args:
        table: (V, d) token-biases.
        unigrams: (V, d) unigram residuals.
        counts: (V,) int64, training occurrences of each token.
        settings: the `min_counts`, the number of queries, the bootstrap and the seed.
    """
    unigrams = unigrams.to(table.device)
    own_cosine = cosine_similarity(table, unigrams, dim=1)
    squares = table.square().sum(1)
    generator = torch.Generator().manual_seed(settings.seed)
    rows = []
    for at, min_count, tokens, n_queries in _groups(counts.to(table.device), squares > 0, settings):
        shuffled = tokens[torch.randperm(len(tokens), generator=generator).to(tokens.device)]
        centre = table[tokens].mean(0)
        neighbour, neighbour_centred = nearest_other(table, squares, shuffled[:n_queries], centre)
        biases, own = table[shuffled[:MOST]], unigrams[shuffled[:MOST]]
        centred, own_centred = biases - centre, own - unigrams[tokens].mean(0)
        for metric, cosines, cosines_centred in (
            (
                "token_bias_unigram_cosine",
                own_cosine[tokens],
                cosine_similarity(centred, own_centred, dim=1),
            ),
            ("token_bias_neighbour_cosine", neighbour, neighbour_centred),
            (
                "token_bias_other_cosine",
                cosine_similarity(biases, own.roll(1, 0), dim=1),
                cosine_similarity(centred, own_centred.roll(1, 0), dim=1),
            ),
        ):
            rows += _medians(metric, cosines, cosines_centred, at, min_count)
            if at is None:
                rows += [
                    share(
                        f"{metric}_share", cosines >= edge, settings.bootstrap, settings.seed, edge, min_count, "tokens"
                    )
                    for edge in THRESHOLDS
                ]
    return rows


def measure_neighbours(unigrams: Tensor, counts: Tensor, settings: Evaluation) -> list[Measurement]:
    """Median cosine similarity of a unigram residual (V, d), where token-biases start, to the nearest other one (C7).

    `unigram_neighbour_cosine`, with `_centred` and `_by_count` as in `measure_table`, on the same tokens.
    """
    squares = unigrams.square().sum(1)
    generator = torch.Generator().manual_seed(settings.seed)
    rows = []
    for at, min_count, tokens, n_queries in _groups(counts, squares > 0, settings):
        shuffled = tokens[torch.randperm(len(tokens), generator=generator)]
        found = nearest_other(unigrams, squares, shuffled[:n_queries], unigrams[tokens].mean(0))
        rows += _medians("unigram_neighbour_cosine", *found, at, min_count)
    return rows


def _groups(
    counts: Tensor, usable: Tensor, settings: Evaluation
) -> Iterator[tuple[float | None, int | None, Tensor, int]]:
    """`at`, `min_count`, tokens and number of queries, for tokens seen often enough and for the tokens of each bin.

    Rows of zeros, of tokens never seen where the table starts at zero, have no direction: they are not usable (V,).
    """
    for min_count in settings.min_counts:
        tokens = ((counts >= min_count) & usable).nonzero().flatten()
        if len(tokens) > 1:
            yield None, min_count, tokens, settings.similarity_rows
    bins = count_bins(counts)
    for edge in EDGES:
        tokens = ((bins == edge) & usable).nonzero().flatten()
        if len(tokens) > 1:
            yield float(edge), None, tokens, max(2, settings.similarity_rows // len(EDGES))


def _medians(
    metric: str, cosines: Tensor, centred: Tensor, at: float | None, min_count: int | None
) -> list[Measurement]:
    suffix = "" if at is None else "_by_count"
    rows = [median(f"{metric}{suffix}", cosines, min_count)]
    if len(centred) >= FEWEST:
        rows.append(median(f"{metric}_centred{suffix}", centred, min_count))
    return [replace(row, at=at) for row in rows]


def nearest_other(table: Tensor, squares: Tensor, queries: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine similarity of some rows to the most similar other row, raw and centred; one product serves both.

    Args:
        table: (V, d); rows of zeros and rows at the centre are nobody's neighbours.
        squares: (V,) squared norms of its rows.
        queries: (Q,) int64, the rows.
        centre: (d,), subtracted from every row for the centred similarity.

    Returns:
        (Q,) and (Q,) similarities.
    """
    # (x - c)(y - c) = xy - xc - yc + cc
    along, square = table @ centre, centre.square().sum()
    squares_centred = squares - 2 * along + square
    inverse, inverse_centred = (torch.where(of > 0, of.rsqrt(), torch.nan) for of in (squares, squares_centred))
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    # A few rows at a time stay in the cache.
    for products, chosen in zip(product(table[queries], table).split(BLOCK), queries.split(BLOCK), strict=True):
        products[torch.arange(len(chosen), device=chosen.device), chosen] = torch.nan
        crossed = products - along
        crossed += square - along[chosen, None]
        for values, inverses, best in ((products, inverse, found[0]), (crossed, inverse_centred, found[1])):
            values *= inverses
            best.append(values.nan_to_num_(nan=-torch.inf).max(1).values * inverses[chosen])
    return torch.cat(found[0]), torch.cat(found[1])


def neighbours(table: Tensor, tokens: Tensor, queries: Tensor, k: int) -> Tensor:
    """The k other tokens of `tokens` (n,) whose rows are most similar to the row of each query (Q,): (Q, k) int64."""
    similar = product(normalize(table[queries].float(), dim=1), normalize(table[tokens].float(), dim=1))
    similar[queries[:, None] == tokens] = -torch.inf
    return tokens[similar.topk(k, dim=1).indices]


def measure_inheritance(
    name: str,
    table: Tensor,
    others: Mapping[str, Tensor],
    spelling: Tensor,
    counts: Tensor,
    settings: Evaluation,
) -> list[Measurement]:
    """Whether a token has the same neighbours in a table as in others, and whether its nearest is the same word (C7).

    Neighbours are by cosine similarity, among tokens seen in training at least 20 times, for a sample of these tokens.
    `neighbour_overlap_{other}_{name}` is the mean share of the 10 nearest tokens that two tables have in common.
    `{name}_same_word` is how often the nearest token differs only by a leading space or by case, over tokens with such
    a variant.

    Args:
        name: of the table.
        table: (V, d) a row per token.
        others: by name, (V, e) a row per token.
        spelling: (V,) int64, equal for tokens that differ only by a leading space or by case.
        counts: (V,) training occurrences of each token.
        settings: size of the sample, the bootstrap and the seed.
    """
    often = (counts >= OFTEN).nonzero().flatten()
    if len(often) <= NEIGHBOURS:
        return []
    order = torch.randperm(len(often), generator=torch.Generator().manual_seed(settings.seed))
    queries = often[order[: settings.similarity_rows]]
    near = neighbours(table.cpu(), often, queries, NEIGHBOURS)
    bootstrap = Bootstrap(len(queries), settings.bootstrap, settings.seed)
    rows = []
    for other, other_table in others.items():
        there = neighbours(other_table, often, queries, NEIGHBOURS)
        shared = (near[:, :, None] == there[:, None]).any(2).double().mean(1)
        metric = f"neighbour_overlap_{other}_{name}"
        measured = bootstrap.ratio(metric, shared, torch.ones(len(queries)), len(queries), over="tokens")
        rows.append(replace(measured, min_count=OFTEN))
    has_variant = (spelling[often] == spelling[queries, None]).sum(1) > 1
    if has_variant.any():
        same = (spelling[near[:, 0]] == spelling[queries])[has_variant]
        rows.append(share(f"{name}_same_word", same, settings.bootstrap, settings.seed, min_count=OFTEN, over="tokens"))
    return rows
