"""What quality.py tells every tool, and what it gets back."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from tsae.profile.point import Point
from tsae.profile.training import Training
from tsae.residuals.read import ResidualCache
from tsae.sae.architectures.matryoshka import SHARES
from tsae.training.batches import Batch


class Settings(NamedTuple):
    """The settings of all tools."""

    point: Point  # architecture, sparsity and the number of features
    training: Training
    cache: ResidualCache  # training residuals; batches are divided by its scale
    unigrams: Tensor  # (V, d) unigram residuals, raw
    dead_window: int  # tokens without firing after which a feature is dead
    seed: int
    l0_of_ours: float | None = None  # held-out L0 of our SAE; None where k sets it

    @property
    def n_features(self) -> int:
        """F."""
        return self.point.n_features(self.cache.d_model)

    @property
    def n_steps(self) -> int:
        """Steps of training."""
        return self.training.tokens // self.training.batch_size

    @property
    def penalty_steps(self) -> int:
        """Steps over which a penalty of sparsity grows."""
        return max(1, round(self.training.l1_warmup * self.n_steps))

    @property
    def mean(self) -> Tensor:
        """(d,) mean training residual, divided by the scale."""
        return self.cache.mean() / self.cache.scale

    @property
    def k(self) -> int:
        """Active features per token."""
        assert self.point.k is not None
        return self.point.k

    @property
    def target_l0(self) -> float:
        """The L0 at which penalised SAEs are compared.

        Raises:
            ValueError: ours was not trained.
        """
        if self.l0_of_ours is None:
            raise ValueError("this tool aims at the L0 of ours, which was not trained; train ours too")
        return self.l0_of_ours

    @property
    def widths(self) -> list[int]:
        """Nested widths of Matryoshka SAEs, up to F."""
        return [round(share * self.n_features) for share in (*SHARES, 1)]


class Trained(NamedTuple):
    """An SAE under training."""

    step: Callable[[Batch], object]
    reconstruct: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """x (N, d) and tokens (N,) -> x_hat (N, d), and on how many of the tokens each feature fires, (F,) int64."""
    path: str  # what runs, in words


Builder = Callable[[Settings], Trained]


def firings(acts: Tensor) -> Tensor:
    """On how many tokens each feature fires, (F,), from activations (N, F)."""
    return (acts > 0).sum(0)
