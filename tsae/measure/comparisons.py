"""Comparisons of an SAE with unigram residuals, conditional means, n-grams and the embedding."""

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from tsae.measure.controls import compare_with_controls
from tsae.measure.geometry import measure_inheritance, measure_neighbours, measure_table
from tsae.measure.letter_tokens import LetterTokens, load_letter_tokens
from tsae.measure.matches import measure_matches
from tsae.measure.measurement import Measurement
from tsae.measure.ranks import measure_ranks, measure_relative_scores
from tsae.measure.sequences import Sequences
from tsae.measure.similarity import measure_feature_similarity
from tsae.measure.sums import DocumentSums
from tsae.profile.evaluation import Evaluation
from tsae.residuals.conditional_means import ConditionalMeans, load_conditional_means
from tsae.residuals.ngrams import NgramResiduals, load_ngrams, load_spelling
from tsae.residuals.unigrams import load_embedding, load_unigrams
from tsae.sae.sae import SAE


class References(NamedTuple):
    """Files that SAEs are compared with; the first four are of one layer."""

    unigrams: Path
    """Unigram residuals of the layer."""
    conditional_means: Path
    """Mean training residual of every token at the layer."""
    ngrams: Path
    """Residuals of common n-grams at the layer."""
    letter_tokens: Path
    """Tokens that begin with a letter, and the probe on their residuals at the layer."""
    spelling: Path
    """Tokens that differ only by a leading space or by case."""
    embedding: Path
    """The model's embedding."""

    def load(self, sequences: Sequences) -> "Loaded":
        """Read the files.

        Args:
            sequences: held-out sequences, whose tokens probes are tested on.

        Raises:
            ValueError: one is missing, damaged, or holds something else.
        """
        return Loaded(
            load_unigrams(self.unigrams),
            load_conditional_means(self.conditional_means),
            load_ngrams(self.ngrams),
            load_letter_tokens(self.letter_tokens, sequences),
            load_spelling(self.spelling),
            load_embedding(self.embedding),
        )


class Loaded(NamedTuple):
    """Contents of the files."""

    unigrams: Tensor
    """(V, d) unigram residuals."""
    means: ConditionalMeans
    """Mean training residuals."""
    ngrams: NgramResiduals
    """Common n-grams."""
    letter_tokens: LetterTokens | None
    """Tokens that begin with a letter, and the probe on their residuals; None if there are no probes of the first letter."""
    spelling: Tensor
    """(V,) int64, equal for tokens that differ only by a leading space or by case."""
    embedding: Tensor
    """(V, e) the model's embedding."""


def compare_features(
    W_dec: Tensor, alive: Tensor, known: Loaded, counts: Tensor, settings: Evaluation
) -> list[Measurement]:
    """Compare decoder rows with controls (C5), and with common unigrams and bigrams (C11).

    Args:
        W_dec: (F, d) decoder rows.
        alive: (F,) whether they fire on held-out tokens.
        known: contents of the reference files.
        counts: (V,) training occurrences of each token.
        settings: how to evaluate.
    """
    controls = compare_with_controls(W_dec, alive, known.means, counts, settings)
    return [
        *(m for c in controls for m in measure_feature_similarity(c.name, c.similar, c.alive, settings)),
        *measure_matches(W_dec, alive, known.ngrams, known.unigrams, settings),
    ]


def compare_table(
    sae: SAE, known: Loaded, counts: Tensor, sequences: Sequences, settings: Evaluation, sums: DocumentSums
) -> list[Measurement]:
    """Measure the geometry of token-biases (C7, C8), and token-biases as features; nothing without a non-zero table.

    Args:
        sae: the SAE.
        known: contents of the reference files.
        counts: (V,) training occurrences of each token.
        sequences: held-out sequences.
        settings: how to evaluate.
        sums: receives sums over held-out tokens.
    """
    table = sae.token_table
    if table is None or not table.any():
        return []
    measure_relative_scores(table, known.unigrams, sequences, sums)
    others = {"embedding": known.embedding, "unigram": known.unigrams}
    return [
        *measure_table(table, known.unigrams, counts, settings),
        *measure_inheritance("token_bias", table, others, known.spelling, counts, settings),
        *measure_ranks("token_bias", table, known.means.mean, sequences, settings, sums),
    ]


def compare_unigrams(
    known: Loaded, counts: Tensor, sequences: Sequences, settings: Evaluation, sums: DocumentSums
) -> list[Measurement]:
    """Measure unigram residuals, where token-biases start, as `compare_table` measures token-biases."""
    unigrams, spelling = known.unigrams, known.spelling
    return [
        *measure_neighbours(unigrams, counts, settings),
        *measure_inheritance("unigram", unigrams, {"embedding": known.embedding}, spelling, counts, settings),
        *measure_inheritance("embedding", known.embedding, {}, spelling, counts, settings),
        *measure_ranks("unigram", unigrams, known.means.mean, sequences, settings, sums),
    ]
