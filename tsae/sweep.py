"""The sweep: which SAEs are trained."""

import itertools
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tsae.section import Layer, Section


class Point(Section):
    """One SAE of the sweep, all but its layer and seed."""

    architecture: Literal["topk"] = Field("topk", description="topk: keep the k largest pre-activations of a token")
    k: int = Field(ge=1, description="Active features per token")
    expansion: float = Field(gt=0, description="Features / d_model")
    table: Literal["none", "fixed", "learned"] = Field(
        description="none: the baseline; fixed: token-biases stay at their initial rows; learned: trained with the rest"
    )
    lookup_scale: float = Field(0.5, ge=0, description="Initial token-bias / unigram residual")
    encoder_scale: float | None = Field(
        None,
        ge=0,
        description="W_enc starts at this multiple of W_dec's transpose; null: 1 - lookup_scale, and 1 for the baseline",
    )
    b_dec: Literal["mean", "zero"] = Field(
        "mean",
        description="b_dec starts at the mean training residual less its token-bias, or at zero, as the authors' does",
    )
    topk_relu: bool = Field(
        True, description="Apply a ReLU after TopK; false keeps negative activations, as the authors' code did"
    )

    @property
    def id(self) -> str:
        """Readable name of the point in paths and tables: `topk-k32-x4-learned`; settings at their default are left out."""
        parts = [self.architecture, f"k{self.k}", f"x{self.expansion:g}", self.table]
        if self.table != "none" and self.lookup_scale != 0.5:
            parts.append(f"lookup{self.lookup_scale:g}")
        if self.encoder_scale is not None:
            parts.append(f"enc{self.encoder_scale:g}")
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


# Settings that say nothing about a baseline; at their default they do not tell two baselines apart.
WITHOUT_TABLE = {"lookup_scale": Point.model_fields["lookup_scale"].default}


class Grid(Section):
    """A block of the sweep: the product of all its lists."""

    layers: tuple[Layer, ...] | None = Field(None, min_length=1, description="Layers; null: every cached layer")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0,), min_length=1, description="Seeds of initialisation and data order"
    )
    architecture: tuple[Literal["topk"], ...] = Field(("topk",), min_length=1, description="Architectures")
    k: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1, description="Active features per token")
    expansion: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1, description="Features / d_model")
    table: tuple[Literal["none", "fixed", "learned"], ...] = Field(
        min_length=1, description="Tables: none, fixed or learned"
    )
    lookup_scale: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (0.5,), min_length=1, description="Initial token-bias / unigram residual"
    )
    encoder_scale: tuple[Annotated[float, Field(ge=0)] | None, ...] = Field(
        (None,),
        min_length=1,
        description="Initial W_enc / W_dec's transpose; null: 1 - lookup_scale, and 1 for the baseline",
    )
    b_dec: tuple[Literal["mean", "zero"], ...] = Field(
        ("mean",), min_length=1, description="Start of b_dec: the mean training residual less its token-bias, or zero"
    )
    topk_relu: tuple[bool, ...] = Field((True,), min_length=1, description="Apply a ReLU after TopK")

    @model_validator(mode="after")
    def _refuse_repeats(self) -> "Grid":
        for field, values in self:
            if values is not None and len(set(values)) < len(values):
                raise ValueError(f"{field} names a value twice: {list(values)}")
        return self

    def points(self) -> Iterator[Point]:
        """Every point of the block, each once: a baseline has no lookup_scale."""
        axes = {field: values for field, values in self if field not in ("layers", "seeds")}
        points = (Point(**dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values()))
        yield from dict.fromkeys(p.model_copy(update=WITHOUT_TABLE) if p.table == "none" else p for p in points)


class Job(Section):
    """One SAE to train: a point of the sweep at a layer with a seed."""

    layer: int
    point: Point
    seed: int

    @property
    def id(self) -> str:
        """`layer12/topk-k32-x4-learned-s0`: the path of the SAE below `saes/` and of its metrics below `metrics/`."""
        return f"layer{self.layer}/{self.point.id}-s{self.seed}"
