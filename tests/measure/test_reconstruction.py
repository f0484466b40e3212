"""Reconstruction on held-out tokens, sparsity and dead features, by hand."""

import pytest
import torch
from fixtures.evaluation import SETTINGS, Evaluated, by_name, identity_sae, make_sae, reconstruction

from tsae.measure.dead import measure_dead_in_training
from tsae.measure.reconstruction import break_down_nmse, reconstruct
from tsae.measure.sequences import Sequences
from tsae.measure.sums import DocumentSums
from tsae.profile.point import Point
from tsae.sae.architectures.gated import Gated
from tsae.sae.reconstruction import reconstruction_errors
from tsae.sae.sae import SAE

BY_HAND = Sequences(
    torch.tensor([[[50.0, 9], [3, 4], [2, 0]], [[50, 9], [100, 100], [-1, -2]]], dtype=torch.float16),
    torch.tensor([[0, 1, 2], [0, 1, 2]]),
    torch.tensor([[False, True, True], [False, False, True]]),
    torch.tensor([[4, 4, 4], [9, 9, 9]]),
)
# Features along both axes, and one that never fires; token 1 has the token-bias (0, 1).
W_ENC = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
W_LOOKUP = torch.tensor([[9.0, 9.0], [0.0, 1.0], [0.0, 0.0]])

X = torch.tensor([[3.0, 4.0], [0.0, 2.0], [6.0, 0.0]])
X_HAT = torch.tensor([[3.0, 1.0], [0.0, 2.0], [5.0, 2.0]])


def sae_by_hand(relu: bool) -> SAE:
    sae = make_sae(W_ENC, W_ENC.clone(), k=1, relu=relu, W_lookup=W_LOOKUP)
    sae.b_enc[2] = -5.0
    return sae


@pytest.mark.parametrize("batch_sequences", [1, 2])
def test_reconstruction_by_hand(batch_sequences: int) -> None:
    settings = SETTINGS.model_copy(update={"batch_sequences": batch_sequences})
    measured, fired = reconstruction(sae_by_hand(relu=True), BY_HAND, settings)
    # (3, 4) -> (0, 4 + 1), (2, 0) -> (2, 0), (-1, -2) -> (0, 0): errors 10, 0, 5 of 25, 4, 5.
    # Around the mean (4/3, 2/3) the squares sum to (125 + 8 + 113) / 9.
    expected = {
        "nmse": (10 / 25 + 0 + 1) / 3,
        "nmse_original": (10 / 25.0001 + 0 + 5 / 5.0001) / 3,
        # x . x_hat = 20, 4, 0 and |x_hat|^2 = 25, 4, 0.
        "cosine": (20 / 25 + 1 + 0) / 3,
        "l2_ratio": (1 + 1 + 0) / 3,
        "relative_reconstruction_bias": 29 / 24,
        "l0": 2 / 3,
        "l0_original": 2 / 3,
        "fvu": 15 / (246 / 9),
        "mse": 15 / 6,
        "dead_heldout": 1 / 3,
    }
    assert {m.metric: m.value for m in measured} == pytest.approx(expected, rel=1e-6)
    assert {m.metric: m.n for m in measured} == dict.fromkeys(expected, 3)
    assert fired.tolist() == [1, 1, 0]
    # The documents alone have 0.2 and 1.
    assert (by_name(measured)["nmse"].low, by_name(measured)["nmse"].high) == pytest.approx((0.2, 1.0))


def test_nmse_by_training_count_position_and_source_by_hand() -> None:
    # Token 1 was seen three times in training, token 2 never: 10 / 25, and 0 and 1.
    sums = DocumentSums(BY_HAND.documents)
    found, _ = reconstruct(sae_by_hand(relu=True), BY_HAND, SETTINGS, torch.tensor([]))
    # Document 4 is of source 2, document 9 of source 0.
    sources = torch.tensor([1, 1, 1, 1, 2, 1, 1, 1, 1, 0])
    break_down_nmse(found, BY_HAND, torch.tensor([7, 3, 0]), sources, sums)
    by_count = {at: ratio for metric, at, ratio in sums if metric == "nmse_by_count"}
    assert {at: ratio.value for at, ratio in by_count.items()} == pytest.approx({0: 0.5, 2: 0.4}, rel=1e-6)
    assert by_count[0].numerator.tolist() == pytest.approx([0, 1])
    assert by_count[2].denominator.tolist() == [1, 0]
    # Position 1 has 10 / 25, position 2 has 0 and 1.
    by_position = {at: ratio for metric, at, ratio in sums if metric == "nmse_by_position"}
    assert {at: ratio.value for at, ratio in by_position.items()} == pytest.approx({1: 0.4, 2: 0.5}, rel=1e-6)
    assert by_position[2].numerator.tolist() == pytest.approx([0, 1])
    # Document 4 has 10 / 25 and 0, document 9 has 1.
    by_source = {at: ratio for metric, at, ratio in sums if metric == "nmse_by_source"}
    assert {at: ratio.value for at, ratio in by_source.items()} == pytest.approx({0: 1, 2: 0.2}, rel=1e-6)


def test_reconstruction_without_relu_by_hand() -> None:
    measured, fired = reconstruction(sae_by_hand(relu=False), BY_HAND)
    # (-1, -2) -> (-1, 0): a negative activation counts for L0, and not for the authors'.
    expected = {"nmse": (0.4 + 0 + 0.8) / 3, "l0": 1.0, "l0_original": 2 / 3, "fvu": 14 / (246 / 9), "mse": 14 / 6}
    assert {name: by_name(measured)[name].value for name in expected} == pytest.approx(expected, rel=1e-6)
    assert fired.tolist() == [2, 1, 0]


def test_a_relu_sae_has_as_many_active_features_as_are_positive() -> None:
    point = Point(architecture="relu", l1=1, expansion=1, table="learned")
    sae = SAE(point, W_ENC, W_ENC.clone(), torch.tensor([0.0, 0.0, -5.0]), torch.zeros(2), W_LOOKUP)
    measured, fired = reconstruction(sae.requires_grad_(False), BY_HAND)
    # (3, 4) -> (3, 4 + 1), (2, 0) -> (2, 0), (-1, -2) -> (0, 0): of two, one and no active features.
    expected = {
        "nmse": (1 / 25 + 0 + 1) / 3,
        "l0": 1.0,
        "l0_original": 1.0,
        "fvu": 6 / (246 / 9),
        "mse": 6 / 6,
        "dead_heldout": 1 / 3,
    }
    assert {name: by_name(measured)[name].value for name in expected} == pytest.approx(expected, rel=1e-6)
    assert fired.tolist() == [2, 1, 0]


def test_a_gated_feature_without_magnitude_does_not_count() -> None:
    point = Point(architecture="gated", l1=1, expansion=1, table="none")
    sae = SAE(point, torch.eye(2), torch.eye(2), torch.zeros(2), torch.zeros(2))
    assert isinstance(sae.activation, Gated)
    sae.activation.b_mag.data.copy_(torch.tensor([0.0, -3.5]))
    measured, fired = reconstruction(sae.requires_grad_(False), BY_HAND)
    # (3, 4) -> (3, 0.5); with b_mag at -4.5 its second gate is open and its activation zero.
    assert (by_name(measured)["l0"].value, fired.tolist()) == (1.0, [2, 1])
    sae.activation.b_mag.data[1] = -4.5
    measured, fired = reconstruction(sae, BY_HAND)
    assert by_name(measured)["l0"].value == by_name(measured)["l0_original"].value == pytest.approx(2 / 3)
    assert fired.tolist() == [2, 0]


def test_the_encoder_sees_the_tokens_of_its_residuals() -> None:
    # At token 1 the second axis is taken out of the encoder's input, at token 2 the first one.
    point = Point(k=1, expansion=1, table="none", encoder_input="without_unigram", topk_relu=False)
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    eye, zeros = torch.eye(2), torch.zeros(2)
    sae = SAE(point, eye, eye.clone(), zeros, zeros.clone(), unigram_directions=directions).requires_grad_(False)
    measured, fired = reconstruction(sae, BY_HAND)
    # (3, 4) -> (3, 0); (2, 0) has nothing left; of (-1, -2) the zero is the largest.
    assert by_name(measured)["nmse"].value == pytest.approx((16 / 25 + 1 + 1) / 3, rel=1e-6)
    assert fired.tolist() == [1, 0]


def test_a_perfect_sae_reconstructs(evaluated: Evaluated) -> None:
    measured, fired = reconstruction(identity_sae(32), evaluated.whole)
    named = by_name(measured)
    assert [named[name].value for name in ("nmse", "nmse_original", "fvu", "mse", "dead_heldout")] == [0.0] * 5
    assert named["l0"].value == pytest.approx(32, abs=0.01)
    assert named["nmse"].n == evaluated.heldout.n_kept
    assert fired.min() > 0


def test_dead_in_training_by_hand() -> None:
    sae = sae_by_hand(relu=True)
    sae.metadata = {"tokens_trained": 20_000}
    # Silent for: ever, 0, 3999, 4000, 12 000, 12 288 and 12 289 tokens; the authors' window is 3 * 4096 = 12 288.
    last_fired = torch.tensor([-1, 20_000, 16_001, 16_000, 8_000, 7_712, 7_711])
    measured = measure_dead_in_training(sae, last_fired, SETTINGS)
    assert {m.metric: m.value for m in measured} == {
        "dead_training": pytest.approx(5 / 7),
        "dead_training_original": pytest.approx(3 / 7),
    }
    # A run shorter than the window: only features that never fired are dead.
    sae.metadata = {"tokens_trained": 3_000}
    measured = measure_dead_in_training(sae, torch.tensor([-1, 500, 3_000, 2_000]), SETTINGS)
    assert [m.value for m in measured] == [0.25, 0.25]


def test_errors_by_hand() -> None:
    errors = reconstruction_errors(X, X_HAT)
    assert {part.dtype for part in errors} == {torch.float64}
    assert errors.squared_error.tolist() == [9, 0, 5]
    assert errors.squared_norm.tolist() == [25, 4, 36]
    # The mean is (3, 2).
    assert errors.squared_deviation.tolist() == [4, 9, 13]
    assert errors.squared_norm_hat.tolist() == [10, 4, 29]
    assert errors.product.tolist() == [13, 4, 30]
    assert errors.cosine.tolist() == pytest.approx([13 / 250**0.5, 1, 30 / 1044**0.5], rel=1e-12)
    assert errors.l2_ratio.tolist() == pytest.approx([0.4**0.5, 1, (29 / 36) ** 0.5], rel=1e-12)
    assert errors.nmse.tolist() == pytest.approx([9 / 25, 0, 5 / 36], rel=1e-12)
    assert errors.nmse_original.tolist() == pytest.approx([9 / 25.0001, 0, 5 / 36.0001], rel=1e-12)


def test_errors_around_a_given_mean() -> None:
    errors = reconstruction_errors(X, X_HAT, torch.tensor([3.0, 0.0]))
    assert errors.squared_deviation.tolist() == [16, 13, 9]
    assert errors.squared_error.tolist() == [9, 0, 5]


def test_sums_of_squares_are_in_float64() -> None:
    # In float32, 4096^2 + 1 is 4096^2.
    errors = reconstruction_errors(torch.tensor([[4096.0, 1.0]]), torch.zeros(1, 2), torch.zeros(2))
    assert errors.squared_error.item() == errors.squared_norm.item() == errors.squared_deviation.item() == 4096**2 + 1
