"""The training step of a TopK SAE in this project and in dense PyTorch, and the matrix product that both need."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tsae.compute import products
from tsae.profile.point import Point
from tsae.profile.training import Training
from tsae.sae.sae import SAE
from tsae.training.batches import Batch
from tsae.training.trainer import Trainer

REFERENCE = "encoder product"
LABELS = {"n_tokens": "tokens in a batch", "n_features": "features", "k": "k, active features per token"}
LR = 1e-3
N_VOCABULARY = 49152  # of SmolLM2


class Shape(NamedTuple):
    """The sizes that a step's time depends on."""

    n_tokens: int  # N, in a batch
    d_model: int  # d
    n_features: int  # F
    k: int

    @property
    def repeats(self) -> int:
        """Steps in one measurement, which then lasts at least about 50 ms."""
        return max(1, round(4e9 / (self.n_tokens * self.d_model * self.n_features)))

    def __str__(self) -> str:
        return f"batch {self.n_tokens}, d {self.d_model}, {self.n_features} features, k {self.k}"


class Contender(NamedTuple):
    """A way to train an SAE, or a part of one."""

    step: Callable[[Batch], object]
    reconstruct: Callable[[Tensor], Tensor] | None  # x (N, d) -> x_hat (N, d)
    path: str  # what runs, in words


def make_batches(shape: Shape, n_batches: int = 4) -> list[Batch]:
    """Normal residuals, and token ids with frequencies by Zipf's law."""
    generator = torch.Generator().manual_seed(0)
    frequencies = 1 / (torch.arange(N_VOCABULARY) + 2.7)
    return [
        Batch(
            torch.randn(shape.n_tokens, shape.d_model, generator=generator),
            torch.multinomial(frequencies, shape.n_tokens, replacement=True, generator=generator),
        )
        for _ in range(n_batches)
    ]


def initial_rows(shape: Shape) -> Tensor:
    """The initial W_dec (F, d) of every contender, with unit rows; W_enc starts as its transpose, biases at zero."""
    generator = torch.Generator().manual_seed(1)
    return normalize(torch.randn(shape.n_features, shape.d_model, generator=generator))


def product(shape: Shape) -> Contender:
    """The encoder's product x W_enc^T, into a new tensor as in any step."""
    W = initial_rows(shape)
    return Contender(lambda batch: torch.mm(batch.residuals, W.t()), None, "torch.mm")


def products_by() -> str:
    """The library that multiplies for this project on this machine."""
    return "oneDNN" if products.ONEDNN else "torch.mm"


def our_product(shape: Shape) -> Contender:
    """The same product by `tsae.compute.products.product`."""
    W = initial_rows(shape)
    return Contender(lambda batch: products.product(batch.residuals, W), None, products_by())


def ours(shape: Shape, tokenized: bool = False) -> Contender:
    """`tsae.training.trainer.Trainer.step`; `tokenized` adds a trained table of token-biases."""
    W = initial_rows(shape)
    sae = SAE(
        Point(k=shape.k, expansion=shape.n_features / shape.d_model, table="learned" if tokenized else "none"),
        W.clone(),
        W.clone(),
        torch.zeros(shape.n_features),
        torch.zeros(shape.d_model),
        torch.zeros(N_VOCABULARY, shape.d_model) if tokenized else None,
    )
    settings = Training(
        tokens=1_000_000 * shape.n_tokens, batch_size=shape.n_tokens, lr=LR, lr_end=LR, table_lr=LR, buffer_tokens=1
    )

    def reconstruct(x: Tensor) -> Tensor:
        x_hat: Tensor = sae(x, torch.zeros(len(x), dtype=torch.int64))
        return x_hat

    optimizers = "fused Adam, and Adam by row for the table" if tokenized else "fused Adam"
    return Contender(Trainer(sae, settings).step, reconstruct, optimizers)


def dense(shape: Shape) -> Contender:
    """The plain step: dense products, gradients by autograd."""
    W = initial_rows(shape)
    W_enc, W_dec = nn.Parameter(W.clone()), nn.Parameter(W.clone())
    b_enc, b_dec = nn.Parameter(torch.zeros(shape.n_features)), nn.Parameter(torch.zeros(shape.d_model))
    optimizer = torch.optim.Adam([W_enc, W_dec, b_enc, b_dec], lr=LR, fused=True)

    def reconstruct(x: Tensor) -> Tensor:
        pre = (x - b_dec) @ W_enc.T + b_enc
        values, features = pre.topk(shape.k, dim=-1, sorted=False)
        acts = torch.zeros_like(pre).scatter(1, features, values.relu())
        return acts @ W_dec + b_dec

    def step(batch: Batch) -> None:
        loss = (reconstruct(batch.residuals) - batch.residuals).square().sum(1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return Contender(step, reconstruct, "fused Adam")
