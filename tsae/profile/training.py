"""How SAEs are trained, and which checkpoints they leave."""

from typing import Literal

from pydantic import Field

from tsae.profile.section import Section


class Training(Section):
    """Training of every SAE of the profile."""

    tokens: int = Field(
        ge=1, description="Training tokens per SAE; more than the split holds means several epochs [tokens]"
    )
    batch_size: int = Field(ge=1, description="Batch size [tokens]")
    lr: float = Field(gt=0, description="Adam's learning rate at the start")
    lr_end: float = Field(ge=0, description="Learning rate at the end of the cosine schedule")
    table_lr: float = Field(gt=0, description="Learning rate of a learned table, on the same schedule in proportion")
    table_adam: Literal["rows", "dense"] = Field(
        "rows", description="Rows of a learned table that a step moves: those of the batch's tokens, or all by momentum"
    )
    clip_norm: float | None = Field(
        1.0,
        gt=0,
        description="Gradients of all but the table are scaled down to this norm, together, where they exceed it; null: never. "
        "Where the mean residual norm is sqrt(d_model) a norm of 1 is always exceeded",
    )
    l1_warmup: float = Field(
        0.05,
        ge=0,
        le=1,
        description="The sparsity penalty grows from zero to its coefficient over this share of training",
    )
    buffer_tokens: int = Field(ge=1, description="Tokens shuffled together, held in memory as float16 [tokens]")
    save_minutes: float = Field(
        5,
        ge=0,
        description="A training that is interrupted goes on from where it was at most so long before; changes no result [minutes]",
    )
    history_points: int = Field(20, ge=2, description="Points at which loss and held-out NMSE and FVU are recorded")
    history_tokens: int = Field(4096, ge=1, description="Held-out tokens that these use [tokens]")


class Curves(Section):
    """Training curves: checkpoints of the headline SAEs on the way, each evaluated like the final one."""

    checkpoints: int = Field(
        8, ge=2, le=1000, description="Checkpoints, evenly spaced in log; the last is the trained SAE"
    )
    first: float = Field(1 / 32, gt=0, lt=1, description="The first checkpoint, as a share of training")
    ce_sequences: int | None = Field(
        None,
        ge=1,
        description="Of those of evaluation.ce_sequences, on how many the loss is measured; null: all [sequences]",
    )


class Compute(Section):
    """What jobs compute on. Nothing runs again when it changes: results of one machine are gone on with on another."""

    gpu: bool = Field(False, description="Each job that runs the model, trains or evaluates an SAE takes a GPU")
    tf32: bool = Field(
        False,
        description="On a GPU, residuals are cached and SAEs trained with matrix products in TF32; never evaluated so",
    )
