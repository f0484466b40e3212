"""The sweep: which SAEs are trained."""

import itertools
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tsae.profile.architectures import ARCHITECTURES, with_sparsity
from tsae.profile.point import (
    DECODER_NORM,
    MOST_BUDGET,
    MOST_EXPANSION,
    OF_TABLES,
    ArchitectureName,
    EncoderInput,
    Point,
    RowsName,
    TableName,
    check_settings,
)
from tsae.profile.section import Layer, Name, Section

# Settings that a released SAE does not state.
UNKNOWN_OF_RELEASED = (
    "seed", "l1", "l0_penalty", "rows", "lookup_scale", "table_lr", "start", "centre", "decoder_norm", "encoder_scale", "budget",
    "distinct",
)  # fmt: skip


class Grid(Section):
    """A grid of points: the product of all its lists."""

    layers: tuple[Layer, ...] | None = Field(None, min_length=1, description="Layers; null: every cached layer")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0,), min_length=1, description="Seeds of initialisation and data order"
    )
    architecture: ArchitectureName = Field(
        "topk",
        description="; ".join(f"{name}: {about.description}" for name, about in ARCHITECTURES.items()),
    )
    k: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description=f"Active features per token ({', '.join(with_sparsity('k'))})"
    )
    l1: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (),
        description="Coefficient of the L1 penalty, in units where the mean residual norm is sqrt(d_model) "
        f"({', '.join(with_sparsity('l1'))})",
    )
    l0_penalty: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (),
        description="Coefficient of the number of active features, in the same units "
        f"({', '.join(with_sparsity('l0_penalty'))})",
    )
    expansion: tuple[Annotated[float, Field(gt=0, le=MOST_EXPANSION)], ...] = Field(
        (4.0,), min_length=1, description="Features / d_model"
    )
    table: tuple[TableName, ...] = Field(
        min_length=1,
        description="none: the baseline; fixed: token-biases stay at their initial rows; learned: token-biases are "
        "trained. Two controls: scaled: fixed rows times a trained number per token; embedding: a trained linear map "
        "of the model's embedding",
    )
    rows: tuple[RowsName, ...] = Field(
        ("unigram",),
        min_length=1,
        description="Where token-biases start. unigram: the token's unigram residual; conditional: the mean of its "
        "training residuals, shrunk towards the unigram residual if they are few; bigram: that mean behind the token before "
        "it, too, where the two are frequent, shrunk towards the token's own; permuted, a control: the unigram residual of "
        "another, random token of the training text",
    )
    lookup_scale: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (0.5,), min_length=1, description="Initial token-bias / the row that it starts from"
    )
    table_lr: tuple[Annotated[float, Field(gt=0)] | None, ...] = Field(
        (None,), min_length=1, description="Learning rate of the table; null: training.table_lr"
    )
    encoder_input: tuple[EncoderInput, ...] = Field(
        ("residual",),
        min_length=1,
        description="What the encoder sees, less its mean. residual: as in the paper; remainder: the residual less "
        "the token's row of the table; without_unigram: the residual without the direction of the token's unigram "
        "residual, both centred",
    )
    start: tuple[Literal["centred", "authors"], ...] = Field(
        ("centred",),
        min_length=1,
        description="centred: b_dec starts at the mean of what the table leaves, and the encoder's input has mean "
        "zero; authors: b_dec starts at zero, decoder rows have length 1, and the encoder sees the residual less b_dec",
    )
    centre: tuple[Annotated[float, Field(ge=0, le=1)] | None, ...] = Field(
        (None,),
        min_length=1,
        description="Share of its mean that is subtracted from the encoder's input; below 1 leaves a constant there. "
        "null: 1, or no subtraction with start: authors",
    )
    decoder_norm: tuple[Annotated[float, Field(gt=0)] | None, ...] = Field(
        (None,),
        min_length=1,
        description="Initial length of W_dec's rows, in units where the mean residual norm is sqrt(d_model); null: "
        f"{DECODER_NORM:g}, or 1 with start: authors",
    )
    encoder_scale: tuple[Annotated[float, Field(gt=0)] | None, ...] = Field(
        (None,),
        min_length=1,
        description="Initial W_enc / W_dec's transpose; null: 1, or 1 - lookup_scale for a tokenized SAE with start: "
        "authors",
    )
    topk_relu: tuple[bool, ...] = Field(
        (True,),
        min_length=1,
        description="Apply a ReLU after TopK; false keeps negative activations, as the authors' code did",
    )
    budget: tuple[Annotated[float, Field(gt=0, le=MOST_BUDGET)], ...] = Field(
        (1.0,),
        min_length=1,
        description="Tokens that the SAE is trained on / training.tokens, with a whole learning rate schedule",
    )
    distinct: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (1.0,),
        min_length=1,
        description="Share of the training text that the SAE is trained on, evenly spaced sequences of it; a budget beyond "
        "it takes several epochs",
    )

    @model_validator(mode="after")
    def _check(self) -> "Grid":
        for field, values in self:
            if isinstance(values, tuple) and len(set(values)) < len(values):
                raise ValueError(f"{field} names a value twice: {list(values)}")
        check_settings(self)
        return self

    def size(self, n_layers: int) -> int:
        """Number of SAEs, an upper bound: baselines that differ only in a table's settings count more than once.

        Args:
            n_layers: number of layers if the grid names none.
        """
        n_points = math.prod(len(values) for _, values in self if isinstance(values, tuple) and values)
        return n_points if self.layers else n_points * n_layers

    def points(self) -> Iterator[Point]:
        """Every point of the grid, once; baselines have the settings of a table at their default."""
        axes = {
            field: (values or (None,)) if isinstance(values, tuple) else (values,)
            for field, values in self
            if field not in ("layers", "seeds")
        }
        products: Iterator[tuple[Any, ...]] = itertools.product(*axes.values())
        points = (Point(**dict(zip(axes, values, strict=True))) for values in products)
        default = {field: Point.model_fields[field].default for field in OF_TABLES}
        yield from dict.fromkeys(p.model_copy(update=default) if p.table == "none" else p for p in points)


def job_id(layer: int, subject: str, seed: int | None) -> str:
    """Id of an SAE or a table at a layer; only a trained SAE has a seed."""
    return f"layer{layer}/{subject}" + ("" if seed is None else f"-s{seed}")


def parse_job_id(job: str) -> tuple[int, str, int | None]:
    """Layer, subject and seed of an id of `job_id`."""
    found = re.fullmatch(r"layer(\d+)/(.+?)(?:-s(\d+))?", job)
    if found is None:
        raise ValueError(f"{job}: not the id of an SAE or a table")
    layer, subject, seed = found.groups()
    return int(layer), subject, None if seed is None else int(seed)


class Job(Section):
    """One SAE: a point of the sweep at a layer with a seed, or one that the authors released."""

    layer: int
    point: Point
    seed: int
    released: Name | None = Field(
        None,
        exclude_if=lambda released: released is None,
        description="Folder and end of a released file's name, such as `ot30`; the SAE is then not trained here",
    )

    @property
    def subject(self) -> str:
        """Name of this SAE in tables: the id of its point, or `released-ot30`."""
        return self.point.id if self.released is None else f"released-{self.released}"

    @property
    def id(self) -> str:
        """Path below `saes/` and `metrics/`: `layer12/topk-k32-x4-learned-s0`."""
        return job_id(self.layer, self.subject, self.seed if self.released is None else None)

    @property
    def labels(self) -> dict[str, Any]:
        """Columns that all rows about this SAE share; None where a released one does not say."""
        labels = {"layer": self.layer, "seed": self.seed, **self.point.model_dump(mode="json")}
        return labels if self.released is None else labels | dict.fromkeys(UNKNOWN_OF_RELEASED)
