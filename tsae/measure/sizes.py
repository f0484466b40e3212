"""Parameters and arithmetic of an SAE."""

from tsae.measure.measurement import Measurement
from tsae.sae.sae import SAE

METRICS = {
    "n_parameters": "numbers that training moves, with all rows of a learned table and none of a fixed one [numbers]",
    "flops_per_token": "arithmetic of one token's reconstruction, 2 d (F + L0 + 1), or 2 d (F + L0) without a table [operations]",
}


def measure_size(sae: SAE, l0: float, embedding_width: int) -> list[Measurement]:
    """`n_parameters`, the numbers that training moves, and `flops_per_token`, of one token's reconstruction.

    A learned table counts with all its rows, a scaled one with a number per token, a mapped embedding with the map, a
    fixed one not at all. Operations are a multiplication and an addition per number of the encoder's product, the
    active decoder rows and the row of the table: 2 d (F + L0 + 1).

    Args:
        sae: the SAE.
        l0: its mean number of active features.
        embedding_width: width of the model's embedding.
    """
    n_features, d_model = sae.W_dec.shape
    n_rows = 0 if sae.W_lookup is None else len(sae.W_lookup)
    of_table = {
        "none": 0,
        "fixed": 0,
        "scaled": n_rows,
        "embedding": embedding_width * d_model,
        "learned": n_rows * d_model,
    }[sae.point.table]
    n_parameters = sum(parameter.numel() for parameter in sae.parameters()) + of_table
    rows_read = n_features + l0 + (sae.W_lookup is not None)
    return [
        Measurement("n_parameters", float(n_parameters)),
        Measurement("flops_per_token", 2.0 * d_model * rows_read),
    ]
