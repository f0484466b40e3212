"""First letters: which tokens begin with one, sparse probes of a known feature, and a known absorption."""

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
    measure_residual_probe,
    sparse_probes,
)
from tsae.measure.letter_tokens import LetterTokens, first_letters, gather_letter_tokens
from tsae.measure.probes import Probes, Sample
from tsae.sae.checkpoint import load
from tsae.text.tokens import load_tokenizer


def activations(dense: Tensor) -> Activations:
    rows, features = dense.nonzero(as_tuple=True)
    return Activations(rows, features, dense[rows, features].double(), len(dense))


def test_letters_are_those_of_the_text_after_white_space(prepared: Prepared) -> None:
    tokenizer = load_tokenizer(prepared.model)
    found = first_letters(prepared.model, torch.arange(500), 512)
    assert (found[500:] == -1).all()
    for token in range(500):
        text = str(tokenizer.decode([token])).strip()
        is_letter = text[:1].isascii() and text[:1].isalpha()
        assert found[token] == (ord(text[0].lower()) - ord("a") if is_letter else -1), text
    assert len(found.unique()) > 10


def test_no_token_is_both_trained_and_tested_on(prepared: Prepared, evaluated: Evaluated) -> None:
    found = gather_letter_tokens(prepared.model, evaluated.train, evaluated.whole, SETTINGS)
    assert found is not None
    assert not set(found.tokens.tolist()) & set(found.test_tokens.tolist())
    few = SETTINGS.model_copy(update={"probe_tokens": 500})
    fewer = gather_letter_tokens(prepared.model, evaluated.train, evaluated.whole, few)
    assert fewer is not None
    assert len(fewer.tokens) == 500 < len(found.tokens)
    letters = first_letters(prepared.model, torch.arange(512), 512)
    for tokens, sample in ((found.tokens, found.sample), (found.test_tokens, found.test)):
        assert (letters[tokens] >= 0).all()
        # A class is one letter, in training and in test.
        pairs = {*zip(sample.classes.tolist(), letters[tokens].tolist(), strict=True)}
        assert len([c for c, _ in pairs if c >= 0]) == sample.n_classes
    kept = evaluated.train.kept_rows()
    assert {*map(tuple, found.x[:50].tolist())} <= {*map(tuple, kept.residuals.tolist())}
    assert torch.equal(evaluated.whole.tokens.flatten()[found.places], found.test_tokens)
    nothing = SETTINGS.model_copy(update={"probe_tokens": 0})
    assert gather_letter_tokens(prepared.model, evaluated.train, evaluated.whole, nothing) is None
    assert (
        measure_residual_probe(None, nothing)
        == measure_first_letters(load(evaluated.saes["none"]), None, [], nothing)
        == []
    )


def test_the_features_that_fire_are_those_of_the_test_tokens(prepared: Prepared, evaluated: Evaluated) -> None:
    found = gather_letter_tokens(prepared.model, evaluated.train, evaluated.whole, SETTINGS)
    assert found is not None
    firings: list[Firings] = []
    sae = load(evaluated.saes["learned"])
    reconstruction(sae, evaluated.whole, SETTINGS, firings)
    test = _activations_at(found.places, firings)
    expected = sae.encode(found.test_x, found.test_tokens).detach()
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
    found = LetterTokens(x, torch.tensor([4]), sample, torch.tensor([0]), x, torch.tensor([4]), sample)
    probe = Probes(torch.tensor([1.0, 0.0]), torch.tensor([[3.0], [0.0]]), torch.tensor([0.5]))
    n_main = torch.tensor([1])
    rates = absorption(W_dec, activations(torch.tensor([dense])), found, probe, torch.tensor([[0, 1, 2]]), n_main)
    assert (rates.numerator.item(), rates.denominator.item()) == (absorbed, 1)
    missed = absorption(
        W_dec,
        activations(torch.tensor([dense])),
        found,
        probe._replace(thresholds=torch.tensor([3.5])),
        torch.tensor([[0, 1, 2]]),
        n_main,
    )
    assert missed.denominator.item() == 0


def test_a_tokenized_sae_has_the_accuracy_of_its_table(prepared: Prepared, evaluated: Evaluated) -> None:
    found = gather_letter_tokens(prepared.model, evaluated.train, evaluated.whole, SETTINGS)
    for table, sae_folder in evaluated.saes.items():
        sae, firings = load(sae_folder), list[Firings]()
        reconstruction(sae, evaluated.whole, SETTINGS, firings)
        rows = measure_first_letters(sae, found, firings, SETTINGS)
        names = [(m.metric, m.at) for m in rows]
        expected = [("first_letter_accuracy", k) for k in (1.0, 2.0, 5.0)] + [("first_letter_absorption", None)]
        assert names == expected + [("first_letter_accuracy_table", None)] * (table == "learned")
        for m in rows:
            assert m.low is not None and m.high is not None and m.over == "tokens"
            assert math.isfinite(m.value) and m.low <= m.value <= m.high, m
