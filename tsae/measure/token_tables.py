"""Tables alone against residuals: detection of the last token, FVU, and cosine similarity by context length."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tsae.measure.nearest import max_cosine_similarity
from tsae.measure.positions import add_by_position
from tsae.measure.sequences import Sequences
from tsae.measure.sums import DocumentSums
from tsae.profile.evaluation import Evaluation
from tsae.sae.reconstruction import reconstruction_errors

METRICS = {
    "last_token_detection": "share of sequences whose last residual is most similar, by cosine, to the row of its own token (C9)",
    "last_token_detection_any_position": "share of a sample of all kept residuals that are most similar to the row of their own token",
    "table_fvu": "FVU of x_hat = table[t], before any SAE",
    "table_fvu_fitted": "FVU of x_hat = mean + a (table[t] - mean table), with a by least squares over training tokens",
    "table_scale": "the factor a of `table_fvu_fitted`",
    "residual_unigram_cosine": "mean cosine similarity of a residual to its token's unigram residual, by context length `at` (C12)",
    "residual_other_cosine": "the floor of `residual_unigram_cosine`: to the unigram residual of another held-out token at random",
}


def last_token_detection(sequences: Sequences, table: Tensor, settings: Evaluation, sums: DocumentSums) -> None:
    """Sum how often the row most similar to a residual, by cosine similarity, is that of its own token (C9).

    `last_token_detection` is over the last residual of every sequence, `last_token_detection_any_position` over a
    sample of all kept residuals; both leave out tokens of outlying norm.

    Args:
        sequences: held-out sequences.
        table: (V, d), a row per token; NaN rows are never chosen.
        settings: size and seed of the sample.
        sums: where the sums go.
    """
    last = torch.zeros_like(sequences.kept)
    last[:, -1] = True
    places = sequences.kept.flatten().nonzero().flatten()
    generator = torch.Generator().manual_seed(settings.seed)
    sample = places[torch.randperm(len(places), generator=generator)[: settings.detection_tokens]]
    for metric, chosen in (
        ("last_token_detection", (last & sequences.kept).flatten().nonzero().flatten()),
        ("last_token_detection_any_position", sample),
    ):
        queries = sequences.residuals.flatten(0, 1)[chosen].float()
        nearest = max_cosine_similarity(queries.to(table.device), table)[1].cpu()
        hits = nearest == sequences.tokens.flatten()[chosen]
        sums.add(metric, hits, 1, sequences.documents.flatten()[chosen])


def table_fvu(sequences: Sequences, table: Tensor, mean: Tensor, sums: DocumentSums, metric: str = "table_fvu") -> None:
    """Sum the FVU of x_hat = table[t] at kept tokens, before any SAE.

    Args:
        sequences: held-out sequences.
        table: (V, d), a row per token.
        mean: (d,), in place of rows that are NaN.
        sums: where the sums go.
        metric: name of the sums.
    """
    x, tokens = sequences.residuals[sequences.kept].float(), sequences.tokens[sequences.kept]
    predicted = table[tokens]
    errors = reconstruction_errors(x, torch.where(predicted.isnan(), mean, predicted))
    sums.add(metric, errors.squared_error, errors.squared_deviation, sequences.documents[sequences.kept])


def token_subspaces(sequences: Sequences, unigram_table: Tensor, seed: int, sums: DocumentSums) -> None:
    """Sum the cosine similarities of residuals to their tokens' unigram residuals, by context length (C12).

    `residual_other_cosine`, the floor, takes the unigram residual of another held-out token at random. `at` is as in
    `add_by_position`.
    """
    sequence, position = sequences.kept.nonzero(as_tuple=True)
    x, tokens = sequences.residuals[sequence, position].float(), sequences.tokens[sequence, position]
    other = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))]
    cosines = {
        "residual_unigram_cosine": F.cosine_similarity(x, unigram_table[tokens], dim=1),
        "residual_other_cosine": F.cosine_similarity(x, unigram_table[other], dim=1),
    }
    documents = sequences.documents[sequence, position]
    for metric, values in cosines.items():
        add_by_position(sums, metric, values, position, documents)
