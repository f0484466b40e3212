"""A point of the sweep: the settings of an SAE, all but its layer and seed."""

from typing import TYPE_CHECKING, Literal, get_args

from pydantic import Field, model_validator

from tsae.profile.architectures import ARCHITECTURES, Sparsity
from tsae.profile.section import Section

# The names of the modules in sae/architectures, which a type checker cannot list.
if TYPE_CHECKING:
    ArchitectureName = str
else:
    ArchitectureName = Literal[tuple(ARCHITECTURES)]

TableName = Literal["none", "fixed", "scaled", "embedding", "learned"]
RowsName = Literal["unigram", "conditional", "bigram", "permuted"]
EncoderInput = Literal["residual", "remainder", "without_unigram"]
MOST_EXPANSION = 1 << 20  # no SAE is so wide, and products with it stay finite
MOST_BUDGET = 1024.0
OF_TABLES = ("rows", "lookup_scale", "table_lr")  # settings without meaning for a baseline
# Initial length of W_dec's rows. The authors' unit rows leave a baseline's NMSE 4% higher on the embedded budget.
DECODER_NORM = 0.1


def check_settings(settings: Section) -> None:
    """Check that the settings of a point, or the lists of a grid, do not contradict one another.

    Raises:
        ValueError: they do; the message names the setting.
    """
    given = {
        name: {value for value in (values if isinstance(values, tuple) else (values,)) if value is not None}
        for name, values in settings
    }
    (architecture,) = given["architecture"]
    wanted = ARCHITECTURES[architecture].sparsity
    for unwanted in set(get_args(Sparsity)) - {wanted}:
        if given[unwanted]:
            raise ValueError(
                f"{unwanted} says nothing about architecture {architecture}, whose sparsity is set by {wanted}"
            )
    if not given[wanted]:
        raise ValueError(f"architecture {architecture} needs {wanted}")
    if architecture != "topk" and False in given["topk_relu"]:
        raise ValueError(f"topk_relu: false says nothing about architecture {architecture}")
    if "remainder" in given["encoder_input"] and "none" in given["table"]:
        raise ValueError(
            "encoder_input: remainder subtracts the token's row of the table, and table: none has no rows; give "
            "baselines a grid of their own"
        )
    if "bigram" in given["rows"]:
        if others := given["table"] - {"none", "fixed", "learned"}:
            raise ValueError(f"rows: bigram says nothing about table: {min(others)}; take fixed or learned")
        if "without_unigram" in given["encoder_input"]:
            raise ValueError(
                "rows: bigram has no unigram residuals for encoder_input: without_unigram; take another input"
            )
    for setting in ("centre", "decoder_norm"):
        if "authors" in given["start"] and given[setting]:
            raise ValueError(
                f"{setting}: start: authors has unit decoder rows and no centre of the encoder's input; leave "
                f"{setting} out, or set start: centred"
            )


class Point(Section):
    """The settings of an SAE; `Grid` describes each."""

    architecture: ArchitectureName = "topk"
    k: int | None = Field(None, ge=1)
    l1: float | None = Field(None, gt=0)
    l0_penalty: float | None = Field(None, gt=0)
    expansion: float = Field(gt=0, le=MOST_EXPANSION)
    table: TableName
    rows: RowsName = "unigram"
    lookup_scale: float = Field(0.5, ge=0)
    table_lr: float | None = Field(None, gt=0)
    encoder_input: EncoderInput = "residual"
    start: Literal["centred", "authors"] = "centred"
    centre: float | None = Field(None, ge=0, le=1)
    decoder_norm: float | None = Field(None, gt=0)
    encoder_scale: float | None = Field(None, gt=0)
    topk_relu: bool = True
    budget: float = Field(1.0, gt=0, le=MOST_BUDGET)
    distinct: float = Field(1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> "Point":
        check_settings(self)
        return self

    @property
    def id(self) -> str:
        """Name of the point in paths and tables, without settings at their default: `topk-k32-x4-learned`."""
        sparsity = f"k{self.k}" if self.k is not None else f"l{0 if self.l1 is None else 1}_{self.penalty:g}"
        parts = [self.architecture, sparsity, f"x{self.expansion:g}", self.table]
        if self.rows != "unigram":
            parts.append(self.rows)
        if self.table != "none" and self.lookup_scale != 0.5:
            parts.append(f"lookup{self.lookup_scale:g}")
        if self.table_lr is not None:
            parts.append(f"tablelr{self.table_lr:g}")
        if self.encoder_input != "residual":
            parts.append({"remainder": "remainder", "without_unigram": "nounigram"}[self.encoder_input])
        if self.start != "centred":
            parts.append(self.start)
        for name, value in (("centre", self.centre), ("dec", self.decoder_norm), ("enc", self.encoder_scale)):
            if value is not None:
                parts.append(f"{name}{value:g}")
        if not self.topk_relu:
            parts.append("norelu")
        if self.budget != 1:
            parts.append(f"budget{self.budget:g}")
        if self.distinct != 1:
            parts.append(f"distinct{self.distinct:g}")
        return "-".join(parts)

    @property
    def penalty(self) -> float:
        """Coefficient of the sparsity penalty; 0 if there is none."""
        return self.l1 or self.l0_penalty or 0.0

    @property
    def initial_encoder_scale(self) -> float:
        """Initial W_enc / W_dec's transpose."""
        if self.encoder_scale is not None:
            return self.encoder_scale
        return 1.0 - self.lookup_scale if self.start == "authors" and self.table != "none" else 1.0

    @property
    def initial_decoder_norm(self) -> float:
        """Initial length of W_dec's rows, in units where the mean residual norm is sqrt(d_model)."""
        if self.decoder_norm is not None:
            return self.decoder_norm
        return 1.0 if self.start == "authors" else DECODER_NORM

    @property
    def has_means(self) -> bool:
        """Whether the table starts from means of training residuals."""
        return self.rows in ("conditional", "bigram")

    @property
    def is_centred(self) -> bool:
        """Whether the encoder's input has mean zero at the start."""
        return self.start == "centred" and self.centre in (None, 1.0)

    def n_features(self, d_model: int) -> int:
        """Number of features at a model width."""
        return round(self.expansion * d_model)

    def without_table(self) -> "Point":
        """The baseline of a tokenized point: the same SAE, with the settings of its table at their default."""
        default = {field: Point.model_fields[field].default for field in (*OF_TABLES, "encoder_scale")}
        if self.encoder_input == "remainder":
            default["encoder_input"] = "residual"
        return self.model_copy(update={"table": "none"} | default)
