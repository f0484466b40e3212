"""First letters: sparse probes of a known feature, and a known absorption."""

import math

import pytest
import torch
from fixtures.evaluation import SETTINGS, Evaluated, reconstruction
from fixtures.training import Prepared
from torch import Tensor

from tsae.measure.features import Firings
from tsae.measure.first_letters import (
    Activations,
    _activations_at,
    _main_features,
    absorption,
    measure_first_letters,
    sparse_probes,
)
from tsae.measure.letter_tokens import LetterTokens, load_letter_tokens
from tsae.measure.probes import Probes, Sample
from tsae.sae.checkpoint import load


def activations(dense: Tensor) -> Activations:
    rows, features = dense.nonzero(as_tuple=True)
    return Activations(rows, features, dense[rows, features].double(), len(dense))


def test_the_features_that_fire_are_those_of_the_test_tokens(prepared: Prepared, evaluated: Evaluated) -> None:
    found = load_letter_tokens(prepared.references.letter_tokens, evaluated.whole)
    assert found is not None
    firings: list[Firings] = []
    sae = load(evaluated.saes["learned"])
    reconstruction(sae, evaluated.whole, SETTINGS, firings)
    test = _activations_at(found.places, firings)
    expected = sae.encode(found.test_x(evaluated.whole), found.test_tokens).detach()
    torch.testing.assert_close(test.of(torch.arange(sae.n_features), sae.n_features), expected, rtol=1e-4, atol=1e-4)


def test_one_feature_that_knows_the_letter_is_found() -> None:
    # Feature 3 fires on tokens of class 1 only, 0 on half of class 0, 2 on everything.
    classes = torch.arange(40) % 4 - 1
    dense = torch.zeros(40, 5)
    dense[:, 2] = 5 + torch.arange(40) % 3
    dense[classes == 1, 3] = 2.0
    dense[(classes == 0).nonzero().flatten()[::2], 0] = 1.0
    sample = Sample.of(torch.arange(40), classes, 3)
    chosen, says = sparse_probes(activations(dense), activations(dense), sample, 5)
    assert chosen[:2, 0].tolist() == [0, 3]
    assert torch.equal(says[0][1], classes == 1)
    assert torch.equal(says[0][0], dense[:, 0] > 0)
    assert len(says) == chosen.shape[1] == 5


def test_main_features_are_added_while_f1_jumps() -> None:
    f1 = torch.tensor([[0.5, 0.5, 0.1], [0.54, 0.52, 0.2], [0.56, 0.9, 0.3], [0.9, 0.9, 0.4]])
    assert _main_features(f1).tolist() == [2, 1, 4]


@pytest.mark.parametrize(
    ("dense", "absorbed"),
    [
        ([0.0, 0.5, 0.0], 1),  # feature 1 stands in: 0.5 * 1 of the length 1
        ([0.0, 0.39, 0.0], 0),  # too little of it
        ([0.1, 0.9, 0.0], 0),  # the main feature fires
        ([0.0, 0.5, 60.0], 0),  # feature 2 adds the most, but its cosine is below 0.025
        ([0.0, 0.0, 0.0], 0),
    ],
)
def test_absorption_by_hand(dense: list[float], absorbed: int) -> None:
    """One class along the first axis; feature 0 is its main one, 1 lies along it, 2 hardly does."""
    W_dec = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.01, 1.0]])
    x, sample = torch.tensor([[2.0, 1.0]]), Sample.of(torch.tensor([4]), torch.tensor([0]), 1)
    probes = Probes(torch.tensor([1.0, 0.0]), torch.tensor([[3.0], [0.0]]), torch.tensor([0.5]))
    token, place = torch.tensor([4]), torch.tensor([0])
    found = LetterTokens(x.half(), token, sample, place, token, sample, probes)
    test, chosen, n_main = activations(torch.tensor([dense])), torch.tensor([[0, 1, 2]]), torch.tensor([1])
    rates = absorption(W_dec, test, found, x, chosen, n_main)
    assert (rates.numerator.item(), rates.denominator.item()) == (absorbed, 1)
    missed = found._replace(probes=probes._replace(thresholds=torch.tensor([3.5])))
    assert absorption(W_dec, test, missed, x, chosen, n_main).denominator.item() == 0


def test_a_tokenized_sae_has_the_accuracy_of_its_table(prepared: Prepared, evaluated: Evaluated) -> None:
    found = load_letter_tokens(prepared.references.letter_tokens, evaluated.whole)
    for table, sae_folder in evaluated.saes.items():
        sae, firings = load(sae_folder), list[Firings]()
        reconstruction(sae, evaluated.whole, SETTINGS, firings)
        rows = measure_first_letters(sae, found, evaluated.whole, firings, SETTINGS)
        names = [(m.metric, m.at) for m in rows]
        expected = [("first_letter_accuracy", k) for k in (1.0, 2.0, 5.0)] + [("first_letter_absorption", None)]
        assert names == expected + [("first_letter_accuracy_table", None)] * (table == "learned")
        for m in rows:
            assert m.low is not None and m.high is not None and m.over == "tokens"
            assert math.isfinite(m.value) and m.low <= m.value <= m.high, m
