"""Which feature covers a phrase best, and its score, by hand."""

from pathlib import Path

import pytest
import torch
from fixtures.phrases import (
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
    firing,
    half,
    identity_sae,
    measure,
    phrase,
    write_residuals,
)

from tsae.measure.intervals import Bootstrap
from tsae.phrases.firings import REMOVALS
from tsae.profile.point import Point
from tsae.sae.sae import SAE


@pytest.mark.parametrize("architecture", ["relu", "topk"])
def test_coverage_by_hand(tmp_path: Path, architecture: str) -> None:
    # A feature that TopK chose does not fire if its activation is zero.
    sae = identity_sae(4, {"architecture": "topk", "k": 4} if architecture == "topk" else RELU)
    x = firing()
    x[4, 2, 1] = 0
    x[4, 3, 1] = 1
    found = measure(sae, write_residuals(tmp_path, x, IDS))
    # The feature of the phrase alone is chosen; where it is scored it misses one of two second tokens, and fires elsewhere.
    (row,) = found.table.drop(columns="untrained_score").to_dict("records")
    assert row == {
        "text": " Golden Gate",
        "ids": [GOLDEN, GATE],
        "count": 7,
        "n_measured": 5,
        "n_documents": 5,
        "feature": 1,
        "base_rate": 0.25,
        "recall": [1.0, 0.5],
        "score": 0.25,
        "firings": 3,
        **dict.fromkeys(REMOVALS, 0),
        "recall_without": [1.0, 0.5],
    }
    left_out, covered, _, recall, *lost = found.measurements
    assert (left_out.metric, left_out.value, left_out.n) == ("phrases_left_out", 0, 1)
    assert (covered.metric, covered.value, covered.n) == ("phrase_coverage", 0.25, 1)
    assert (recall.metric, recall.value, recall.n) == ("phrase_token_recall", 0.75, 2)
    assert [(row.metric, row.value, row.n) for row in lost] == [(f"phrase_firings_{name}", 0, 3) for name in REMOVALS]


def test_a_feature_that_knows_a_document_is_not_scored_elsewhere(tmp_path: Path) -> None:
    x = torch.zeros(5, 5, 2)
    x[:3, 1:3, 0] = 1  # on the phrase in the documents where features are chosen
    x[1:, 1:3, 1] = 1  # in all others, and all but one of those
    (row,) = measure(identity_sae(2), write_residuals(tmp_path, x, IDS)).table.to_dict("records")
    assert (row["feature"], row["recall"], row["score"]) == (0, [0, 0], 0)
    swapped = phrase(half((3, 4)), half((0, 1, 2)))
    (row,) = measure(identity_sae(2), write_residuals(tmp_path, x, IDS), [swapped]).table.to_dict("records")
    assert (row["feature"], row["recall"]) == (1, pytest.approx([2 / 3, 2 / 3]))


def test_the_topic_of_the_documents_is_no_phrase(tmp_path: Path) -> None:
    # Ten documents, of which five are about the phrase.
    x = torch.zeros(10, 5, 2)
    x[:5, :, 0] = 1
    x[:5, 1:3, 1] = 1
    x[0, 1:3, 1] = 0
    (row,) = measure(identity_sae(2), write_residuals(tmp_path, x, IDS.repeat(2, 1))).table.to_dict("records")
    assert (row["feature"], row["base_rate"], row["score"]) == (1, 0, 1)
    x[..., 1] = 0
    (row,) = measure(identity_sae(2), write_residuals(tmp_path, x, IDS.repeat(2, 1))).table.to_dict("records")
    assert (row["feature"], row["base_rate"], row["score"]) == (0, 1, 0)


def test_the_weakest_place_decides(tmp_path: Path) -> None:
    x = firing()[..., 2:]
    x[..., 1] = 0
    x[:, 2:4, 1] = 1
    # Neither fires on both tokens: the first on no other token, the second on half of them.
    (row,) = measure(identity_sae(2), write_residuals(tmp_path, x, IDS)).table.to_dict("records")
    assert [row[name] for name in ("feature", "base_rate", "recall", "score")] == [0, 0, [1, 0], 0]


def test_means_are_over_phrases_and_over_places(tmp_path: Path) -> None:
    x = firing()[..., 2:]
    phrases = [
        phrase(half((0, 1, 2), position, others), half((3, 4), position, others), tokens, text)
        for position, others, tokens, text in (
            (1, (3, 4), (GOLDEN, GATE), " Golden Gate"),
            (1, (4,), (GOLDEN, GATE, DOT), " Golden Gate."),
            (2, (1,), (GATE, DOT, THE), " Gate. the"),
        )
    ]
    found = measure(identity_sae(2), write_residuals(tmp_path, x, IDS), phrases)
    assert found.table["feature"].tolist() == [1, 1, 0]
    assert found.table["base_rate"].tolist() == [0.5, 0, 1]
    assert found.table["recall"].tolist() == [[1, 1], [1, 1, 1], [0, 0, 0]]
    assert found.table["score"].tolist() == [0.5, 1, -1]
    assert found.table["firings"].tolist() == [4, 6, 0]
    bootstrap = Bootstrap(3, SETTINGS.bootstrap, SETTINGS.seed)
    covered, recall = (
        next(row for row in found.measurements if row.metric == name)
        for name in ("phrase_coverage", "phrase_token_recall")
    )
    scores, ones = torch.tensor([0.5, 1, -1]), torch.ones(3)
    assert covered == bootstrap.ratio("phrase_coverage", scores, ones, 3, over="phrases")
    lengths = torch.tensor([2, 3, 3])
    assert recall == bootstrap.ratio("phrase_token_recall", torch.tensor([2, 3, 0]), lengths, 8, over="phrases")
    assert (covered.value, recall.value) == pytest.approx((1 / 6, 5 / 8))


def test_occurrences_with_a_token_that_is_not_kept_do_not_count(tmp_path: Path) -> None:
    norms = torch.ones(5, 5)
    norms[1, 2] = norms[2, 1] = norms[3, 1] = norms[4, 3] = 5
    x = firing()
    x[1:4, 1:3, 1] = 0
    x[4, 3, 1] = 1
    found = measure(identity_sae(4), write_residuals(tmp_path, x, IDS, norms))
    shown = found.table[["n_measured", "n_documents", "feature", "recall", "base_rate"]].to_numpy().tolist()
    assert shown == [[2, 2, 1, [1.0, 1.0], 0]]


def test_phrases_without_an_occurrence_in_a_half_are_counted(tmp_path: Path) -> None:
    norms = torch.ones(5, 5)
    norms[3:, 1] = 5
    cache = write_residuals(tmp_path, firing(), IDS, norms)
    other = phrase(half((0, 1)), half((2,)), text=" Golden Gate elsewhere")
    found = measure(identity_sae(4), cache, [BRIDGED, other])
    assert found.table["text"].tolist() == [" Golden Gate elsewhere"]
    assert found.examples["text"].unique().tolist() == [" Golden Gate elsewhere"]
    (left_out,) = [row for row in found.measurements if row.metric == "phrases_left_out"]
    assert (left_out.value, left_out.n) == (0.5, 2)
    found = measure(identity_sae(4), cache)
    assert by_name(found) == {"phrases_left_out": 1}
    assert found.table.empty and found.examples.empty
    alone = phrase(half((0, 1), others=()), half((2,)))
    assert by_name(measure(identity_sae(4), cache, [alone])) == {"phrases_left_out": 1}


def test_luck_is_not_scored(tmp_path: Path) -> None:
    # Each of 300 features fires on every other token by chance: of half of 12 occurrences one of them covers nearly all.
    x = torch.randn(240, 5, 300, generator=torch.Generator().manual_seed(0))
    phrases = [phrase(half(range(first, first + 6)), half(range(first + 6, first + 12))) for first in range(0, 240, 12)]
    found = measure(identity_sae(300), write_residuals(tmp_path, x, IDS[:1].repeat(240, 1)), phrases)
    assert found.table["base_rate"].mean() == pytest.approx(0.5, abs=0.1)
    assert by_name(found)["phrase_token_recall"] == pytest.approx(0.5, abs=0.1)
    assert by_name(found)["phrase_coverage"] < 0.05
    in_sample = (x[:6, 1:3] > 0).double().mean(0).amin(0).max()
    assert in_sample > 0.8


def test_the_encoder_sees_the_tokens(tmp_path: Path) -> None:
    directions = torch.zeros(OTHER + 1, 4)
    directions[GATE, 1] = 1
    point = Point(architecture="relu", l1=1, expansion=1, table="none", encoder_input="without_unigram")
    eye, zeros = torch.eye(4), torch.zeros(4)
    sae = SAE(point, eye, eye.clone(), zeros, zeros.clone(), unigram_directions=directions).requires_grad_(False)
    x = firing()
    x[..., 3] = 0
    x[:, 3, 2] = 1
    (row,) = measure(sae, write_residuals(tmp_path, x, IDS)).table.to_dict("records")
    # The feature of the phrase is silent on its second token.
    assert (row["feature"], row["score"]) == (0, 0)


def test_an_untrained_encoder_is_the_floor(tmp_path: Path) -> None:
    x = torch.randn(240, 5, 6, generator=torch.Generator().manual_seed(1))
    x[:, 1:3] += 2 * torch.randn(6, generator=torch.Generator().manual_seed(2))
    cache = write_residuals(tmp_path, x, IDS[:1].repeat(240, 1))
    phrases = [phrase(half(range(12 * i, 12 * i + 6)), half(range(12 * i + 6, 12 * i + 12))) for i in range(20)]
    W_enc = torch.randn(30, 6, generator=torch.Generator().manual_seed(7))
    W_enc /= W_enc.norm(dim=1, keepdim=True)
    others = x[:, 3:].half().float().reshape(-1, 6)
    point = Point(k=2, expansion=5, table="none")
    sae = SAE(point, W_enc, W_enc.clone(), -W_enc @ others.mean(0), torch.zeros(6)).requires_grad_(False)
    # An SAE that is nothing but these directions on centred residuals is its own floor.
    found = measure(sae, cache, phrases, seed=7)
    assert found.table["untrained_score"].tolist() == found.table["score"].tolist()
    values = by_name(found)
    assert values["phrase_coverage_untrained"] == values["phrase_coverage"] > 0.3
    other = measure(sae, cache, phrases, seed=8)
    assert other.table["score"].tolist() == found.table["score"].tolist()
    assert other.table["untrained_score"].tolist() != found.table["untrained_score"].tolist()


def test_examples_are_of_the_first_phrases_and_begin_with_the_one_that_is_named(tmp_path: Path) -> None:
    phrases = [phrase(half((0, 1, 2)), half((3, 4)), text=f" phrase {name}") for name in "abcdefghij"]
    cache = write_residuals(tmp_path, firing(), IDS)
    order = measure(identity_sae(4), cache, phrases).examples["text"].drop_duplicates()
    assert order.tolist() == [f" phrase {name}" for name in "abcdefgh"]
    named = SETTINGS.model_copy(update={"example": "phrase j"})
    order = measure(identity_sae(4), cache, phrases, settings=named).examples["text"].drop_duplicates()
    assert order.tolist() == [f" phrase {name}" for name in "jabcdefg"]
    with pytest.raises(ValueError, match=r"phrases\.example: 'nowhere' is none"):
        measure(identity_sae(4), cache, phrases, settings=SETTINGS.model_copy(update={"example": "nowhere"}))


def test_residuals_of_other_tokens(tmp_path: Path) -> None:
    cache = write_residuals(tmp_path, firing(), IDS)
    message = r"index\.json: made from other tokens than the phrase ' Golden Gate'; find"
    for sides in ((half((0, 1, 2), position=2), half((3, 4))), (half((0, 1, 2)), half((3, 4), position=2))):
        with pytest.raises(ValueError, match=message):
            measure(identity_sae(4), cache, [phrase(*sides)])
    with pytest.raises(ValueError, match=r"index\.json: has fewer tokens than the phrases were found in; find"):
        measure(identity_sae(4), cache, [phrase(half((0, 1, 2)), half((3, 5)))])
