"""The feature that fires on every token of a phrase, and whether it still fires without the unigram direction (C10).

A feature for " Golden Gate Bridge" fires on " Golden", on " Gate" and on " Bridge", each time partly because of that
token itself. For each phrase the best feature is sought by

    recall_j = share of the phrase's occurrences in which the feature fires on the j-th token
    score = min_j recall_j - base rate, the share of other tokens of the same documents on which it fires

The score is Youden's J of the weakest token: 1 for a feature that fires on every token of every occurrence and nowhere
else, 0 for one that does not tell the weakest token from others of its documents. The feature is chosen in one half of
the documents and scored in the other, so a score can be below zero.

To measure what the feature owes to the tokens themselves, the encoder's input loses its part along the token's unigram
direction, or along those of all tokens of the phrase, and the lost firings are counted. Controls take another token's
direction, or move the input as far along it. See `firings.without_unigrams`.

The residuals of a phrase are alike, so even a dictionary of random directions has one that fires on most of them. The
floor is the score of an untrained encoder of as many features on the same input.

Phrases and residuals are those of the training split, where phrases recur often enough. Every SAE has seen the same
ones.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tsae.measure.intervals import Bootstrap
from tsae.measure.measurement import Measurement
from tsae.phrases.firings import (
    REMOVALS,
    Encode,
    activations,
    draw_others,
    encoders,
    rates,
    remove_span,
    without_unigrams,
)
from tsae.phrases.phrases import Half, Phrase, order_for_examples
from tsae.profile.evaluation import Phrases
from tsae.residuals.read import ResidualCache
from tsae.sae.sae import SAE

LOG = logging.getLogger(__name__)
EXAMPLES = 8  # phrases whose context is shown token by token
COLUMNS = [
    "text", "ids", "count", "n_measured", "n_documents", "feature", "base_rate", "recall", "score",
    "firings", *REMOVALS, "recall_without", "untrained_score",
]  # fmt: skip
LISTS = ("ids", "recall", "recall_without")
EXAMPLE_COLUMNS = ["text", "feature", "place", "token", "of_phrase", "activation", "activation_without"]
LABELS = ("layer", "seed", "table", "encoder_input")
METRICS = {
    "phrase_coverage": "mean over phrases of the best feature's smallest recall on a token of the phrase, less its base rate (C10)",
    "phrase_coverage_untrained": "the same for an encoder of as many random directions, the floor",
    "phrase_token_recall": "mean over the tokens of phrases of the recall of the phrase's best feature",
    "phrases_left_out": "share of phrases that are not measured, because one half of the documents has no whole occurrence of them",
}


class PhraseMeasurements(NamedTuple):
    """Measurements of an SAE on phrases."""

    measurements: list[Measurement]
    """Over all phrases; none without a phrase."""
    table: pd.DataFrame
    """A row per measured phrase, with the columns `COLUMNS`."""
    examples: pd.DataFrame
    """A row per token of the contexts of the first phrases, with the columns `EXAMPLE_COLUMNS`."""


class _Rows(NamedTuple):
    x: Tensor  # (n, d) float32
    tokens: Tensor  # (n,) int64
    kept: Tensor  # (n,) bool


class _Means(NamedTuple):
    input: Tensor  # (d,) what the encoder sees
    unigram: Tensor  # (d,) unigram residual


class _Side(NamedTuple):
    """Encoder inputs, less their mean, of a phrase in one half of its documents."""

    inputs: Tensor  # (m, n, d) of its tokens
    documents: Tensor  # (m,)
    others: Tensor  # (o, d) of other tokens of the same documents


def measure_phrases(
    sae: SAE, unigrams: Tensor, cache: ResidualCache, phrases: Sequence[Phrase], settings: Phrases, seed: int
) -> PhraseMeasurements:
    """Measure how well the best single feature covers each phrase, and how many of its firings need the unigram directions.

    In the scoring half, `phrase_coverage` is the mean score of the phrases' best features, `phrase_token_recall` their
    mean recall over the tokens of all phrases, and `phrase_firings_{removal}` are shares of their firings. Intervals
    are a bootstrap over phrases. Occurrences with a token that is not kept are left out, and so are phrases without an
    occurrence in one half: `phrases_left_out` is their share.

    Args:
        sae: the SAE, speaking raw residuals.
        unigrams: (V, d) unigram residuals of the layer.
        cache: residuals of the training split, of the same tokens as the phrases.
        phrases: of `find_phrases`.
        settings: samples of the bootstrap, the seed of controls, and the phrase to show.
        seed: seed of the untrained encoder's directions.

    Raises:
        ValueError: the cache is of other tokens than the phrases, or the phrase to show is not one of them.
    """
    shown = order_for_examples(phrases, settings.example)[:EXAMPLES]
    found = _read(cache, phrases)
    means = _means(sae, unigrams, [rows for parts in found for rows in parts[1:4:2]])
    trained, untrained = encoders(sae, means.input, seed)
    rows, examples = [], {}
    # A token of several phrases is drawn in proportion.
    pool = [token for phrase in phrases for token in phrase.tokens]
    if len({phrase.tokens for phrase in phrases}) == 1:
        pool = list(range(len(unigrams)))
    for phrase, parts in zip(phrases, found, strict=True):
        choosing, scoring = (
            _see(sae, means.input, phrase, half, *parts[first : first + 2])
            for first, half in ((0, phrase.choosing), (2, phrase.scoring))
        )
        rng = np.random.default_rng([settings.seed, *phrase.tokens])
        other = unigrams[draw_others(rng, phrase.tokens, len(scoring.inputs), pool)]
        if min(len(part) for side in (choosing, scoring) for part in (side.inputs, side.others)) == 0:
            continue
        best, floor = (_choose(encode, choosing, sae.n_features) for encode in (trained, untrained))
        without = without_unigrams(scoring.inputs, unigrams[list(phrase.tokens)], other, means.unigram)
        rows.append(
            {
                "text": phrase.text,
                "ids": list(phrase.tokens),
                "count": phrase.n_occurrences,
                "n_measured": len(choosing.inputs) + len(scoring.inputs),
                "n_documents": len(choosing.documents.unique()) + len(scoring.documents.unique()),
                **_score(trained, scoring, best)._asdict(),
                **_lose(trained, scoring.inputs, best, without),
                "untrained_score": _score(untrained, scoring, floor).score,
            }
        )
        if phrase in shown:
            examples[phrase.text] = _show(trained, sae, means, unigrams, phrase, parts[4], best)
    table = pd.DataFrame(rows, columns=COLUMNS)
    shown_tables = [examples[phrase.text] for phrase in shown if phrase.text in examples]
    return PhraseMeasurements(
        _summarise(table, len(phrases), settings),
        table,
        pd.concat(shown_tables) if shown_tables else pd.DataFrame(columns=EXAMPLE_COLUMNS),
    )


def _read(cache: ResidualCache, phrases: Sequence[Phrase]) -> list[list[_Rows]]:
    """For each phrase its tokens and the other tokens, in the choosing half and in the scoring half, and its context.

    All phrases are read together, so that every shard is read, or computed, once.
    """
    places: list[Tensor] = []
    for phrase in phrases:
        for half in (phrase.choosing, phrase.scoring):
            starts = torch.tensor(half.starts, dtype=torch.int64)
            places.append((starts[:, None] + torch.arange(len(phrase.tokens))).flatten())
            places.append(torch.tensor(half.others, dtype=torch.int64))
        places.append(phrase.context.start + torch.arange(len(phrase.context.texts)))
    if not places:
        return []
    together = torch.cat(places)
    if together.max() >= cache.n_rows:
        raise ValueError(f"{cache.index}: has fewer tokens than the phrases were found in; find phrases again")
    columns = (column.split([len(part) for part in places]) for column in _read_rows(cache, together))
    parts = [_Rows(*row) for row in zip(*columns, strict=True)]
    found = [parts[first : first + 5] for first in range(0, len(parts), 5)]
    for phrase, rows in zip(phrases, found, strict=True):
        for occurrences in rows[:4:2]:
            if (occurrences.tokens.view(-1, len(phrase.tokens)) != torch.tensor(phrase.tokens)).any():
                raise ValueError(
                    f"{cache.index}: made from other tokens than the phrase {phrase.text!r}; find phrases again"
                )
    return found


def _read_rows(cache: ResidualCache, places: Tensor) -> _Rows:
    """Rows of the whole split (n,), in any order."""
    x, tokens = torch.empty(len(places), cache.d_model), torch.empty(len(places), dtype=torch.int64)
    kept = torch.empty(len(places), dtype=torch.bool)
    shard_rows = cache.shard_sequences * cache.n_ctx
    for index in (places // shard_rows).unique().tolist():
        here = places // shard_rows == index
        shard, local = cache.shard(index), places[here] - index * shard_rows
        x[here] = shard.residuals[local].float()
        tokens[here], kept[here] = shard.tokens[local].long(), shard.kept[local]
    return _Rows(x, tokens, kept)


def _means(sae: SAE, unigrams: Tensor, parts: Sequence[_Rows]) -> _Means:
    """Means over the kept tokens; the encoder's input may be off centre by a constant, which b_enc compensates."""
    inputs, rows, count = torch.zeros(len(sae.b_dec)).double(), torch.zeros(len(sae.b_dec)).double(), 0
    for x, tokens, kept in parts:
        inputs += sae.encoder_input(x[kept], tokens[kept]).double().sum(0)
        rows += unigrams[tokens[kept]].double().sum(0)
        count += int(kept.sum())
    return _Means((inputs / max(count, 1)).float(), (rows / max(count, 1)).float())


def _see(sae: SAE, mean: Tensor, phrase: Phrase, half: Half, rows: _Rows, others: _Rows) -> _Side:
    tokens = rows.tokens.view(-1, len(phrase.tokens))
    whole = rows.kept.view(tokens.shape).all(1)
    x = rows.x.view(*tokens.shape, -1)[whole]
    return _Side(
        sae.encoder_input(x, tokens[whole]) - mean,
        torch.tensor(half.documents)[whole],
        sae.encoder_input(others.x[others.kept], others.tokens[others.kept]) - mean,
    )


def _choose(encode: Encode, side: _Side, n_features: int) -> int:
    """The feature with the best score."""
    base_rates = rates(encode, side.others[:, None], n_features)[0]
    return int((rates(encode, side.inputs, n_features).amin(0) - base_rates).argmax())


class _Scored(NamedTuple):
    feature: int
    base_rate: float
    recall: list[float]
    score: float


def _score(encode: Encode, side: _Side, feature: int) -> _Scored:
    base_rate = (activations(encode, side.others, feature) != 0).double().mean().item()
    recall = (activations(encode, side.inputs, feature) != 0).double().mean(0).tolist()
    return _Scored(feature, base_rate, recall, min(recall) - base_rate)


def _lose(encode: Encode, inputs: Tensor, feature: int, without: Mapping[str, Tensor]) -> dict[str, Any]:
    """Firings of a feature, how many each removal loses, and the recall without the tokens' own directions."""
    fires = activations(encode, inputs, feature) != 0
    still = {name: activations(encode, changed, feature) != 0 for name, changed in without.items()}
    lost = {name: int((fires & ~fires_still).sum()) for name, fires_still in still.items()}
    return {"firings": int(fires.sum()), **lost, "recall_without": still["lost"].double().mean(0).tolist()}


def _show(
    encode: Encode, sae: SAE, means: _Means, unigrams: Tensor, phrase: Phrase, rows: _Rows, feature: int
) -> pd.DataFrame:
    """Activations of a feature on the tokens of a context, with and without unigram directions; NaN if not kept."""
    inputs = sae.encoder_input(rows.x, rows.tokens) - means.input
    directions = (unigrams[rows.tokens] - means.unigram).unsqueeze(1)
    of_phrase = torch.arange(len(rows.tokens)) - phrase.context.before
    shown = {
        "activation": activations(encode, inputs, feature),
        "activation_without": activations(encode, remove_span(inputs, directions), feature),
    }
    return pd.DataFrame(
        {
            "text": phrase.text,
            "feature": feature,
            "place": of_phrase.tolist(),
            "token": phrase.context.texts,
            "of_phrase": ((of_phrase >= 0) & (of_phrase < len(phrase.tokens))).tolist(),
            **{name: values.masked_fill(~rows.kept, torch.nan).tolist() for name, values in shown.items()},
        }
    )


def _summarise(table: pd.DataFrame, n_phrases: int, settings: Phrases) -> list[Measurement]:
    if n_phrases == 0:
        return []
    left_out = Measurement("phrases_left_out", 1 - len(table) / n_phrases, n=n_phrases)
    if table.empty:
        return [left_out]
    bootstrap = Bootstrap(len(table), settings.bootstrap, settings.seed)

    def mean(metric: str, sums: "pd.Series[float]", counts: "pd.Series[int] | None" = None) -> Measurement:
        numbers = torch.ones(len(table)) if counts is None else torch.tensor(counts.to_numpy())
        return bootstrap.ratio(metric, torch.tensor(sums.to_numpy()), numbers, int(numbers.sum()), over="phrases")

    measured = [
        left_out,
        mean("phrase_coverage", table["score"]),
        mean("phrase_coverage_untrained", table["untrained_score"]),
        mean("phrase_token_recall", table["recall"].map(sum), table["recall"].map(len)),
    ]
    if table["firings"].any():
        measured += [mean(f"phrase_firings_{name}", table[name], table["firings"]) for name in REMOVALS]
    return measured
