"""How features tell the first letter of a token: sparse probes and absorption, as SAEBench defines them.

A k-sparse probe of a letter sees the k features whose mean activation on tokens of the letter is furthest above that on other
tokens. The main features of a letter are those of its k-sparse probe, where k grows from 1 while F1 on the test tokens grows by more
than 0.03, to at most 10. A feature absorbs the letter at a test token that begins with it and that the probe on residuals finds, if

- no main feature of the letter fires,
- of all features it adds most along the direction of the letter's probe on residuals, activation * (W_dec . direction),
- its decoder row has a cosine similarity with that direction of at least 0.025, and
- it adds at least 0.4 of the residual's own length along the direction.

Differences from SAEBench 0.6 (evals/absorption): tokens are those of running text, and not words in a prompt that asks for their
letter. Probes are ridge regressions in closed form (`tsae.measure.probes`), and not logistic regressions by gradient descent, and
features are chosen by mean activation, as in its sparse probing, and not by the weights of a probe with an L1 penalty. Lengths along a
direction are from the mean residual, which is in b_dec, and not from zero. Letters are left out if they have few types; SAEBench leaves
out those whose probe on residuals has an F1 of 0.6 or less. The decoder's rows may have any length.

`tsae.measure.letter_tokens` chooses the tokens that probes are trained and tested on, and fits the probe on residuals.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tsae.measure.features import Firings
from tsae.measure.intervals import Bootstrap
from tsae.measure.letter_tokens import LetterTokens
from tsae.measure.measurement import Measurement
from tsae.measure.probes import (
    SPARSE_PENALTY,
    Probes,
    Rates,
    Sample,
    balanced,
    best_thresholds,
    covariance,
    f1_scores,
    fit_probes,
    mean_over_classes,
)
from tsae.measure.sequences import Sequences
from tsae.profile.evaluation import Evaluation
from tsae.sae.sae import SAE

KS = (1, 2, 5)  # features of the reported probes
MOST_MAIN = 10  # features, SAEBench's max_k_value
F1_JUMP = 0.03
LEAST_COSINE = 0.025
LEAST_SHARE = 0.4
BATCH = 4096  # tokens that are encoded together
METRICS = {
    "first_letter_accuracy": "mean over letters of the balanced accuracy with which a probe finds test tokens that begin with it, from `at` features; of residuals, from all coordinates",
    "first_letter_accuracy_table": "that accuracy for a probe on all coordinates of the token's row of the table",
    "first_letter_absorption": "mean over letters of the share of test tokens that begin with it, found by the probe on residuals, at which another feature absorbs it",
}


class Activations(NamedTuple):
    """Non-zero activations of features on n tokens."""

    rows: Tensor
    """(M,) the token's place among the n."""
    features: Tensor
    """(M,)."""
    values: Tensor
    """(M,) float64."""
    n_rows: int
    """n."""

    def of(self, features: Tensor, n_features: int) -> Tensor:
        """Activations (n, m) float32 of some features (m,) among F, zeros included."""
        columns = torch.full((n_features,), -1)
        columns[features] = torch.arange(len(features))
        column = columns[self.features]
        chosen = column >= 0
        found = torch.zeros(self.n_rows, len(features))
        found[self.rows[chosen], column[chosen]] = self.values[chosen].float()
        return found


def measure_residual_probe(found: LetterTokens | None, sequences: Sequences, settings: Evaluation) -> list[Measurement]:
    """First-letter accuracy of residuals themselves: what features could reach at most, with a linear probe."""
    if found is None:
        return []
    says = found.probes.says(found.test_x(sequences))
    bootstrap = Bootstrap(found.test.n_types, settings.bootstrap, settings.seed)
    return [mean_over_classes("first_letter_accuracy", balanced(says, found.test), bootstrap)]


def measure_first_letters(
    sae: SAE, found: LetterTokens | None, sequences: Sequences, firings: list[Firings], settings: Evaluation
) -> list[Measurement]:
    """Accuracy of k-sparse probes on an SAE's features, absorption and, of a tokenized SAE, the accuracy of its table.

    Args:
        sae: the SAE.
        found: the tokens.
        sequences: held-out sequences.
        firings: the SAE's activations on all kept held-out tokens.
        settings: how to evaluate.

    Returns:
        No row without tokens, nor for a table with rows of bigrams: the training tokens of the probes have no context.
    """
    if found is None or sae.bigrams is not None:
        return []
    bootstrap = Bootstrap(found.test.n_types, settings.bootstrap, settings.seed)
    train, test = _encode(sae, found), _activations_at(found.places, firings)
    chosen, says = sparse_probes(train, test, found.sample, sae.n_features)
    f1 = torch.stack([f1_scores(answers, found.test) for answers in says])
    n_main = _main_features(f1)
    absorbed = absorption(sae.W_dec.detach().cpu(), test, found, found.test_x(sequences), chosen, n_main)
    rows = [
        mean_over_classes("first_letter_accuracy", balanced(says[k - 1], found.test), bootstrap, float(k))
        for k in KS
        if k <= len(says)
    ]
    rows.append(mean_over_classes("first_letter_absorption", (absorbed,), bootstrap))
    if sae.W_lookup is not None and sae.W_lookup.any():
        table = sae.W_lookup.cpu()
        in_table = fit_probes(table[found.tokens], found.sample).says(table[found.test_tokens])
        rows.append(mean_over_classes("first_letter_accuracy_table", balanced(in_table, found.test), bootstrap))
    return rows


@torch.no_grad()
def _encode(sae: SAE, found: LetterTokens) -> Activations:
    """Activations on the training tokens."""
    parts = []
    for start in range(0, len(found.x), BATCH):
        x, tokens = (part[start : start + BATCH].to(sae.device) for part in (found.x, found.tokens))
        active = sae.active(x.float(), tokens)
        fired = active.values != 0
        parts.append(
            [part.cpu() for part in (start + active.rows[fired], active.features[fired], active.values[fired].double())]
        )
    rows, features, values = (torch.cat(column) for column in zip(*parts, strict=True))
    return Activations(rows, features, values, len(found.x))


def _activations_at(places: Tensor, firings: list[Firings]) -> Activations:
    """Activations on the held-out tokens at some places (m,), ascending."""
    features, at, values = (
        torch.cat([torch.from_numpy(getattr(part, name)) for part in firings])
        for name in ("features", "places", "values")
    )
    rows = torch.searchsorted(places, at).clamp(max=len(places) - 1)
    there = places[rows] == at
    return Activations(rows[there], features[there], values[there], len(places))


def sparse_probes(
    train: Activations, test: Activations, sample: Sample, n_features: int
) -> tuple[Tensor, list[Tensor]]:
    """Fit k-sparse probes for each k from 1 to 10, or to the number of features.

    Args:
        train: activations on the n tokens of `sample`.
        test: activations on the m test tokens.
        sample: the classes of the training tokens.
        n_features: F.

    Returns:
        The features of each class (C, 10), the first k of which the k-sparse probe sees; and for each k the probes' answers (C, m).
    """
    n_classes = sample.n_classes
    places = (sample.classes[train.rows] + 1) * n_features + train.features
    sums = torch.bincount(places, train.values * sample.weights[train.rows], (n_classes + 1) * n_features)
    sums = sums.view(n_classes + 1, n_features)
    means = sample.differences(sums[1:], sums.sum(0))
    chosen = means.topk(min(MOST_MAIN, n_features), dim=1).indices
    features, columns = chosen.unique(return_inverse=True)
    x, test_x = (activations.of(features, n_features) for activations in (train, test))
    mean, spread = covariance(x, sample)
    spread.diagonal().add_((SPARSE_PENALTY * spread.diagonal().mean()).clamp(min=1e-30))
    says = []
    for k in range(1, chosen.shape[1] + 1):
        of_class = columns[:, :k]
        within = spread[of_class[:, :, None], of_class[:, None, :]]
        weights = torch.linalg.solve(within, means.gather(1, chosen[:, :k]))
        directions = torch.zeros(len(features), n_classes)
        directions[of_class, torch.arange(n_classes)[:, None]] = weights.float()
        probes = Probes(mean, directions, torch.zeros(n_classes))
        thresholds = best_thresholds(probes.scores(x), sample)
        says.append(probes._replace(thresholds=thresholds).says(test_x))
    return chosen, says


def _main_features(f1: Tensor) -> Tensor:
    """How many of a class's features are main ones (C,), from F1 for each k (K, C): as long as one more adds over 0.03."""
    stops = f1[1:] <= f1[:-1] + F1_JUMP
    return 1 + (~stops).int().cumprod(0).sum(0)


def absorption(
    W_dec: Tensor, test: Activations, found: LetterTokens, test_x: Tensor, chosen: Tensor, n_main: Tensor
) -> Rates:
    """Test tokens at which a feature absorbs the letter, among those that the probe on residuals finds.

    Args:
        W_dec: (F, d).
        test: activations on the test tokens.
        found: the tokens, and the probes on residuals.
        test_x: (m, d) float32 residuals of the test tokens.
        chosen: (C, 10) features of each class, best first.
        n_main: (C,) how many of them are main features.
    """
    sample, of_token, residual = found.test, found.test.classes, found.probes
    directions = torch.nn.functional.normalize(residual.directions, dim=0)
    lengths = ((test_x - residual.mean) * directions.T[of_token]).sum(1).double()
    along = W_dec @ directions
    is_main = torch.zeros(sample.n_classes, len(W_dec), dtype=torch.bool)
    main = torch.arange(chosen.shape[1]) < n_main[:, None]
    is_main[main.nonzero()[:, 0], chosen[main]] = True
    classes = of_token[test.rows]
    added = test.values * along[test.features, classes].double()
    cosines = along[test.features, classes] / W_dec.norm(dim=1)[test.features]
    most = torch.full((test.n_rows,), -torch.inf, dtype=torch.float64).scatter_reduce(0, test.rows, added, "amax")
    absorbs = (added == most[test.rows]) & (cosines >= LEAST_COSINE) & (added >= LEAST_SHARE * lengths[test.rows])
    absorbed, has_main = (torch.zeros(test.n_rows, dtype=torch.bool) for _ in range(2))
    absorbed[test.rows[absorbs]] = True
    has_main[test.rows[is_main[classes, test.features]]] = True
    true = residual.says(test_x) & sample.positive
    return Rates(sample.by_type(true & absorbed & ~has_main & (lengths > 0)), sample.by_type(true))
