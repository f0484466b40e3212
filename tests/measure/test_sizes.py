"""Numbers of parameters and of operations."""

import pytest
import torch
from fixtures.evaluation import make_sae

from tsae.measure.sizes import measure_size

WEIGHTS = 2 * 6 * 4 + 6 + 4  # of 6 features of width 4, with their biases


@pytest.mark.parametrize(
    ("table", "of_table", "rows"),
    [
        ("none", 0, 6 + 2.5),
        ("fixed", 0, 6 + 2.5 + 1),
        ("scaled", 10, 6 + 2.5 + 1),
        ("embedding", 3 * 4, 6 + 2.5 + 1),
        ("learned", 10 * 4, 6 + 2.5 + 1),
    ],
)
def test_sizes_by_hand(table: str, of_table: int, rows: float) -> None:
    W_lookup = None if table == "none" else torch.ones(10, 4)
    sae = make_sae(torch.ones(6, 4), torch.ones(6, 4), k=3, W_lookup=W_lookup)
    sae.point = sae.point.model_copy(update={"table": table})
    value = {m.metric: m.value for m in measure_size(sae, l0=2.5, embedding_width=3)}
    assert value == {"n_parameters": WEIGHTS + of_table, "flops_per_token": 2 * 4 * rows}
