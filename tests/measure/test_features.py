import math
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pandas as pd
import pytest
import torch
from fixtures.evaluation import SETTINGS as EVALUATION
from fixtures.evaluation import reconstruction
from torch import Tensor

from tsae.measure.features import LISTS, Firings, feature_statistics, read_features, simple_shares, write_features
from tsae.measure.intervals import share
from tsae.measure.sequences import Sequences
from tsae.profile.evaluation import Features
from tsae.profile.point import Point
from tsae.sae.sae import SAE

SETTINGS = Features(n_contexts=2, context_before=1, context_after=1)

# Two sequences of four tokens. BOS is 0; the last token of the second one is of outlying norm.
TOKENS = torch.tensor([[0, 5, 7, 5], [0, 7, 5, 7]])
KEPT = torch.tensor([[False, True, True, True], [False, True, True, False]])
DOCUMENTS = torch.tensor([[3, 3, 3, 8], [8, 8, 8, 8]])
# Activations of three features: the last one fires on no kept token.
ACTIVATIONS = torch.tensor(
    [
        [[9.0, 9, 9], [1, 8, 0], [2, 0, 0], [3, 0, 0]],
        [[9.0, 9, 9], [4, 0, 0], [6, 0, 0], [50, 50, 50]],
    ]
)
UNIGRAMS = torch.tensor([0.25, 0.5, -0.75]), torch.tensor([4, 0, 2])
TOKEN_BIASES = torch.tensor([0.125, 1.0, 0.0]), torch.tensor([1, 5, 7])


def identity_sae(n_features: int = 3) -> SAE:
    """Its activations are the residual's positive entries."""
    eye, zeros = torch.eye(n_features), torch.zeros(n_features)
    point = Point(architecture="relu", l1=1, expansion=1, table="none")
    return SAE(point, eye, eye.clone(), zeros, zeros.clone()).requires_grad_(False)


def statistics(
    sae: SAE,
    sequences: Sequences,
    settings: Features = SETTINGS,
    batch_sequences: int = 8,
    unigrams: tuple[Tensor, Tensor] = UNIGRAMS,
    token_biases: tuple[Tensor, Tensor] = TOKEN_BIASES,
) -> pd.DataFrame:
    firings: list[Firings] = []
    reconstruction(sae, sequences, EVALUATION.model_copy(update={"batch_sequences": batch_sequences}), firings)
    return feature_statistics(sae.n_features, firings, sequences, unigrams, token_biases, settings)


def by_hand(activations: Tensor = ACTIVATIONS, settings: Features = SETTINGS, batch_sequences: int = 8) -> pd.DataFrame:
    return statistics(identity_sae(), Sequences(activations.half(), TOKENS, KEPT, DOCUMENTS), settings, batch_sequences)


def test_firings_by_hand() -> None:
    frame = by_hand()
    assert frame["feature"].tolist() == [0, 1, 2]
    assert frame["firings"].tolist() == [5, 1, 0]
    assert frame["firing_rate"].tolist() == [1.0, 0.2, 0.0]
    assert frame["mean_activation"].tolist()[:2] == pytest.approx([16 / 5, 8])
    assert frame["max_activation"].tolist()[:2] == [6, 8]
    assert frame.loc[2, ["mean_activation", "max_activation"]].isna().all()


def test_top_token_by_hand() -> None:
    frame = by_hand()
    # Of feature 0, token 5 has 1 + 3 + 6 of 16 and token 7 has 2 + 4.
    assert frame["top_token"].tolist() == [5, 5, pd.NA]
    assert frame["top_token_share"].tolist()[:2] == [10 / 16, 1]
    assert math.isnan(frame["top_token_share"][2])


def test_top_bigram_by_hand() -> None:
    frame = by_hand()
    # (7, 5) has 3 + 6, (0, 7) has 4, (5, 7) has 2 and (0, 5) has 1: BOS comes before position 1.
    assert frame["top_bigram_previous"].tolist() == [7, 0, pd.NA]
    assert frame["top_bigram_token"].tolist() == [5, 5, pd.NA]
    assert frame["top_bigram_share"].tolist()[:2] == [9 / 16, 1]
    assert math.isnan(frame["top_bigram_share"][2])


def test_contexts_by_hand() -> None:
    frame = by_hand()
    assert frame["context_activations"].tolist() == [[6, 4], [8], []]
    assert frame["context_sequences"].tolist() == [[1, 1], [0], []]
    assert frame["context_positions"].tolist() == [[2, 1], [1], []]
    assert frame["context_documents"].tolist() == [[8, 8], [3], []]
    assert frame["context_tokens"].tolist() == [[[7, 5, 7], [0, 7, 5]], [[0, 5, 7]], []]
    assert frame["context_active"].tolist() == [[1, 1], [1], []]


def test_contexts_end_where_the_sequence_ends() -> None:
    frame = by_hand(settings=Features(n_contexts=9, context_before=2, context_after=2))
    assert frame["context_activations"][0] == [6, 4, 3, 2, 1]
    assert frame["context_tokens"][0] == [[0, 7, 5, 7], [0, 7, 5, 7], [5, 7, 5], [0, 5, 7, 5], [0, 5, 7, 5]]
    assert frame["context_active"][0] == [2, 1, 2, 2, 1]
    alone = by_hand(settings=Features(n_contexts=1, context_before=0, context_after=0))
    assert alone["context_tokens"].tolist() == [[[5]], [[5]], []]
    assert alone["context_active"].tolist() == [[0], [0], []]


def test_similarities_are_those_given() -> None:
    frame = by_hand()
    for name, (values, tokens) in (("unigram", UNIGRAMS), ("token_bias", TOKEN_BIASES)):
        assert frame[f"{name}_cosine"].tolist() == values.tolist()
        assert frame[f"{name}_token"].tolist() == tokens.tolist()


def test_batches_make_no_difference() -> None:
    pd.testing.assert_frame_equal(by_hand(batch_sequences=1), by_hand(batch_sequences=2))


def test_ties_go_to_the_lowest_token_and_the_earliest_context() -> None:
    equal = torch.zeros(2, 4, 3)
    equal[0, 2:] = equal[1, 1:3] = 1  # 7, 5, 7, 5
    frame = by_hand(equal)
    assert frame["top_token"].tolist() == [5, 5, 5]
    assert frame["top_token_share"].tolist() == [0.5] * 3
    assert frame["context_sequences"].tolist() == [[0, 0]] * 3
    assert frame["context_positions"].tolist() == [[2, 3]] * 3


def test_a_kept_bos_follows_itself() -> None:
    sequences = Sequences(torch.ones(2, 4, 3).half(), TOKENS, torch.ones(2, 4, dtype=torch.bool), DOCUMENTS)
    sequences.residuals[:, 1:] = 0
    frame = statistics(identity_sae(), sequences)
    assert frame[["top_bigram_previous", "top_bigram_token", "top_bigram_share"]].to_numpy()[0].tolist() == [0, 0, 1]
    assert frame["context_tokens"][0] == [[0, 5], [0, 7]]
    assert frame["context_active"][0] == [0, 0]


def test_no_feature_fires() -> None:
    frame = by_hand(-ACTIVATIONS)
    assert frame["firings"].tolist() == [0, 0, 0]
    assert frame["top_token"].isna().all()
    assert frame["context_tokens"].tolist() == [[], [], []]


@pytest.mark.parametrize("topk_relu", [True, False])
@pytest.mark.parametrize("encoder_input", ["residual", "without_unigram"])
def test_statistics_are_those_of_loops(encoder_input: str, topk_relu: bool) -> None:
    d, n_features, vocabulary, n_sequences, n_ctx = 6, 30, 5, 9, 12
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    point = Point(k=5, expansion=5, table="none", topk_relu=topk_relu, encoder_input=encoder_input)
    W_enc, b_enc = normal(n_features, d), normal(n_features) - 1
    b_enc[3] = -100  # never among the largest
    directions = torch.nn.functional.normalize(normal(vocabulary, d)) if encoder_input == "without_unigram" else None
    sae = SAE(point, W_enc, normal(n_features, d), b_enc, normal(d), unigram_directions=directions)
    sae.requires_grad_(False)
    sequences = Sequences(
        normal(n_sequences, n_ctx, d).half(),
        torch.randint(vocabulary, (n_sequences, n_ctx), generator=generator),
        torch.rand(n_sequences, n_ctx, generator=generator) < 0.8,
        torch.randint(4, (n_sequences, n_ctx), generator=generator),
    )
    sequences.kept[:, 0] = False
    nearest = torch.rand(n_features), torch.zeros(n_features, dtype=torch.int64)
    frame = statistics(sae, sequences, Features(n_contexts=3), 4, nearest, nearest)

    acts = sae.encode(sequences.residuals.float(), sequences.tokens)
    assert (acts < 0).any() != topk_relu
    assert ((acts != 0).sum(-1) < 5).any() == topk_relu
    assert frame["firings"][3] == 0
    for feature in range(n_features):
        mass: dict[tuple[int, ...], float] = defaultdict(float)
        firings = []
        for sequence in range(n_sequences):
            for position in range(1, n_ctx):
                value = acts[sequence, position, feature].item()
                if sequences.kept[sequence, position] and value != 0:
                    previous, token = sequences.tokens[sequence, position - 1 : position + 1].tolist()
                    firings.append((-value, sequence, position))
                    mass[token,] += abs(value)
                    mass[previous, token] += abs(value)
        row = frame.loc[feature]
        assert row["firings"] == len(firings)
        if not firings:
            continue
        values = [-value for value, _, _ in firings]
        assert row["mean_activation"] == pytest.approx(sum(values) / len(values), rel=1e-5, abs=1e-6)
        assert row["max_activation"] == pytest.approx(max(values), rel=1e-5)
        top = sorted(firings)[:3]
        assert list(zip(row["context_sequences"], row["context_positions"], strict=True)) == [f[1:] for f in top]
        assert row["context_activations"] == pytest.approx([-f[0] for f in top], rel=1e-5)
        assert row["context_documents"] == [int(sequences.documents[f[1:]]) for f in top]
        total = sum(abs(value) for value in values)
        for length, columns, name in (
            (1, ["top_token"], "top_token_share"),
            (2, ["top_bigram_previous", "top_bigram_token"], "top_bigram_share"),
        ):
            best = max((key for key in mass if len(key) == length), key=lambda key: mass[key])
            assert tuple(row[columns]) == best
            assert row[name] == pytest.approx(mass[best] / total, rel=1e-5)


def test_inputs_that_do_not_fit() -> None:
    sequences = Sequences(ACTIVATIONS.half(), TOKENS, KEPT, DOCUMENTS)

    def run(sequences: Sequences, unigrams: tuple[Tensor, Tensor] = UNIGRAMS) -> None:
        feature_statistics(3, [], sequences, unigrams, TOKEN_BIASES, SETTINGS)

    with pytest.raises(ValueError, match="no token is kept"):
        run(sequences._replace(kept=torch.zeros_like(KEPT)))
    with pytest.raises(ValueError, match=r"nearest_unigrams: \[\(2,\), \(3,\)\] for an SAE of 3 features"):
        run(sequences, unigrams=(UNIGRAMS[0][:2], UNIGRAMS[1]))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    frame, path = by_hand(), tmp_path / "deep" / "features.parquet"
    write_features(path, frame)
    read = read_features(path)
    pd.testing.assert_frame_equal(read, frame)
    for name in LISTS:
        assert read[name].tolist() == frame[name].tolist()
        assert {type(entry) for entry in read[name]} == {list}
    assert [found.name for found in path.parent.iterdir() if found.suffix != ".sha256"] == ["features.parquet"]


def test_the_same_statistics_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_features(tmp_path / name, by_hand())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "features.parquet"
    write_features(path, by_hand())
    before = path.read_bytes()
    with pytest.raises(Exception, match="mixed"):
        write_features(path, by_hand().assign(mixed=pd.Series([1, "a", []], dtype=object)))
    assert path.read_bytes() == before
    assert [found for found in tmp_path.iterdir() if found.suffix != ".sha256"] == [path]


def test_reading_what_is_no_table_of_features(tmp_path: Path) -> None:
    path = tmp_path / "features.parquet"
    with pytest.raises(ValueError, match=r"features\.parquet: not a whole Parquet file"):
        read_features(path)
    write_features(path, by_hand())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"features\.parquet: damaged"):
        read_features(path)
    other = tmp_path / "other.parquet"
    by_hand().drop(columns="context_active").to_parquet(other)
    with pytest.raises(ValueError, match=r"other\.parquet: no table of features; it lacks context_active"):
        read_features(other)


JUDGED = pd.DataFrame(
    {
        "firings": [10, 9, 200, 10, 0],
        "top_token_share": [0.5, 1.0, 0.25, 0.75, math.nan],
        "top_bigram_share": [0.5, 1.0, 0.125, 0.25, math.nan],
    }
)


def test_simple_shares_by_hand() -> None:
    rows = simple_shares(JUDGED, min_firings=10, thresholds=[0, 0.5, 1], samples=100, seed=3)
    assert [(row.metric, row.at, row.value, row.n) for row in rows] == [
        ("simple_unigram", 0, 1.0, 3),
        ("simple_unigram", 0.5, pytest.approx(2 / 3), 3),
        ("simple_unigram", 1, 0.0, 3),
        ("simple_bigram", 0, 1.0, 3),
        ("simple_bigram", 0.5, pytest.approx(1 / 3), 3),
        ("simple_bigram", 1, 0.0, 3),
    ]
    assert rows[1] == share("simple_unigram", torch.tensor([True, False, True]), samples=100, seed=3, at=0.5)


def test_simple_shares_of_features_that_fire_too_seldom() -> None:
    assert simple_shares(JUDGED, min_firings=201, thresholds=[0.5], samples=100, seed=0) == []
    (unigram, bigram) = simple_shares(JUDGED, min_firings=200, thresholds=[0.25], samples=100, seed=0)
    assert (unigram.value, unigram.n, bigram.value, bigram.n) == (1, 1, 0, 1)


def test_statistics_import_no_model_library() -> None:
    code = "import sys, tsae.measure.features, tsae.phrases.find_phrases; print(*{'transformers', 'transformer_lens'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.split() == []
