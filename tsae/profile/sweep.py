"""The sweep: which SAEs are trained."""

import itertools
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tsae.profile.architectures import ARCHITECTURES, with_sparsity
from tsae.profile.point import (
    DECODER_NORM,
    MOST_EXPANSION,
    NO_ROWS,
    NOT_OF_AUTHORS,
    OF_CENTRED,
    OF_TABLES,
    SPARSITY,
    ArchitectureName,
    EncoderInput,
    Point,
    TableName,
)
from tsae.profile.section import Layer, Name, Section

# What a released SAE does not say of itself.
UNKNOWN_OF_RELEASED = (
    "seed", "l1", "rows", "lookup_scale", "table_lr", "start", "centre", "decoder_norm", "encoder_scale", "budget",
)  # fmt: skip


class Grid(Section):
    """A part of a block of the sweep: the product of all its lists."""

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
        description="Coefficient of the sparsity penalty, in units where the mean residual norm is sqrt(d_model) "
        f"({', '.join(with_sparsity('l1'))})",
    )
    expansion: tuple[Annotated[float, Field(gt=0, le=MOST_EXPANSION)], ...] = Field(
        min_length=1, description="Features / d_model"
    )
    table: tuple[TableName, ...] = Field(
        min_length=1,
        description="none: the baseline; fixed: token-biases stay at their initial rows; learned: trained with the rest; two "
        "controls are scaled: fixed rows times a trained number per token, and embedding: a trained linear map of the "
        "model's embedding",
    )
    rows: tuple[Literal["unigram", "permuted"], ...] = Field(
        ("unigram",),
        min_length=1,
        description="Token-biases start at the token's own unigram residual, or, as a control, at that of another token of "
        "the training text at random",
    )
    lookup_scale: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (0.5,), min_length=1, description="Initial token-bias / unigram residual"
    )
    table_lr: tuple[Annotated[float, Field(gt=0)] | None, ...] = Field(
        (None,), min_length=1, description="Learning rate of the table; null: training.table_lr"
    )
    encoder_input: tuple[EncoderInput, ...] = Field(
        ("residual",),
        min_length=1,
        description="What the encoder sees: residual, as in the paper; remainder, the residual less the token's row of the "
        "table; without_unigram, the residual without the direction of the token's unigram residual, both centred. Of each, its mean is taken away",
    )
    start: tuple[Literal["centred", "authors"], ...] = Field(
        ("centred",),
        min_length=1,
        description="centred: b_dec starts at the mean of what the table leaves, and the encoder's input has its mean taken "
        "away; authors: b_dec starts at zero, decoder rows at length 1, and the encoder sees the residual less b_dec",
    )
    centre: tuple[Annotated[float, Field(ge=0, le=1)] | None, ...] = Field(
        (None,),
        min_length=1,
        description="Share of the mean of the encoder's input that is taken away; less than 1 shows what a constant does; "
        "null: 1, and none with start: authors",
    )
    decoder_norm: tuple[Annotated[float, Field(gt=0)] | None, ...] = Field(
        (None,),
        min_length=1,
        description=f"Length of W_dec's rows at the start, in units where the mean residual norm is sqrt(d_model); null: "
        f"{DECODER_NORM:g}, and 1 with start: authors",
    )
    encoder_scale: tuple[Annotated[float, Field(gt=0)] | None, ...] = Field(
        (None,),
        min_length=1,
        description="W_enc starts at this multiple of W_dec's transpose; null: 1, and with start: authors 1 - lookup_scale for "
        "a tokenized SAE",
    )
    topk_relu: tuple[bool, ...] = Field(
        (True,),
        min_length=1,
        description="Apply a ReLU after TopK; false keeps negative activations, as the authors' code did",
    )
    budget: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (1.0,),
        min_length=1,
        description="Share of training.tokens that the SAE is trained on, with the whole learning rate schedule in it",
    )

    @model_validator(mode="after")
    def _check(self) -> "Grid":
        for field, values in self:
            if isinstance(values, tuple) and len(set(values)) < len(values):
                raise ValueError(f"{field} names a value twice: {list(values)}")
        wanted = SPARSITY[self.architecture]
        other = "l1" if wanted == "k" else "k"
        if getattr(self, other):
            raise ValueError(
                f"{other} says nothing about architecture {self.architecture}, whose sparsity is set by {wanted}"
            )
        if not getattr(self, wanted):
            raise ValueError(f"architecture {self.architecture} needs {wanted}, a list")
        if self.architecture != "topk" and False in self.topk_relu:
            raise ValueError(f"topk_relu: false says nothing about architecture {self.architecture}")
        if "remainder" in self.encoder_input and "none" in self.table:
            raise ValueError(NO_ROWS)
        for setting in OF_CENTRED:
            if "authors" in self.start and getattr(self, setting) != (None,):
                raise ValueError(NOT_OF_AUTHORS.format(setting))
        return self

    def size(self, n_layers: int) -> int:
        """SAEs that the product of its lists spells, baselines that differ in a table's settings alone counted apart.

        Args:
            n_layers: layers that it takes if it names none.
        """
        n_points = math.prod(len(values) for _, values in self if isinstance(values, tuple) and values)
        return n_points if self.layers else n_points * n_layers

    def points(self) -> Iterator[Point]:
        """Every point of the grid, each once: a baseline has no settings of a table."""
        axes = {
            field: values if isinstance(values, tuple) else (values,)
            for field, values in self
            if field not in ("layers", "seeds")
        }
        axes = {field: values or (None,) for field, values in axes.items()}
        products: Iterator[tuple[Any, ...]] = itertools.product(*axes.values())
        points = (Point(**dict(zip(axes, values, strict=True))) for values in products)
        default = {field: Point.model_fields[field].default for field in OF_TABLES}
        yield from dict.fromkeys(p.model_copy(update=default) if p.table == "none" else p for p in points)


class Job(Section):
    """One SAE: to train, a point of the sweep at a layer with a seed; or one that the authors released."""

    layer: int
    point: Point
    seed: int
    released: Name | None = Field(
        None,
        exclude_if=lambda released: released is None,
        description="The end of a released file's name, as `ot30`, after its folder's; says that the SAE is not trained here",
    )

    @property
    def subject(self) -> str:
        """What tables call this SAE: the id of its point, or `released-ot30`."""
        return self.point.id if self.released is None else f"released-{self.released}"

    @property
    def id(self) -> str:
        """`layer12/topk-k32-x4-learned-s0`: the path of the SAE below `saes/` and of its metrics below `metrics/`."""
        return f"layer{self.layer}/{self.subject}" + (f"-s{self.seed}" if self.released is None else "")

    @property
    def labels(self) -> dict[str, Any]:
        """The columns that all rows about this SAE share in a table; what is not known of a released one is None."""
        labels = {"layer": self.layer, "seed": self.seed, **self.point.model_dump(mode="json")}
        return labels if self.released is None else labels | dict.fromkeys(UNKNOWN_OF_RELEASED)
