import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

from tsae.measure.statistics import Bootstrap
from tsae.phrases import coverage
from tsae.phrases.collect_phrases import write_phrase_tables
from tsae.phrases.coverage import COLUMNS, EXAMPLE_COLUMNS, PhraseMeasurements
from tsae.phrases.firings import REMOVALS
from tsae.phrases.measure_phrases import write_phrase_table
from tsae.phrases.phrases import Context, Half, Phrase
from tsae.profile.evaluation import Phrases
from tsae.profile.point import Point
from tsae.residuals.read import ResidualCache
from tsae.sae.sae import SAE
from tsae.store.tensors import save_tensors

SETTINGS = Phrases(bootstrap=20)
BOS, DOT, THE, GOLDEN, GATE, OTHER = range(6)
N_CTX = 5
# Each sequence is a document: BOS, " Golden", " Gate" and two other tokens.
IDS = torch.tensor([[BOS, GOLDEN, GATE, DOT, THE]]).repeat(5, 1)
RELU = {"architecture": "relu", "l1": 1}


def write_residuals(folder: Path, x: Tensor, ids: Tensor, norms: Tensor | None = None) -> ResidualCache:
    """A cache of residuals x (n_seq, n_ctx, d) in shards of two sequences; `norms` (n_seq, n_ctx) above 4 are not kept."""
    n_sequences, n_ctx, d_model = x.shape
    norms = torch.ones(n_sequences, n_ctx) if norms is None else norms
    shards = []
    for first in range(0, n_sequences, 2):
        part = slice(first, first + 2)
        shards.append(folder / f"{first}.safetensors")
        save_tensors(
            shards[-1],
            {
                "residuals": x[part].flatten(0, 1).half(),
                "tokens": ids[part].flatten().int(),
                "positions": torch.arange(n_ctx, dtype=torch.int32).repeat(len(x[part])),
                "norms": norms[part].flatten().float(),
            },
            {"fingerprint": "f"},
        )
    n_kept = int((norms[:, 1:] <= 4).sum())
    return ResidualCache(
        d_model=d_model,
        vocab_size=OTHER + 1,
        n_ctx=n_ctx,
        n_sequences=n_sequences,
        n_rows=n_sequences * n_ctx,
        n_kept=n_kept,
        n_outliers=n_sequences * (n_ctx - 1) - n_kept,
        scale=1.0,
        median_norm=1.0,
        mean_norm=1.0,
        max_norm=4.0,
        include_bos=False,
        shards=shards,
        shard_sequences=2,
        batch_sequences=1,
        layer=0,
        fingerprint="f",
        statistics=folder / "layer0.safetensors",
        streamed=frozenset(),
        sampled=tuple(range(len(shards))),
        made_from={},
        index=folder / "index.json",
    )


def half(documents: Sequence[int], position: int = 1, others: Sequence[int] = (3, 4)) -> Half:
    """An occurrence in each document, and other tokens of it by their position."""
    return Half(
        tuple(N_CTX * document + position for document in documents),
        tuple(documents),
        tuple(N_CTX * document + place for document in documents for place in others),
    )


def phrase(
    choosing: Half, scoring: Half, tokens: tuple[int, ...] = (GOLDEN, GATE), text: str = " Golden Gate"
) -> Phrase:
    shown = Context(N_CTX * scoring.documents[0] + 1, (" Golden", " Gate", ".", " the"), 0)
    return Phrase(tokens, text, 7, choosing, scoring, shown)


BRIDGED = phrase(half((0, 1, 2)), half((3, 4)))


def identity_sae(n_features: int, settings: dict = RELU) -> SAE:
    """Its activations are the residual's positive entries."""
    eye, zeros = torch.eye(n_features), torch.zeros(n_features)
    point = Point(**settings, expansion=1, table="none")
    return SAE(point, eye, eye.clone(), zeros, zeros.clone()).requires_grad_(False)


def measure(
    sae: SAE,
    cache: ResidualCache,
    phrases: Sequence[Phrase] = (BRIDGED,),
    unigrams: Tensor | None = None,
    settings: Phrases = SETTINGS,
    seed: int = 0,
) -> PhraseMeasurements:
    unigrams = torch.ones(cache.vocab_size, cache.d_model) if unigrams is None else unigrams
    return coverage.measure_phrases(sae, unigrams, cache, phrases, settings, seed)


def by_name(found: PhraseMeasurements) -> dict[str, float]:
    return {row.metric: row.value for row in found.measurements}


def firing() -> Tensor:
    """Residuals (5, 5, 4) of what fires: everywhere; on the phrase; on its first token; on the phrase and elsewhere."""
    x = torch.zeros(5, 5, 4)
    x[:, :, 0] = 1
    x[:, 1:3, 1] = 2
    x[:, 1, 2] = 3
    x[:, 1:4, 3] = 4
    return x


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


# --- without the unigram direction -----------------------------------------------------------------------------------

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


# --- what does not fit, and files ------------------------------------------------------------------------------------


def test_residuals_of_other_tokens(tmp_path: Path) -> None:
    cache = write_residuals(tmp_path, firing(), IDS)
    message = r"index\.json: made from other tokens than the phrase ' Golden Gate'; find"
    for sides in ((half((0, 1, 2), position=2), half((3, 4))), (half((0, 1, 2)), half((3, 4), position=2))):
        with pytest.raises(ValueError, match=message):
            measure(identity_sae(4), cache, [phrase(*sides)])
    with pytest.raises(ValueError, match=r"index\.json: has fewer tokens than the phrases were found in; find"):
        measure(identity_sae(4), cache, [phrase(half((0, 1, 2)), half((3, 5)))])


def test_nothing_to_measure(tmp_path: Path) -> None:
    found = measure(identity_sae(4), write_residuals(tmp_path, firing(), IDS), [])
    assert found.measurements == []
    write_phrase_table(tmp_path / "phrases.csv", found.table)
    assert (tmp_path / "phrases.csv").read_text() == ",".join(COLUMNS) + "\n"
    write_phrase_table(tmp_path / "examples.csv", found.examples)
    assert (tmp_path / "examples.csv").read_text() == ",".join(EXAMPLE_COLUMNS) + "\n"


def test_the_table_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "phrases.csv"
    frame = measure(identity_sae(4), write_residuals(tmp_path, firing(), IDS)).table
    recalls = pd.Series([[1 / 3, 1.0]], dtype=object)
    write_phrase_table(path, frame.assign(recall=recalls, untrained_score=0.125))
    assert path.read_text().splitlines() == [
        ",".join(COLUMNS),
        ' Golden Gate,"[3, 4]",7,5,5,1,0,"[0.333333, 1.0]",1,4,0,0,0,0,0,0,0,"[1.0, 1.0]",0.125',
    ]
    write_phrase_tables(tmp_path / "both.csv", [path, path])
    read = pd.read_csv(tmp_path / "both.csv")
    assert json.loads(read["recall"][1]) == [0.333333, 1.0]
    assert read["mean_recall"].tolist() == pytest.approx([2 / 3, 2 / 3], abs=1e-5)
