"""Firings on phrases that are lost without the unigram directions, by hand."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from fixtures.phrases import (
    BOS,
    BRIDGED,
    DOT,
    GATE,
    GOLDEN,
    IDS,
    OTHER,
    RELU,
    SETTINGS,
    THE,
    by_name,
    measure,
    write_residuals,
)
from torch import Tensor

from tsae.phrases.coverage import EXAMPLE_COLUMNS
from tsae.phrases.firings import REMOVALS
from tsae.phrases.phrases import Context
from tsae.profile.point import Point
from tsae.sae.sae import SAE

COMMON = torch.tensor([0.0, 0, 0, 5])


def unigram_residuals() -> Tensor:
    """(6, 4): most of each is common to all; of two tokens something is their own."""
    rows = COMMON.repeat(OTHER + 1, 1)
    rows[GOLDEN, 0] = rows[GATE, 1] = 1
    return rows


def one_feature(b_dec: Tensor | None = None) -> SAE:
    """It fires where the first three coordinates sum to more than one, whatever b_dec is."""
    b_dec, W_enc = torch.zeros(4) if b_dec is None else b_dec, torch.tensor([[1.0, 1, 1, 0]])
    point = Point(**RELU, expansion=1, table="none")
    return SAE(point, W_enc, W_enc.clone(), W_enc @ b_dec - 1, b_dec).requires_grad_(False)


def golden_gate() -> Tensor:
    """Residuals (5, 5, 4): " Golden" is told by its own direction; " Gate" by its own, by that of " Golden", and by context."""
    x = torch.zeros(5, 5, 4)
    x[:, 1, 0] = 2
    x[:, 2, :2] = 2
    x[3, 2, 2] = 2
    return x


def test_firings_lost_by_hand(tmp_path: Path) -> None:
    cache = write_residuals(tmp_path, golden_gate(), IDS)
    found = measure(one_feature(), cache, unigrams=unigram_residuals())
    (row,) = found.table.to_dict("records")
    assert (row["firings"], row["recall"]) == (4, [1, 1])
    # Without its own direction " Golden" is lost; without both of them also the " Gate" that no context tells. As it is, an
    # unigram residual is mostly what all have in common, along which there is nothing here.
    lost = {"lost": 2, "lost_span": 3}
    assert {name: row[name] for name in REMOVALS} == dict.fromkeys(REMOVALS, 0) | lost
    assert row["recall_without"] == [0, 1]
    assert by_name(found)["phrase_firings_lost"] == 0.5
    assert by_name(found)["phrase_firings_lost_span"] == 0.75
    assert by_name(found)["phrase_firings_lost_control"] == 0


def test_controls_take_the_direction_of_another_token(tmp_path: Path) -> None:
    # Every other token of the vocabulary has the direction in which the phrase is told.
    unigrams = unigram_residuals()
    unigrams[[BOS, OTHER]] = COMMON + torch.tensor([1.0, 1, 0, 0])
    x = torch.zeros(5, 5, 4)
    x[:, 1:3, :2] = 2
    text = IDS.clone()
    text[:, 3:] = THE  # the common part is the mean
    unigrams[DOT] = unigrams[OTHER]
    # Half of the tokens that are drawn, at random, are " the", which has no direction.
    cases = [
        measure(
            one_feature(),
            write_residuals(tmp_path, x, text),
            unigrams=unigrams,
            settings=SETTINGS.model_copy(update={"seed": seed}),
        )
        for seed in (0, 0, 1, 2, 3)
    ]
    lost = [case.table["lost_control"].item() for case in cases]
    assert lost[0] == lost[1]
    assert all(0 <= count <= 4 for count in lost) and max(lost) >= 2
    assert len(set(lost)) > 1
    assert [case.table["lost"].item() for case in cases] == [0] * 5


def test_where_b_dec_lies_is_nothing_to_what_is_lost(tmp_path: Path) -> None:
    # The same function of x: what is off centre in the encoder's input is made up for by b_enc.
    cache = write_residuals(tmp_path, golden_gate(), IDS)
    at_zero, elsewhere = (
        measure(one_feature(b_dec), cache, unigrams=unigram_residuals()).table
        for b_dec in (torch.zeros(4), torch.tensor([-7.0, 3, 0, 2]))
    )
    pd.testing.assert_frame_equal(at_zero, elsewhere)


def test_an_example_token_by_token(tmp_path: Path) -> None:
    norms = torch.ones(5, 5)
    norms[3, 4] = 5
    x = golden_gate()
    x[3, 3, 2] = 7
    shown = BRIDGED._replace(context=Context(15, ("<bos>", " Golden", " Gate", ".", " the"), 1))
    x[[0, 1, 2, 4], 3, 2] = -7 / 4  # so that the mean of the other tokens is zero
    cache = write_residuals(tmp_path, x, IDS, norms)
    found = measure(one_feature(), cache, [shown], unigram_residuals()).examples
    assert found.columns.tolist() == EXAMPLE_COLUMNS
    assert found["token"].tolist() == list(shown.context.texts)
    assert found["place"].tolist() == [-1, 0, 1, 2, 3]
    assert found["of_phrase"].tolist() == [False, True, True, False, False]
    assert found["text"].unique().tolist() == [" Golden Gate"] and found["feature"].unique().tolist() == [0]
    nan = float("nan")
    assert found["activation"].tolist() == pytest.approx([nan, 1, 5, 6, nan], nan_ok=True, abs=1e-5)
    assert found["activation_without"].tolist() == pytest.approx([nan, 0, 3, 6, nan], nan_ok=True, abs=1e-5)
