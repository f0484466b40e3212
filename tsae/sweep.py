"""The sweep: which SAEs are trained."""

import itertools
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tsae.section import Layer, Name, Section

ArchitectureName = Literal["topk", "relu", "gated"]
# Which setting says how sparse an architecture is; the other one is refused.
SPARSITY: dict[ArchitectureName, Literal["k", "l1"]] = {"topk": "k", "relu": "l1", "gated": "l1"}
MOST_EXPANSION = 1 << 20  # no SAE is so wide, and products with it stay finite
# What a released SAE does not say of itself.
UNKNOWN_OF_RELEASED = ("seed", "lookup_scale", "encoder_scale", "b_dec")


class Point(Section):
    """One SAE of the sweep, all but its layer and seed."""

    architecture: ArchitectureName = "topk"
    k: int | None = Field(None, ge=1)
    l1: float | None = Field(None, gt=0)
    expansion: float = Field(gt=0, le=MOST_EXPANSION)
    table: Literal["none", "fixed", "learned"]
    lookup_scale: float = Field(0.5, ge=0)
    encoder_scale: float | None = Field(None, gt=0)
    encoder_input: Literal["residual", "without_unigram"] = "residual"
    b_dec: Literal["mean", "zero"] = "mean"
    topk_relu: bool = True

    @model_validator(mode="after")
    def _check_sparsity(self) -> "Point":
        wanted = SPARSITY[self.architecture]
        for setting in ("k", "l1"):
            given = getattr(self, setting) is not None
            if given and setting != wanted:
                raise ValueError(
                    f"{setting} says nothing about architecture {self.architecture}; its sparsity is {wanted}"
                )
            if not given and setting == wanted:
                raise ValueError(f"architecture {self.architecture} needs {wanted}")
        if not self.topk_relu and self.architecture != "topk":
            raise ValueError(f"topk_relu: false says nothing about architecture {self.architecture}")
        return self

    @property
    def id(self) -> str:
        """Readable name of the point in paths and tables: `topk-k32-x4-learned`; settings at their default are left out."""
        sparsity = f"k{self.k}" if self.k is not None else f"l1_{self.l1:g}"
        parts = [self.architecture, sparsity, f"x{self.expansion:g}", self.table]
        if self.table != "none" and self.lookup_scale != 0.5:
            parts.append(f"lookup{self.lookup_scale:g}")
        if self.encoder_scale is not None:
            parts.append(f"enc{self.encoder_scale:g}")
        if self.encoder_input == "without_unigram":
            parts.append("nounigram")
        if self.b_dec == "zero":
            parts.append("bzero")
        if not self.topk_relu:
            parts.append("norelu")
        return "-".join(parts)

    @property
    def initial_encoder_scale(self) -> float:
        """The factor between W_enc and W_dec's transpose at initialisation."""
        if self.encoder_scale is not None:
            return self.encoder_scale
        return 1.0 if self.table == "none" else 1.0 - self.lookup_scale

    def n_features(self, d_model: int) -> int:
        """Number of features at a model width."""
        return round(self.expansion * d_model)

    def without_table(self) -> "Point":
        """The baseline of a tokenized point: the same SAE, with the settings that only a table has at their default."""
        default = {field: Point.model_fields[field].default for field in ("lookup_scale", "encoder_scale")}
        return self.model_copy(update={"table": "none"} | default)


class Grid(Section):
    """A part of a block of the sweep: the product of all its lists."""

    layers: tuple[Layer, ...] | None = Field(None, min_length=1, description="Layers; null: every cached layer")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0,), min_length=1, description="Seeds of initialisation and data order"
    )
    architecture: ArchitectureName = Field(
        "topk",
        description="topk: keep the k largest pre-activations of a token; relu: ReLU with an L1 penalty; "
        "gated: one encoder says which features are active, another how much",
    )
    k: tuple[Annotated[int, Field(ge=1)], ...] = Field((), description="Active features per token (topk)")
    l1: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (),
        description="Coefficient of the sparsity penalty, in units where the mean residual norm is sqrt(d_model) (relu, gated)",
    )
    expansion: tuple[Annotated[float, Field(gt=0, le=MOST_EXPANSION)], ...] = Field(
        min_length=1, description="Features / d_model"
    )
    table: tuple[Literal["none", "fixed", "learned"], ...] = Field(
        min_length=1,
        description="none: the baseline; fixed: token-biases stay at their initial rows; learned: trained with the rest",
    )
    lookup_scale: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (0.5,), min_length=1, description="Initial token-bias / unigram residual"
    )
    encoder_scale: tuple[Annotated[float, Field(gt=0)] | None, ...] = Field(
        (None,),
        min_length=1,
        description="W_enc starts at this multiple of W_dec's transpose; null: 1 - lookup_scale, and 1 for the baseline",
    )
    encoder_input: tuple[Literal["residual", "without_unigram"], ...] = Field(
        ("residual",),
        min_length=1,
        description="What the encoder sees: the residual less b_dec, or its part orthogonal to the token's unigram residual",
    )
    b_dec: tuple[Literal["mean", "zero"], ...] = Field(
        ("mean",),
        min_length=1,
        description="b_dec starts at the mean training residual less its token-bias, or at zero, as the authors' does",
    )
    topk_relu: tuple[bool, ...] = Field(
        (True,),
        min_length=1,
        description="Apply a ReLU after TopK; false keeps negative activations, as the authors' code did",
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
        return self

    def size(self, n_layers: int) -> int:
        """SAEs that the product of its lists spells, baselines that differ in a table's settings alone counted apart.

        Args:
            n_layers: layers that it takes if it names none.
        """
        n_points = math.prod(len(values) for _, values in self if isinstance(values, tuple) and values)
        return n_points if self.layers else n_points * n_layers

    def points(self) -> Iterator[Point]:
        """Every point of the grid, each once: a baseline has no lookup_scale."""
        axes = {
            field: values if isinstance(values, tuple) else (values,)
            for field, values in self
            if field not in ("layers", "seeds")
        }
        axes = {field: values or (None,) for field, values in axes.items()}
        products: Iterator[tuple[Any, ...]] = itertools.product(*axes.values())
        points = (Point(**dict(zip(axes, values, strict=True))) for values in products)
        baseline_default = Point.model_fields["lookup_scale"].default
        yield from dict.fromkeys(
            p.model_copy(update={"lookup_scale": baseline_default}) if p.table == "none" else p for p in points
        )


class Job(Section):
    """One SAE: to train, a point of the sweep at a layer with a seed; or one that the authors released."""

    layer: int
    point: Point
    seed: int
    released: Name | None = Field(
        None,
        exclude_if=lambda released: released is None,
        description="The end of a released file's name, as `ot30`; says that the SAE is not trained here",
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
