"""How SAEs are trained, their checkpoints, and what jobs compute on."""

from typing import Literal

from pydantic import Field

from tsae.profile.section import Section


class Training(Section):
    """Training of all SAEs of the profile."""

    tokens: int = Field(
        500_000, ge=1, description="Training tokens per SAE; more than tokens.train means several epochs [tokens]"
    )
    batch_size: int = Field(512, ge=1, description="Batch size [tokens]")
    lr: float = Field(3e-3, gt=0, description="Adam's learning rate at the start")
    lr_end: float = Field(3e-4, ge=0, description="Learning rate at the end of the cosine schedule")
    table_lr: float = Field(
        5e-2, gt=0, description="Initial learning rate of a learned table; it falls in proportion to lr"
    )
    table_adam: Literal["rows", "dense"] = Field(
        "rows",
        description="Rows of a learned table that a step moves. rows: those of the batch's tokens; dense: all, by "
        "momentum",
    )
    clip_norm: float | None = Field(
        1.0,
        gt=0,
        description="Largest norm of the gradients of all parameters but the table, which are scaled down to it; "
        "null: none. In units where the mean residual norm is sqrt(d_model), a norm of 1 is always exceeded",
    )
    l1_warmup: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Share of training over which the sparsity penalty grows from zero to its coefficient",
    )
    buffer_tokens: int = Field(
        300_000, ge=1, description="Tokens shuffled together, held in memory as float16 [tokens]"
    )
    save_minutes: float = Field(
        5,
        ge=0,
        description="An interrupted training loses at most this much time; changes no result [minutes]",
    )
    history_points: int = Field(20, ge=2, description="Steps at which loss and held-out NMSE and FVU are recorded")
    history_tokens: int = Field(4096, ge=1, description="Held-out tokens for NMSE and FVU during training [tokens]")


class Curves(Section):
    """Training curves: checkpoints of the headline SAEs, each evaluated like the trained SAE."""

    checkpoints: int = Field(
        8,
        ge=2,
        le=1000,
        description="Checkpoints, evenly spaced in the logarithm of the step; the last is the trained SAE",
    )
    first: float = Field(1 / 32, gt=0, lt=1, description="Position of the first checkpoint, as a share of training")
    ce_sequences: int | None = Field(
        None,
        ge=1,
        description="How many of the evaluation.ce_sequences the loss is measured on; null: all [sequences]",
    )


class Compute(Section):
    """What jobs compute on. A change repeats no job, so a run can resume on another machine."""

    gpu: bool = Field(False, description="Jobs that run the model, train or evaluate an SAE take one GPU each")
    tf32: bool = Field(
        False,
        description="On a GPU, cache residuals and train SAEs with matrix products in TF32; evaluation stays in "
        "float32",
    )
