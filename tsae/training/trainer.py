"""One step of training, with the learning rates and the penalty of that step."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from tsae.profile.training import Training
from tsae.sae.architectures.base import Explained
from tsae.sae.sae import SAE
from tsae.training.batches import Batch
from tsae.training.token_tables import token_table


class Step(NamedTuple):
    """The outcome of one optimization step."""

    loss: float  # with penalty, mean over tokens and over the width of a residual
    fired: Tensor  # (n,) int64: the feature of every non-zero activation


class Trainer:
    """An SAE with its optimizers and schedules."""

    def __init__(self, sae: SAE, settings: Training, embedding: Tensor | None = None):
        """Make the optimizers.

        Args:
            sae: the SAE at initialisation, in scaled units; its point says whether and how the table is trained.
            settings: how to train.
            embedding: (V, e) the model's embedding, for a table that is a linear map of it.
        """
        self.sae, self.settings = sae, settings
        self.n_steps = settings.tokens // settings.batch_size
        self.adam = torch.optim.Adam(sae.parameters(), lr=settings.lr, fused=True)
        self.table = token_table(sae, settings, embedding)
        optimizers = [self.adam] if self.table is None else [self.adam, self.table.optimizer]
        self.schedulers = [torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule) for optimizer in optimizers]
        self.steps = 0

    def schedule(self, step: int) -> float:
        """The learning rate as a share of lr: a cosine from lr to lr_end."""
        end = self.settings.lr_end / self.settings.lr
        return end + (1 - end) * (1 + math.cos(math.pi * step / self.n_steps)) / 2

    def step(self, batch: Batch) -> Step:
        """Take one step of every optimizer."""
        sae, (x, tokens) = self.sae, batch
        self.steps += 1
        rows: Tensor | None
        if self.table is not None:
            rows = self.table.rows(tokens).requires_grad_()
        else:
            # A baseline's zeros would cost several passes over the batch.
            rows = None if sae.W_lookup is None else sae.token_biases(tokens)
        # The encoder passes no gradient to the table, even where it sees the remainder.
        frozen = None if rows is None else rows.detach()
        sae.train()
        active = sae.active(x, tokens, frozen)
        sae.eval()
        x_hat = sae.decode_active(active, rows)
        # A sum divided by N, which takes one pass forward and one back.
        loss = mse_loss(x_hat, x, reduction="sum") / len(x)
        warmup = max(1, round(self.settings.l1_warmup * self.n_steps))
        penalty = sae.point.penalty * min(1.0, self.steps / warmup)

        def pre_activations(features: Tensor) -> Tensor:
            return sae.pre_activations(x, tokens, frozen, features)

        explained = Explained(x, x_hat, sae.b_dec, rows, pre_activations)
        extra = sae.activation.extra_loss(active, sae.W_dec, explained, penalty)
        if extra is not None:
            loss = loss + extra
        loss.backward()
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(sae.parameters(), self.settings.clip_norm)
        self.adam.step()
        self.adam.zero_grad()
        if self.table is not None and rows is not None and rows.grad is not None:
            self.table.step(tokens, rows.grad)
        for scheduler in self.schedulers:
            scheduler.step()
        return Step(loss.item() / x.shape[1], active.features[active.values.detach() != 0])

    def settle(self) -> None:
        """Write the trained table into the SAE, before the SAE is used."""
        if self.table is not None:
            self.table.settle()

    def state(self) -> dict[str, Tensor]:
        """Every tensor that the next step depends on, by name, not copied."""
        self.settle()
        tensors = {f"sae.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        for name, parameter in self.sae.named_parameters():
            tensors |= {f"adam.{key}.{name}": value for key, value in self.adam.state[parameter].items()}
        if self.table is not None:
            tensors |= {f"table.{key}": value for key, value in self.table.tensors().items()}
        return tensors

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Take over the state after a number of steps."""
        self.sae.load_state_dict(_below("sae", tensors))
        moments = {key: _below(f"adam.{key}", tensors) for key in ("step", "exp_avg", "exp_avg_sq")}
        for name, parameter in self.sae.named_parameters():
            if name in moments["step"]:
                self.adam.state[parameter] = {key: values[name].to(self.sae.device) for key, values in moments.items()}
        if self.table is not None:
            self.table.restore(_below("table", tensors))
        self.steps = step
        for scheduler in self.schedulers:
            scheduler.last_epoch = step
            for group, base in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
                group["lr"] = base * self.schedule(step)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): part for name, part in tensors.items() if name.startswith(f"{prefix}.")}
