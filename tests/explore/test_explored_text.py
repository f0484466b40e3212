"""How a page divides residuals into parts."""

import numpy as np
import pytest
from fixtures.evaluation import Evaluated
from fixtures.training import LAYER

from tsae.explore.text import TOP_FEATURES, Parts, columns_of_text, divide
from tsae.sae.checkpoint import load
from tsae.sae.firings import Encoded, encode_kept


@pytest.mark.parametrize("name", ["none", "learned"])
def test_parts_add_up_to_the_residual(evaluated: Evaluated, name: str) -> None:
    sae, cache, whole = load(evaluated.saes[name]), evaluated.heldout, evaluated.whole
    assert cache.layer == LAYER
    x, tokens = whole.residuals[whole.kept].float(), whole.tokens[whole.kept]
    encoded: list[Encoded] = []
    parts = divide(sae, x.mean(0), encode_kept(sae, cache), encoded)
    assert parts.places.tolist() == whole.kept.flatten().nonzero().flatten().tolist()
    acts = sae.encode(x, tokens)
    error = x - sae.decode(acts, tokens)
    rest = ((error * x).sum(1) / x.square().sum(1)).numpy()
    np.testing.assert_allclose(parts.shares.sum(1) + rest, 1, atol=1e-4)
    np.testing.assert_allclose(parts.squared_errors, error.square().sum(1), rtol=1e-3)
    np.testing.assert_allclose(
        parts.table_errors, (x - sae.b_dec - sae.token_biases(tokens)).square().sum(1), rtol=1e-3
    )
    assert (parts.shares[:, 1] == 0).all() == (name == "none")
    values, features = acts.topk(4, dim=1)
    np.testing.assert_allclose(parts.activations[:, :4], values, rtol=1e-4, atol=1e-4)
    assert (parts.top[:, :4] == features.numpy())[values.numpy() > 0].mean() > 0.99
    assert parts.n_active.tolist() == (acts != 0).sum(1).tolist()
    assert all(len(part.residuals) == 0 for part in encoded)


def test_columns_are_in_thousandths_and_empty_where_nothing_is_kept() -> None:
    top = np.full((2, TOP_FEATURES), 7)
    ones = np.ones(2)
    parts = Parts(
        np.array([1, 5]),
        np.array([3, 3]),
        4 * ones,
        np.array([1.0, 1e9]),
        ones,
        ones,
        np.array([[0.1, -0.25, 0.9], [50, 0, -50]]),
        np.array([2, 3]),
        top,
        top / 2,
    )
    found = columns_of_text(parts, 300, 4, 8)
    assert found["shares"].tolist() == [[0, 0, 0], [32767, 0, -32767], [0, 0, 0], [0, 0, 0]]
    assert found["nmse"].tolist() == [0, 65535, 0, 0] and found["n_active"].tolist() == [0, 3, 0, 0]
    assert found["top"].dtype == np.uint16 and found["activations"][1].tolist() == [3.5] * TOP_FEATURES
    assert columns_of_text(parts, 200, 0, 4)["shares"][1].tolist() == [100, -250, 900]
    assert columns_of_text(parts, 200, 0, 4)["nmse"][1] == 250
