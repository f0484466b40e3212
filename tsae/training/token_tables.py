"""Training of the table of a tokenized SAE: its rows, a scale per row, or a linear map of the model's embedding.

The table is outside autograd, since a batch touches few rows: a class returns the rows of a batch and takes their
gradients.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from tsae.profile.training import Training
from tsae.sae.sae import SAE
from tsae.training.optimizers import TABLE_ADAM, RowAdam
from tsae.training.start import fit_map


class TokenTable(Protocol):
    """A table under training."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Its optimizer."""

    def rows(self, tokens: Tensor) -> Tensor:
        """Current token-biases (N, d) of tokens (N,)."""

    def step(self, tokens: Tensor, gradients: Tensor) -> None:
        """Apply the gradients (N, d) of the rows at tokens (N,)."""

    def settle(self) -> None:
        """Write the current table into the SAE."""

    def tensors(self) -> dict[str, Tensor]:
        """The state that the next step depends on, without the SAE's own tensors."""

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the state of `tensors`."""


class LearnedTable:
    """Every row is trained."""

    def __init__(self, table: Tensor, settings: Training, lr: float):
        """Take the table (V, d), which is changed in place."""
        self._table = table
        self.optimizer = TABLE_ADAM[settings.table_adam](table, lr=lr)

    def rows(self, tokens: Tensor) -> Tensor:
        """Rows of the table."""
        return self._table.index_select(0, tokens)

    def step(self, tokens: Tensor, gradients: Tensor) -> None:
        """Move the rows."""
        self.optimizer.step(tokens, gradients)

    def settle(self) -> None:
        """Do nothing: the table is the SAE's own."""

    def tensors(self) -> dict[str, Tensor]:
        """The optimizer's state."""
        return self.optimizer.tensors()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the optimizer."""
        self.optimizer.restore(tensors)


class ScaledTable:
    """Rows keep their direction; a scale per token is trained."""

    def __init__(self, table: Tensor, lr: float):
        """Take the table (V, d), which has the scale 1."""
        self._table, self._rows = table, table.clone()
        self._scales = table.new_ones(len(table), 1)
        self.optimizer = RowAdam(self._scales, lr=lr)

    def rows(self, tokens: Tensor) -> Tensor:
        """Initial rows times their scales."""
        return self._rows.index_select(0, tokens) * self._scales.index_select(0, tokens)

    def step(self, tokens: Tensor, gradients: Tensor) -> None:
        """Move the scales."""
        along = (gradients * self._rows.index_select(0, tokens)).sum(1, keepdim=True)
        self.optimizer.step(tokens, along)

    def settle(self) -> None:
        """Write the table."""
        torch.mul(self._rows, self._scales, out=self._table)

    def tensors(self) -> dict[str, Tensor]:
        """The optimizer's state and the scales."""
        return self.optimizer.tensors() | {"scales": self._scales}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the optimizer and the scales."""
        self.optimizer.restore(tensors)
        self._scales.copy_(tensors["scales"])


class EmbeddedTable:
    """W_lookup = embedding @ M, where the matrix M is trained."""

    def __init__(self, table: Tensor, embedding: Tensor, lr: float):
        """Take the table (V, d), a linear map of the embedding (V, e)."""
        self._table, self._embedding = table, embedding.to(table.device)
        # Contiguous like its gradients: the fused optimizer reads both in the order of memory.
        self._map = fit_map(self._embedding, table).contiguous()
        self.optimizer = torch.optim.Adam([self._map], lr=lr, fused=True)

    def rows(self, tokens: Tensor) -> Tensor:
        """Embeddings of the tokens, mapped."""
        return self._embedding.index_select(0, tokens) @ self._map

    def step(self, tokens: Tensor, gradients: Tensor) -> None:
        """Move the map."""
        self._map.grad = self._embedding.index_select(0, tokens).T @ gradients
        self.optimizer.step()
        self._map.grad = None

    def settle(self) -> None:
        """Write the table."""
        torch.matmul(self._embedding, self._map, out=self._table)

    def tensors(self) -> dict[str, Tensor]:
        """The optimizer's state and the map."""
        return dict(self.optimizer.state[self._map]) | {"map": self._map}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the optimizer and the map."""
        moments = dict(tensors)
        self._map.copy_(moments.pop("map"))
        self.optimizer.state[self._map] = {name: tensor.to(self._map.device) for name, tensor in moments.items()}


def token_table(sae: SAE, settings: Training, embedding: Tensor | None = None) -> TokenTable | None:
    """The trainer of an SAE's table, None if it has no table or a fixed one; arguments as of `Trainer`.

    Raises:
        ValueError: the table is a map of the embedding, and none is given.
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
