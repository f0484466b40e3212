"""Lookups by the last few tokens: what a table alone explains if it sees a context of more than one token.

The suffix of order n of a token is the token itself and the n - 1 before it in its sequence. Its row is the mean training
residual of its occurrences, shrunk towards the row of the suffix of order n - 1:

    row_n(suffix) = (count * mean(suffix) + lambda_n * row_{n-1}(shorter suffix)) / (count + lambda_n)

Row 0 is the mean residual. `conditional_means.shrink` has a lambda from the variances within and between tokens, by moments
that suppose another source of the row that it shrinks towards. The row of a shorter suffix holds the same residuals, so
here lambda_n minimises what those moments stand for, the squared error of the training residuals, each predicted with its
own occurrence left out of all orders.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tsae.measure.measurement import Measurement
from tsae.measure.sequences import Sequences
from tsae.measure.sums import DocumentSums
from tsae.residuals.read import Shard
from tsae.residuals.shrinkage import best_shrinkage
from tsae.sae.bigrams import places_of
from tsae.sae.reconstruction import reconstruction_errors

METRICS = {
    "table_fvu_by_order": "FVU of a lookup by the last `at` tokens, each row shrunk towards that of one token fewer",
    "table_order_shrinkage": "occurrences that the row of one token fewer counts as in `table_fvu_by_order`, fitted in training",
}
ORDERS = 4


class Suffixes(NamedTuple):
    """The U suffixes of one order that end at kept held-out tokens."""

    keys: Tensor
    """(U,) int64, ascending: index of the suffix of one token fewer * vocabulary + the token before it."""
    parents: Tensor
    """(U,) int64, index of the suffix of one token fewer; 0 in order 1."""
    ids: Tensor
    """(n_seq, n_ctx) int64, index of the suffix that ends at each held-out token; -1 where there is none."""


class SuffixRows:
    """Sums of training residuals by suffix, and the rows that follow from them.

    BOS is a token like any other of the context: the first token of a sequence has the suffix of order 2 that starts with
    BOS. No suffix goes past BOS, so tokens near it keep the row of their longest suffix in higher orders. A token that is
    not kept counts as context alone.
    """

    def __init__(self, sequences: Sequences, mean: Tensor, vocab_size: int):
        """Find the suffixes of held-out text.

        Args:
            sequences: held-out sequences.
            mean: (d,) about the mean training residual, from which sums are taken.
            vocab_size: tokens that the model knows.
        """
        self._vocab_size, self._mean, self._d = vocab_size, mean, len(mean)
        self.orders: list[Suffixes] = []
        ids = torch.where(sequences.kept, 0, -1)
        for order in range(1, ORDERS + 1):
            keys = self._keys(ids, sequences.tokens, order)
            known = keys[keys >= 0].unique()
            ids = places_of(keys, known)
            self.orders.append(Suffixes(known, known // vocab_size, ids))
        # Of order 0 there is one, of all tokens.
        sizes = [1, *(len(suffixes.keys) for suffixes in self.orders)]
        self._sums = [torch.zeros(size, self._d) for size in sizes]
        self._squares = [torch.zeros(size, dtype=torch.float64) for size in sizes]
        self._counts = [torch.zeros(size, dtype=torch.int64) for size in sizes]

    def add(self, shard: Shard, n_ctx: int) -> None:
        """Add the kept residuals of a training shard, whose sequences have `n_ctx` tokens."""
        x = shard.residuals[shard.kept].float() - self._mean
        squares = x.double().square().sum(1)
        tokens = shard.tokens.long().view(-1, n_ctx)
        ids = torch.where(shard.kept, 0, -1).view_as(tokens)
        for order in range(ORDERS + 1):
            if order:
                ids = places_of(self._keys(ids, tokens, order), self.orders[order - 1].keys)
            places = ids.flatten()[shard.kept]
            seen = places >= 0
            places = places[seen]
            self._sums[order].index_add_(0, places, x[seen])
            self._squares[order].index_add_(0, places, squares[seen])
            self._counts[order] += places.bincount(minlength=len(self._counts[order]))

    def rows(self) -> Iterator[tuple[float, Tensor]]:
        """The shrinkage lambda and the rows (U, d) of each order from 1.

        Raises:
            ValueError: fewer than two residuals were added.
        """
        n = int(self._counts[0])
        if n < 2:
            raise ValueError(f"{n} kept training tokens, and a lookup needs two or more")
        rows = self._sums[0] / n
        # Without an occurrence x of the suffix its row would be others - share * x.
        others, share = self._sums[0] / (n - 1), torch.tensor([1 / (n - 1)], dtype=torch.float64)
        for order, suffixes in enumerate(self.orders, start=1):
            sums, counts = self._sums[order], self._counts[order].double()
            prior, prior_share = others[suffixes.parents], share[suffixes.parents]
            shrinkage = best_shrinkage(sums, self._squares[order], counts, prior, prior_share)
            # Unseen suffixes have no occurrence to leave out, nor have the longer ones that read their row.
            fewer = (counts - 1).clamp(min=0) + shrinkage
            others = ((sums + shrinkage * prior) / fewer[:, None]).float()
            share = (1 + shrinkage * prior_share) / fewer
            rows = ((sums + shrinkage * rows[suffixes.parents]) / (counts + shrinkage)[:, None]).float()
            yield shrinkage, rows + self._mean

    def _keys(self, ids: Tensor, tokens: Tensor, order: int) -> Tensor:
        """Keys (n_seq, n_ctx) of suffixes from the indices `ids` of those of one token fewer; -1 where there is none."""
        before = order - 1
        keys = torch.full_like(ids, -1)
        shorter = ids[:, before:]
        longer = shorter * self._vocab_size + tokens[:, : tokens.shape[1] - before]
        keys[:, before:] = torch.where(shorter >= 0, longer, -1)
        return keys


def table_fvu_by_order(sequences: Sequences, found: SuffixRows, sums: DocumentSums) -> list[Measurement]:
    """Sum the FVU of the lookups at kept held-out tokens, and return their shrinkage; `at` is the order.

    Args:
        sequences: the held-out sequences that the suffixes are of.
        found: with all training residuals added.
        sums: where the sums go.
    """
    kept = sequences.kept
    x, documents = sequences.residuals[kept].float(), sequences.documents[kept]
    x_hat = torch.empty_like(x)
    shrinkages = []
    for order, (shrinkage, rows) in enumerate(found.rows(), start=1):
        ids = found.orders[order - 1].ids[kept]
        there = ids >= 0
        x_hat[there] = rows[ids[there]]
        errors = reconstruction_errors(x, x_hat)
        at = float(order)
        sums.add("table_fvu_by_order", errors.squared_error, errors.squared_deviation, documents, at=at)
        shrinkages.append(Measurement("table_order_shrinkage", shrinkage, at=at))
    return shrinkages
