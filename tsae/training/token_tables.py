"""How the table of a tokenized SAE is trained: its rows, a number per row, or a linear map of the model's embedding.

Each kind gives the rows of a batch's tokens, and takes their gradients. The table lies outside autograd, since a batch touches few
of its rows.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from tsae.profile.training import Training
from tsae.sae.sae import SAE
from tsae.training.optimizers import TABLE_ADAM, RowAdam


class TokenTable(Protocol):
    """A table under training."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """What moves it."""

    def rows(self, tokens: Tensor) -> Tensor:
        """Token-biases (N, d) of tokens (N,), as they are now."""

    def step(self, tokens: Tensor, gradients: Tensor) -> None:
        """Apply the gradients (N, d) of the rows at tokens (N,)."""

    def settle(self) -> None:
        """Write the table as it is now into the SAE, where it is not there already."""

    def tensors(self) -> dict[str, Tensor]:
        """What the next step depends on, but for the SAE's own tensors."""

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from such tensors."""


class LearnedTable:
    """Every row is trained."""

    def __init__(self, table: Tensor, settings: Training, lr: float):
        """Take the table (V, d), which is changed in place."""
        self._table = table
        self.optimizer = TABLE_ADAM[settings.table_adam](table, lr=lr)

    def rows(self, tokens: Tensor) -> Tensor:
        """The table's own rows."""
        return self._table.index_select(0, tokens)

    def step(self, tokens: Tensor, gradients: Tensor) -> None:
        """Move the rows."""
        self.optimizer.step(tokens, gradients)

    def settle(self) -> None:
        """The table is the SAE's own."""

    def tensors(self) -> dict[str, Tensor]:
        """The optimizer's."""
        return self.optimizer.tensors()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Those of the optimizer."""
        self.optimizer.restore(tensors)


class ScaledTable:
    """Rows keep their direction; a number per token is trained."""

    def __init__(self, table: Tensor, lr: float):
        """Take the table (V, d), whose rows are those of a scale of 1."""
        self._table, self._rows = table, table.clone()
        self._scales = table.new_ones(len(table), 1)
        self.optimizer = RowAdam(self._scales, lr=lr)

    def rows(self, tokens: Tensor) -> Tensor:
        """First rows times their scales."""
        return self._rows.index_select(0, tokens) * self._scales.index_select(0, tokens)

    def step(self, tokens: Tensor, gradients: Tensor) -> None:
        """Move the scales."""
        along = (gradients * self._rows.index_select(0, tokens)).sum(1, keepdim=True)
        self.optimizer.step(tokens, along)

    def settle(self) -> None:
        """Write every row."""
        torch.mul(self._rows, self._scales, out=self._table)

    def tensors(self) -> dict[str, Tensor]:
        """The optimizer's, and the scales."""
        return self.optimizer.tensors() | {"scales": self._scales}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Those of the optimizer, and the scales."""
        self.optimizer.restore(tensors)
        self._scales.copy_(tensors["scales"])


class EmbeddedTable:
    """Rows are a linear map of the model's embedding, which is trained: W_lookup = embedding @ M."""

    def __init__(self, table: Tensor, embedding: Tensor, lr: float):
        """Take the table (V, d), which is such a map of the embedding (V, e)."""
        self._table, self._embedding = table, embedding.to(table.device)
        # Contiguous, as its gradients are: the fused optimizer reads both in the order of memory.
        self._map = torch.linalg.lstsq(self._embedding, table).solution.contiguous()
        self.optimizer = torch.optim.Adam([self._map], lr=lr, fused=True)

    def rows(self, tokens: Tensor) -> Tensor:
        """The map of the tokens' embeddings."""
        return self._embedding.index_select(0, tokens) @ self._map

    def step(self, tokens: Tensor, gradients: Tensor) -> None:
        """Move the map."""
        self._map.grad = self._embedding.index_select(0, tokens).T @ gradients
        self.optimizer.step()
        self._map.grad = None

    def settle(self) -> None:
        """Write every row."""
        torch.matmul(self._embedding, self._map, out=self._table)

    def tensors(self) -> dict[str, Tensor]:
        """The optimizer's, and the map."""
        return dict(self.optimizer.state[self._map]) | {"map": self._map}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Those of the optimizer, and the map."""
        moments = dict(tensors)
        self._map.copy_(moments.pop("map"))
        self.optimizer.state[self._map] = {name: tensor.to(self._map.device) for name, tensor in moments.items()}


def token_table(sae: SAE, settings: Training, embedding: Tensor | None = None) -> TokenTable | None:
    """How the table of an SAE is trained; None if it has none, or one that stays as it is.

    Args:
        sae: the SAE at initialisation, in scaled units.
        settings: how to train.
        embedding: (V, e) the model's embedding, for a table that is a map of it.

    Raises:
        ValueError: the table is a map of an embedding, and none is given.
    """
    if sae.W_lookup is None:
        return None
    lr = settings.table_lr if sae.point.table_lr is None else sae.point.table_lr
    match sae.point.table:
        case "learned":
            return LearnedTable(sae.W_lookup, settings, lr)
        case "scaled":
            return ScaledTable(sae.W_lookup, lr)
        case "embedding":
            if embedding is None:
                raise ValueError("table: embedding needs the model's embedding (--embedding)")
            return EmbeddedTable(sae.W_lookup, embedding, lr)
    return None
