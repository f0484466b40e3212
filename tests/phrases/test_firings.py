import numpy as np
import pytest
import torch
from torch import Tensor

from tsae.phrases.firings import REMOVALS, activations, draw_others, encoders, rates, remove_span, without_unigrams
from tsae.profile.point import Point
from tsae.sae.sae import SAE


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_sae(W_enc: Tensor, b_enc: Tensor, k: int) -> SAE:
    point = Point(k=k, expansion=1, table="none")
    return SAE(point, W_enc, W_enc.clone(), b_enc, torch.zeros(W_enc.shape[1])).requires_grad_(False)


def test_rates_and_activations_are_those_of_the_encoder() -> None:
    sae, mean = make_sae(random(20, 6), random(20, seed=1), k=3), random(6, seed=2)
    inputs = random(7, 2, 6, seed=3)
    trained, _ = encoders(sae, mean, 0)
    acts = sae.encode(inputs + mean)
    assert torch.equal(rates(trained, inputs, 20), (acts != 0).double().mean(0))
    for feature in range(20):
        torch.testing.assert_close(activations(trained, inputs, feature), acts[..., feature])
    assert rates(trained, inputs, 20).sum() == pytest.approx(2 * 3, abs=1.5)


def test_an_untrained_encoder_has_random_directions_on_centred_inputs() -> None:
    sae, inputs = make_sae(random(20, 6), random(20, seed=1), k=3), random(9, 6, seed=3)
    _, untrained = encoders(sae, random(6, seed=2), seed=5)
    directions = random(20, 6, seed=5)
    expected = make_sae(directions / directions.norm(dim=1, keepdim=True), torch.zeros(20), k=3).encode(inputs)
    for feature in range(20):
        torch.testing.assert_close(activations(untrained, inputs, feature), expected[:, feature])


def naive(vector: Tensor, rows: Tensor) -> Tensor:
    """A vector less its part in a span, by least squares."""
    coefficients = np.linalg.lstsq(rows.double().numpy().T, vector.double().numpy(), rcond=1e-5)[0]
    return vector - torch.from_numpy(rows.double().numpy().T @ coefficients).float()


def test_a_span_is_removed() -> None:
    inputs, rows = random(5, 3, 8), random(5, 3, 2, 8, seed=1)
    rows[0, 0, 1] = 3 * rows[0, 0, 0]
    rows[0, 1] = 0
    rows[0, 2, 1] = rows[0, 2, 0] + 1e-2 * random(8, seed=2)
    found = remove_span(inputs, rows)
    for i in range(5):
        for j in range(3):
            torch.testing.assert_close(found[i, j], naive(inputs[i, j], rows[i, j]), atol=1e-5, rtol=1e-4)
    assert torch.equal(found[0, 1], inputs[0, 1])
    by_hand = remove_span(torch.tensor([3.0, 4.0, 5.0]), torch.tensor([[0.0, 2.0, 0.0]]))
    assert by_hand.tolist() == [3, 0, 5]


def test_what_is_taken_out_of_the_input_of_a_phrase() -> None:
    m, n, d = 4, 3, 10
    inputs, own, other, mean = random(m, n, d), random(n, d, seed=1), random(m, n, d, seed=2), random(d, seed=3)
    found = without_unigrams(inputs, own, other, mean)
    assert tuple(found) == REMOVALS
    for i in range(m):
        for j in range(n):
            x, u, w = inputs[i, j], own[j] - mean, other[i, j] - mean
            expected = {
                "lost": naive(x, u[None]),
                "lost_control": naive(x, w[None]),
                "lost_matched": x - (x @ u / u.norm()) * w / w.norm(),
                "lost_raw": naive(x, own[j][None]),
                "lost_raw_control": naive(x, other[i, j][None]),
                "lost_span": naive(x, own - mean),
                "lost_span_control": naive(x, other[i] - mean),
            }
            for name, vector in expected.items():
                torch.testing.assert_close(found[name][i, j], vector, atol=1e-5, rtol=1e-4)
            moved = [(x - found[name][i, j]).norm().item() for name in ("lost", "lost_matched")]
            assert moved[0] == pytest.approx(moved[1], rel=1e-4)


def test_other_tokens_are_those_of_the_pool_but_for_the_phrases() -> None:
    pool = [3, 1, 1, 2, 4, 0]
    drawn = draw_others(np.random.default_rng(0), (3, 0, 3), 400, pool)
    assert drawn.shape == (400, 3)
    assert set(drawn.flatten().tolist()) == {1, 2, 4}
    counts = torch.bincount(drawn.flatten())[[1, 2, 4]]
    assert (counts - torch.tensor([600, 300, 300])).abs().max() < 60  # 1 is there twice
    assert torch.equal(drawn, draw_others(np.random.default_rng(0), (3, 0, 3), 400, pool))
    with pytest.raises(ValueError, match="nothing to compare with"):
        draw_others(np.random.default_rng(0), (3, 0), 1, [0, 3])
