"""Which rows of a run's tables a claim is about, declared as data: metric, subject, settings and layer."""

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

import numpy as np
import pandas as pd
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from tsae.measure.definitions import DEFINITIONS
from tsae.profile.architectures import ARCHITECTURES
from tsae.profile.config import Role
from tsae.profile.point import ArchitectureName, EncoderInput, RowsName, TableName
from tsae.profile.section import Name, Section

ROLES: tuple[Role, ...] = get_args(Role)
TABLES_ALONE = ("unigram-residuals", "conditional-means", "residuals")


class NotMeasuredError(Exception):
    """A profile lacks what a measure needs; the message names it."""


class TrainingFailedError(NotMeasuredError):
    """The training of SAEs that a measure needs failed; `saes` names them."""

    def __init__(self, saes: Sequence[str], needed_for: str = ""):
        super().__init__(f"{', '.join(saes)}{needed_for} failed in training")
        self.saes = tuple(saes)


def number_or(*words: str) -> BeforeValidator:
    """Accept a number or one of the words."""

    def check(value: Any) -> Any:
        if isinstance(value, bool) or not (isinstance(value, int | float) or value in words):
            raise ValueError(f"expected a number or one of {', '.join(words)}")
        return value

    return BeforeValidator(check)


def suggest(value: str, known: list[str]) -> str:
    """The end of an error message: the known name that was probably meant."""
    close = difflib.get_close_matches(value, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def keep(rows: pd.DataFrame, chosen: "pd.Series[bool] | np.ndarray", otherwise: str) -> pd.DataFrame:
    """The chosen rows.

    Raises:
        NotMeasuredError: there are none; `otherwise` is the message.
    """
    rows = rows[chosen]
    if rows.empty:
        raise NotMeasuredError(otherwise)
    return rows


def _known_metric(metric: str) -> str:
    if metric not in DEFINITIONS:
        raise ValueError(f"unknown metric{suggest(metric, list(DEFINITIONS))}")
    return metric


def _known_subject(subject: str) -> str:
    known = [*ROLES, *TABLES_ALONE]
    if subject not in known and not subject.startswith(tuple(f"{name}-" for name in (*ARCHITECTURES, "released"))):
        raise ValueError(f"unknown subject{suggest(subject, known)}")
    return subject


Metric = Annotated[str, AfterValidator(_known_metric)]
Subject = Annotated[str, AfterValidator(_known_subject)]
Extreme = Literal["min", "max"]
NumberOrExtreme = Annotated[float | Extreme, number_or("min", "max")]


class Points(Section):
    """Points of a sweep by their settings. `min` and `max` apply last, at each layer."""

    architecture: ArchitectureName | None = None
    table: TableName | None = None
    rows: RowsName | None = None
    encoder_input: EncoderInput | None = None
    start: Literal["centred", "authors"] | None = None
    centre: float | None = None
    table_lr: float | None = None
    budget: NumberOrExtreme | None = None
    distinct: NumberOrExtreme | None = None
    k: NumberOrExtreme | None = None
    lookup_scale: NumberOrExtreme | None = None
    expansion: NumberOrExtreme | None = None
    expansion_at_least: float | None = Field(None, description="Leave out smaller SAEs before `expansion: min`")

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self
            if value is not None
        )

    def among(self, rows: pd.DataFrame, otherwise: str) -> pd.DataFrame:
        """Rows with these settings; `extreme` applies `min` and `max`.

        Raises:
            NotMeasuredError: there are none; `otherwise` is the message.
        """
        for name, value in self:
            if value is None or value in get_args(Extreme):
                continue
            if name == "expansion_at_least":
                rows = keep(rows, rows["expansion"] >= value, otherwise)
            elif isinstance(value, float):
                rows = keep(rows, np.isclose(rows[name].to_numpy(float, na_value=np.nan), value), otherwise)
            else:
                rows = keep(rows, rows[name] == value, otherwise)
        return rows

    def extreme(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The rows at the smallest or largest value of each setting that is `min` or `max`."""
        for name, value in self:
            if value in get_args(Extreme):
                rows = rows[rows[name] == getattr(rows[name], str(value))()]
        return rows


class Change(Section):
    """How the second of two selections differs from the first."""

    block: Name | None = Field(None, description="A block of the sweep, or one of the other tables")
    metric: Metric | None = None
    subject: Subject | None = Field(
        None, description="A headline SAE (`baseline`, `tokenized`, `remainder`) or another subject of the tables"
    )
    points: Points | None = Field(None, description="Instead of a subject: a point by its settings")
    at: Annotated[float | Literal["min", "max", "simple"], number_or("min", "max", "simple")] | None = Field(
        None, description="Value of `at`; `simple` is the threshold of a simple feature"
    )
    min_count: int | None = Field(None, ge=0)
    layer: Annotated[int | Literal["first", "last"], number_or("first", "last")] | None = Field(
        None, description="One layer; by default each layer"
    )

    @model_validator(mode="after")
    def _check_subject(self) -> "Change":
        if self.subject is not None and self.points is not None:
            raise ValueError("subject and points exclude each other")
        return self


class Selection(Change):
    """Rows of a table, one per layer and seed."""

    block: Name = "headline"
    metric: Metric

    @model_validator(mode="after")
    def _check_complete(self) -> "Selection":
        if self.subject is None and self.points is None:
            raise ValueError("needs a subject, or points")
        return self

    def changed(self, change: Change) -> "Selection":
        """The selection with the keys of a change."""
        given = {name: value for name, value in change if value is not None}
        if "points" in given or "subject" in given:
            given = {"points": None, "subject": None} | given
        return self.model_copy(update=given)
