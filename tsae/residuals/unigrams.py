"""Unigram residuals, the start of the token-bias table, and the model's embedding.

The unigram residual of token t at layer L is the residual at the last position of the prompt [BOS, *prefix, t].
"""

from pathlib import Path

import torch
from torch import Tensor

from tsae.store.tensors import load_as


def load_unigrams(path: Path) -> Tensor:
    """Read the unigram residuals of one layer, (vocab_size, d_model) float32.

    Raises:
        ValueError: the file is missing, truncated, or holds no unigram residuals.
    """
    return load_as(path, {"residuals": ((None, None), torch.float32)})["residuals"]


def load_embedding(path: Path) -> Tensor:
    """Read the model's embedding, (vocab_size, e) float32.

    Raises:
        ValueError: the file is missing, truncated, or holds no embedding.
    """
    return load_as(path, {"embedding": ((None, None), torch.float32)})["embedding"]
