"""Features by firing rate: how many there are, and how many of them stand for one token."""

import numpy as np
import pandas as pd
import torch

from tsae.measure.intervals import share
from tsae.measure.measurement import Measurement
from tsae.measure.similarity import BAND

# Lower edges of bins of firing rates; the first bin has the features that never fire.
EDGES = (0.0, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3)
MOST = 0.5  # of the activation mass
METRICS = {
    "density": "share of features whose firing rate on held-out tokens is in the bin from `at` to the next of 0, 1e-5, 3e-5, 1e-4 ... 0.3; at 0, of those that never fire",
    "simple_share_by_rate": "share of features of one bin of firing rates with at least half of their activation mass on one token, among those that fire often enough to be judged",
    "token_direction_share_by_rate": "share of features of one bin of firing rates whose most similar unigram residual has a cosine similarity of 0.4 or more, among the same features",
}


def rate_bins(rates: np.ndarray) -> np.ndarray:
    """The lower edge of each firing rate's bin (n,); a rate below 1e-5 that is not 0 is in the bin of 1e-5."""
    edges = np.array(EDGES)
    bins = edges[np.searchsorted(edges, rates, side="right") - 1]
    return np.where((rates > 0) & (bins == 0), edges[1], bins)


def measure_by_rate(frame: pd.DataFrame, min_firings: int, samples: int, seed: int) -> list[Measurement]:
    """The density of features over firing rates, and the shares in each bin that stand for one token.

    Args:
        frame: of `tsae.measure.features.feature_statistics`, of at least one feature.
        min_firings: features that fire less often count for the density alone, since a single firing is always on a single token.
        samples: bootstrap samples over features.
        seed: seed of the bootstrap.

    Returns:
        A row of the density per bin, and two rows per bin that has features to judge.
    """
    bins = rate_bins(frame["firing_rate"].to_numpy())
    rows = [share("density", torch.from_numpy(bins == edge), samples, seed, edge) for edge in EDGES]
    hits = {
        "simple_share_by_rate": frame["top_token_share"].to_numpy() >= MOST,
        "token_direction_share_by_rate": frame["unigram_cosine"].to_numpy() >= BAND[0],
    }
    judged = (frame["firings"] >= min_firings).to_numpy()
    for edge in EDGES:
        chosen = judged & (bins == edge)
        if chosen.any():
            rows += [share(name, torch.from_numpy(hit[chosen]), samples, seed, edge) for name, hit in hits.items()]
    return rows
