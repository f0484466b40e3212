"""A point of the sweep: one SAE, all but its layer and seed, and what its settings mean."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from tsae.profile.architectures import ARCHITECTURES, Sparsity
from tsae.profile.section import Section

# The names are those of the modules in sae/architectures, which a type checker cannot list.
if TYPE_CHECKING:
    ArchitectureName = str
else:
    ArchitectureName = Literal[tuple(ARCHITECTURES)]

TableName = Literal["none", "fixed", "scaled", "embedding", "learned"]
EncoderInput = Literal["residual", "remainder", "without_unigram"]
# Which setting says how sparse an architecture is; the other one is refused.
SPARSITY: dict[str, Sparsity] = {name: about.sparsity for name, about in ARCHITECTURES.items()}
MOST_EXPANSION = 1 << 20  # no SAE is so wide, and products with it stay finite
# What says nothing about an SAE without a table.
OF_TABLES = ("rows", "lookup_scale", "table_lr")
# What the authors' start decides by itself.
OF_CENTRED = ("centre", "decoder_norm")
NO_ROWS = (
    "encoder_input: remainder takes the token's row of the table out of what the encoder sees, and table: none has no rows; give "
    "baselines a grid of their own"
)
NOT_OF_AUTHORS = "{0}: start: authors has unit decoder rows and no centre of the encoder's input; leave {0} out, or set start: centred"
# Length of W_dec's rows at the start. Unit rows, as the authors', leave a baseline's NMSE 4% higher on the embedded budget.
DECODER_NORM = 0.1


class Point(Section):
    """One SAE of the sweep, all but its layer and seed."""

    architecture: ArchitectureName = "topk"
    k: int | None = Field(None, ge=1)
    l1: float | None = Field(None, gt=0)
    expansion: float = Field(gt=0, le=MOST_EXPANSION)
    table: TableName
    rows: Literal["unigram", "permuted"] = "unigram"
    lookup_scale: float = Field(0.5, ge=0)
    table_lr: float | None = Field(None, gt=0)
    encoder_input: EncoderInput = "residual"
    start: Literal["centred", "authors"] = "centred"
    centre: float | None = Field(None, ge=0, le=1)
    decoder_norm: float | None = Field(None, gt=0)
    encoder_scale: float | None = Field(None, gt=0)
    topk_relu: bool = True
    budget: float = Field(1.0, gt=0, le=1)

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

    @model_validator(mode="after")
    def _check_encoder(self) -> "Point":
        if self.encoder_input == "remainder" and self.table == "none":
            raise ValueError(NO_ROWS)
        for setting in OF_CENTRED:
            if self.start == "authors" and getattr(self, setting) is not None:
                raise ValueError(NOT_OF_AUTHORS.format(setting))
        return self

    @property
    def id(self) -> str:
        """Readable name of the point in paths and tables: `topk-k32-x4-learned`; settings at their default are left out."""
        sparsity = f"k{self.k}" if self.k is not None else f"l1_{self.l1:g}"
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
        return "-".join(parts)

    @property
    def initial_encoder_scale(self) -> float:
        """The factor between W_enc and W_dec's transpose at initialisation."""
        if self.encoder_scale is not None:
            return self.encoder_scale
        return 1.0 - self.lookup_scale if self.start == "authors" and self.table != "none" else 1.0

    @property
    def initial_decoder_norm(self) -> float:
        """The length of W_dec's rows at initialisation, where the mean residual has the length sqrt(d_model)."""
        if self.decoder_norm is not None:
            return self.decoder_norm
        return 1.0 if self.start == "authors" else DECODER_NORM

    @property
    def is_centred(self) -> bool:
        """Whether the encoder's input starts without a constant."""
        return self.start == "centred" and self.centre in (None, 1.0)

    def n_features(self, d_model: int) -> int:
        """Number of features at a model width."""
        return round(self.expansion * d_model)

    def without_table(self) -> "Point":
        """The baseline of a tokenized point: the same SAE, with the settings that only a table has at their default."""
        default = {field: Point.model_fields[field].default for field in (*OF_TABLES, "encoder_scale")}
        if self.encoder_input == "remainder":
            default["encoder_input"] = "residual"
        return self.model_copy(update={"table": "none"} | default)
