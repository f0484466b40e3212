"""Adam for a table of which a batch uses few rows: on these rows, or on all as in the authors' code."""

from collections.abc import Mapping

import torch
from torch import Tensor


class RowAdam(torch.optim.Optimizer):
    """Adam that moves only the rows of tokens in the batch, and their moments.

    Dense Adam would move rows of absent tokens by momentum and touch the whole table at every step. The numbers are those of
    `torch.optim.SparseAdam`, whose sparse tensors cost several times as much.
    """

    def __init__(self, table: Tensor, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        """Take the table (V, d), which is changed in place."""
        super().__init__([table], {"lr": lr, "betas": betas, "eps": eps})
        self.state[table] = {"step": 0, "mean": torch.zeros_like(table), "square": torch.zeros_like(table)}

    @torch.no_grad()
    def step(self, tokens: Tensor, gradients: Tensor) -> None:  # type: ignore[override]
        """Apply the gradients (N, d) of the rows at tokens (N,)."""
        (group,) = self.param_groups
        (table,) = group["params"]
        state = self.state[table]
        state["step"] += 1
        rows, place = torch.unique(tokens, return_inverse=True)
        summed = gradients.new_zeros(len(rows), gradients.shape[1]).index_add_(0, place, gradients)
        moments = []
        for name, value, beta in zip(("mean", "square"), (summed, summed.square()), group["betas"], strict=True):
            moment = state[name].index_select(0, rows).lerp_(value, 1 - beta)
            state[name].index_copy_(0, rows, moment)
            moments.append(moment)
        mean, square = moments
        first, second = (1 - beta ** state["step"] for beta in group["betas"])
        change = mean.div_(square.sqrt_().add_(group["eps"])).mul_(-group["lr"] * second**0.5 / first)
        table.index_add_(0, rows, change)

    def tensors(self) -> dict[str, Tensor]:
        """Its state but for the table: both moments (V, d), and how many steps it has made."""
        (state,) = self.state.values()
        return {"mean": state["mean"], "square": state["square"], "step": torch.tensor(state["step"])}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from such tensors."""
        (state,) = self.state.values()
        state["step"] = int(tensors["step"])
        for name in ("mean", "square"):
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
        """Its state but for the table, once it has made a step: both moments (V, d), and how many steps."""
        return dict(self.state[self.table])

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from such tensors."""
        self.state[self.table] = {name: tensor.to(self.table.device) for name, tensor in tensors.items()}


TABLE_ADAM = {"rows": RowAdam, "dense": DenseAdam}
