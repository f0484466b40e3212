"""Features by firing rate, by hand."""

import numpy as np
import pandas as pd
import pytest

from tsae.measure.rates import EDGES, measure_by_rate, rate_bins


def test_bins_begin_at_their_edges() -> None:
    rates = np.array([0, 1e-6, 1e-5, 2.9e-5, 3e-5, 0.001, 0.0099, 0.01, 0.3, 1])
    assert rate_bins(rates).tolist() == [0, 1e-5, 1e-5, 1e-5, 3e-5, 0.001, 0.003, 0.01, 0.3, 0.3]


def test_shares_of_each_bin() -> None:
    frame = pd.DataFrame(
        {
            "firings": [0, 1, 20, 30, 40, 4000],
            "firing_rate": [0, 1e-4, 0.002, 0.0025, 0.004, 0.4],
            "top_token_share": [np.nan, 1.0, 0.5, 0.49, 0.9, 0.1],
            "unigram_cosine": [0.9, 0.9, 0.39, 0.1, 0.4, 0.2],
        }
    )
    rows = measure_by_rate(frame, min_firings=10, samples=100, seed=0)
    found = {(m.metric, m.at): (m.value, m.n) for m in rows}
    assert {at: found["density", at] for at in (0.0, 1e-4, 1e-3, 3e-3, 0.3)} == {
        0.0: (1 / 6, 6),
        1e-4: (1 / 6, 6),
        1e-3: (2 / 6, 6),
        3e-3: (1 / 6, 6),
        0.3: (1 / 6, 6),
    }
    assert sum(found["density", at][0] for at in EDGES) == pytest.approx(1)
    # The feature that fires once is not judged, though its mass is on one token.
    assert {at: value for (metric, at), value in found.items() if metric == "simple_share_by_rate"} == {
        1e-3: (0.5, 2),
        3e-3: (1, 1),
        0.3: (0, 1),
    }
    assert found["token_direction_share_by_rate", 1e-3] == (0, 2)
    assert found["token_direction_share_by_rate", 3e-3] == (1, 1)
