"""Adam for a table, on the rows of a batch alone or, as in the authors' code, on all rows."""

from collections.abc import Mapping

import torch
from torch import Tensor


class RowAdam(torch.optim.Optimizer):
    """Adam that updates only the rows of tokens in the batch, and their moments.

    Dense Adam moves rows of absent tokens by momentum and touches the whole table at every step. With the one step
    count of `torch.optim.SparseAdam`, a row first seen late would move by up to 2.6 times the learning rate in every
    coordinate, so this optimizer counts the steps of each row.
    """

    def __init__(self, table: Tensor, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        """Take the table (V, d), which is changed in place."""
        super().__init__([table], {"lr": lr, "betas": betas, "eps": eps})
        steps = torch.zeros(len(table), 1, device=table.device)
        self.state[table] = {"steps": steps, "mean": torch.zeros_like(table), "square": torch.zeros_like(table)}

    @torch.no_grad()
    def step(self, tokens: Tensor, gradients: Tensor) -> None:  # type: ignore[override]
        """Apply the gradients (N, d) of the rows at tokens (N,)."""
        (group,) = self.param_groups
        (table,) = group["params"]
        state = self.state[table]
        rows, place = torch.unique(tokens, return_inverse=True)
        steps = state["steps"].index_select(0, rows).add_(1)
        state["steps"].index_copy_(0, rows, steps)
        summed = gradients.new_zeros(len(rows), gradients.shape[1]).index_add_(0, place, gradients)
        moments = []
        for name, value, beta in zip(("mean", "square"), (summed, summed.square()), group["betas"], strict=True):
            moment = state[name].index_select(0, rows).lerp_(value, 1 - beta)
            state[name].index_copy_(0, rows, moment)
            moments.append(moment)
        mean, square = moments
        # In float64, since 1 - beta**steps is a difference of close numbers.
        first, second = ((1 - beta ** steps.double()).float() for beta in group["betas"])
        change = mean.div_(square.sqrt_().add_(group["eps"])).mul_(-group["lr"] * second.sqrt_().div_(first))
        table.index_add_(0, rows, change)

    def tensors(self) -> dict[str, Tensor]:
        """The state without the table: both moments (V, d) and the steps of each row (V, 1)."""
        (state,) = self.state.values()
        return dict(state)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the state of `tensors`."""
        (state,) = self.state.values()
        for name in ("steps", "mean", "square"):
            state[name].copy_(tensors[name])


class DenseAdam(torch.optim.Adam):
    """Adam on the whole table: momentum moves the rows of absent tokens too."""

    def __init__(self, table: Tensor, lr: float):
        """Take the table (V, d), which is changed in place."""
        super().__init__([table], lr=lr, fused=True)
        (self.table,) = self.param_groups[0]["params"]

    @torch.no_grad()
    def step(self, tokens: Tensor, gradients: Tensor) -> None:  # type: ignore[override]
        """Apply the gradients (N, d) of the rows at tokens (N,), and zero to all others."""
        self.table.grad = torch.zeros_like(self.table).index_add_(0, tokens, gradients)
        super().step()
        self.table.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """The state without the table, after at least one step: both moments (V, d) and the number of steps."""
        return dict(self.state[self.table])

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the state of `tensors`."""
        self.state[self.table] = {name: tensor.to(self.table.device) for name, tensor in tensors.items()}


TABLE_ADAM = {"rows": RowAdam, "dense": DenseAdam}
