"""Selections: rows of the tables of a run, chosen by what they are, declared as data."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

import numpy as np
import pandas as pd
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from tsae.metrics import METRICS
from tsae.section import Name, Section
from tsae.sums import DocumentSums
from tsae.sweep import SPARSITY, ArchitectureName, EncoderInput, TableName

Role = Literal["baseline", "tokenized", "remainder"]
ROLES: tuple[Role, ...] = get_args(Role)
RECOMMENDED = "gpt2-layers"  # of the authors' folders, the one whose SAEs are meant where none is named
TABLES_ALONE = ("unigram-residuals", "conditional-means", "residuals")


class NotMeasuredError(Exception):
    """A profile lacks what a measure needs; the message says what."""


class TrainingFailedError(NotMeasuredError):
    """A measure needs SAEs whose training failed; `saes` names them."""

    def __init__(self, saes: Sequence[str], needed_for: str = ""):
        super().__init__(f"{', '.join(saes)}{needed_for} failed in training")
        self.saes = tuple(saes)


def number_or(*words: str) -> BeforeValidator:
    """Accept a number or one of some words, with one message for everything else."""

    def check(value: Any) -> Any:
        if isinstance(value, bool) or not (isinstance(value, int | float) or value in words):
            raise ValueError(f"expected a number or one of {', '.join(words)}")
        return value

    return BeforeValidator(check)


def suggest(value: str, known: list[str]) -> str:
    """The known name that was probably meant, as the end of an error message."""
    close = difflib.get_close_matches(value, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _known_metric(metric: str) -> str:
    if metric not in METRICS:
        raise ValueError(f"unknown metric{suggest(metric, list(METRICS))}")
    return metric


def _known_subject(subject: str) -> str:
    known = [*ROLES, *TABLES_ALONE]
    if subject not in known and not subject.startswith(tuple(f"{name}-" for name in (*SPARSITY, "released"))):
        raise ValueError(f"unknown subject{suggest(subject, known)}")
    return subject


Metric = Annotated[str, AfterValidator(_known_metric)]
Subject = Annotated[str, AfterValidator(_known_subject)]
Extreme = Literal["min", "max"]
NumberOrExtreme = Annotated[float | Extreme, number_or("min", "max")]


class Points(Section):
    """Points of a sweep by their settings; `min` and `max` are taken at each layer, after everything else is chosen."""

    architecture: ArchitectureName | None = None
    table: TableName | None = None
    rows: Literal["unigram", "permuted"] | None = None
    encoder_input: EncoderInput | None = None
    start: Literal["centred", "authors"] | None = None
    centre: float | None = None
    table_lr: float | None = None
    budget: NumberOrExtreme | None = None
    k: NumberOrExtreme | None = None
    lookup_scale: NumberOrExtreme | None = None
    expansion: NumberOrExtreme | None = None
    expansion_at_least: float | None = Field(None, description="Smaller SAEs are left out, for `expansion: min`")

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self
            if value is not None
        )

    def among(self, rows: pd.DataFrame, otherwise: str) -> pd.DataFrame:
        """Rows with these settings, before extremes are taken.

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
        """Of rows with these settings, those at the extremes that are asked for."""
        for name, value in self:
            if value in get_args(Extreme):
                rows = rows[rows[name] == getattr(rows[name], str(value))()]
        return rows


class Change(Section):
    """What the second of two selections has otherwise than the first."""

    block: Name | None = Field(None, description="A block of the sweep, or one of the other tables")
    metric: Metric | None = None
    subject: Subject | None = Field(
        None,
        description="`baseline`, `tokenized` or `remainder`, the headline SAEs, or what else the tables call a subject",
    )
    points: Points | None = Field(None, description="In place of a subject: a point by its settings")
    at: Annotated[float | Literal["min", "max", "simple"], number_or("min", "max", "simple")] | None = Field(
        None, description="Value of `at`; simple: the threshold of a simple feature"
    )
    min_count: int | None = Field(None, ge=0)
    layer: Annotated[int | Literal["first", "last"], number_or("first", "last")] | None = Field(
        None, description="One layer; by default all, each by itself"
    )

    @model_validator(mode="after")
    def _check_subject(self) -> "Change":
        if self.subject is not None and self.points is not None:
            raise ValueError("subject and points exclude each other")
        return self


class Selection(Change):
    """Rows of a table: one per layer and seed."""

    block: Name = "headline"
    metric: Metric

    @model_validator(mode="after")
    def _check_complete(self) -> "Selection":
        if self.subject is None and self.points is None:
            raise ValueError("needs a subject, or points")
        return self

    def changed(self, change: Change) -> "Selection":
        """The same with another's keys where they are given."""
        given = {name: value for name, value in change if value is not None}
        if "points" in given or "subject" in given:
            given = {"points": None, "subject": None} | given
        return self.model_copy(update=given)


SumsOf = tuple[int, str, int | None, int | None]
"""Layer, subject, seed if it has one, and training step of a checkpoint."""


@dataclass(frozen=True, eq=False)
class Run:
    """What a run measured."""

    tables: Mapping[str, pd.DataFrame]
    """A table per block; see `tsae.table`."""
    roles: Mapping[Role, str]
    """Ids of the headline SAEs."""
    simple_threshold: float
    """The threshold of a simple feature."""
    sums: Mapping[SumsOf, DocumentSums] = field(default_factory=dict)
    """Sums over held-out documents, the same documents for all."""
    bootstrap: int = 1000
    """Bootstrap samples."""
    seed: int = 0
    """Seed of the bootstrap."""


def of_role(run: Run, subject: str) -> str:
    """What the tables call a subject that may be a role.

    Raises:
        NotMeasuredError: no headline SAE has the role.
    """
    if subject not in ROLES:
        return subject
    if subject not in run.roles:
        raise NotMeasuredError(f"this profile has no headline SAE {subject!r}")
    return run.roles[subject]


def candidates(run: Run, selection: Selection) -> pd.DataFrame:
    """Rows that a selection is taken from: all metrics of its SAEs at all its layers, failed ones included.

    Raises:
        NotMeasuredError: there are none.
    """
    rows = table_of(run, selection.block)
    if selection.points is not None:
        rows = selection.points.among(rows, f"block {selection.block!r} has no point with {selection.points}")
    else:
        subject = of_role(run, str(selection.subject))
        recommended = subject.replace("released-", f"released-{RECOMMENDED}-")
        if subject not in set(rows["subject"]) and recommended in set(rows["subject"]):
            subject = recommended
        missing = f"block {selection.block!r} has no {selection.metric} of {subject}"
        rows = keep(rows, rows["subject"] == subject, missing)
    if selection.layer is not None:
        edges = {"first": rows["layer"].min(), "last": rows["layer"].max()}
        layer = edges.get(str(selection.layer), selection.layer)
        rows = keep(rows, rows["layer"] == layer, f"no {_described(run, selection)} at layer {layer}")
    return rows


def layers_of(run: Run, selection: Selection) -> list[int]:
    """The layers at which a selection has candidates, in order."""
    return sorted(int(layer) for layer in candidates(run, selection)["layer"].unique())


def select(run: Run, selection: Selection, layer: int) -> pd.DataFrame:
    """Rows of a selection at a layer, one per seed.

    Raises:
        TrainingFailedError: an SAE of it failed in training, or the one whose table it was to be compared with.
        NotMeasuredError: there are none, or several per seed, or one lacks the metric.
    """
    of_what = _described(run, selection)
    rows = candidates(run, selection)
    rows = keep(rows, rows["layer"] == layer, f"no {of_what} at layer {layer}")
    # Extremes are taken among all SAEs, those that failed included: another does not take the place of one.
    if selection.points is not None:
        rows = selection.points.extreme(rows)
    refuse_failed(rows)
    rows = _with_metric(run, rows, selection.metric, f"block {selection.block!r} has no {of_what}")
    if selection.at is not None:
        at = run.simple_threshold if selection.at == "simple" else selection.at
        wanted = getattr(rows["at"], at)() if isinstance(at, str) else at
        rows = keep(rows, np.isclose(rows["at"], wanted), f"no {of_what} at {wanted:g}")
    if selection.min_count is not None:
        missing = f"no {of_what} over tokens seen {selection.min_count} times"
        rows = keep(rows, rows["min_count"] == selection.min_count, missing)
    rows = keep(rows, rows["value"].notna(), f"{of_what} has no value")
    if rows.duplicated("seed").any():
        raise NotMeasuredError(f"there are several {of_what} per layer and seed")
    return rows.sort_values("seed")


def table_of(run: Run, block: str) -> pd.DataFrame:
    """The table of a block.

    Raises:
        NotMeasuredError: the run has none.
    """
    if block not in run.tables:
        raise NotMeasuredError(f"this profile has no block {block!r}{suggest(block, list(run.tables))}")
    return run.tables[block]


def refuse_failed(rows: pd.DataFrame) -> None:
    """See that no SAE of these rows failed in training.

    Raises:
        TrainingFailedError: some did.
    """
    failed = rows[rows["metric"] == "failed"]
    if len(failed):
        raise TrainingFailedError(_names(failed))


def _described(run: Run, selection: Selection) -> str:
    of = f"point with {selection.points}" if selection.points is not None else of_role(run, str(selection.subject))
    return f"{selection.metric} of {of}"


def _with_metric(run: Run, rows: pd.DataFrame, metric: str, otherwise: str) -> pd.DataFrame:
    """The rows of a metric, which every SAE must have: a mean of what is left would be of something else."""
    of = ["subject", "layer", "seed"]
    found = rows[rows["metric"] == metric]
    # Tables alone have the seed NaN, which is not equal to itself.
    measured = pd.MultiIndex.from_frame(found[of].fillna({"seed": -1}))
    lacking = rows[~pd.MultiIndex.from_frame(rows[of].fillna({"seed": -1})).isin(measured)]
    if lacking.empty:
        return found
    # Features are compared with the table of the headline's tokenized SAE, which need not be in the block.
    headline = run.tables.get("headline", rows.iloc[:0])
    failed = headline[
        (headline["metric"] == "failed")
        & (headline["subject"] == run.roles.get("tokenized"))
        & headline["layer"].isin(lacking["layer"])
    ]
    if metric.startswith("feature_token_bias") and len(failed):
        raise TrainingFailedError(_names(failed), ", with whose table features are compared,")
    raise NotMeasuredError(otherwise if found.empty else f"there is no {metric} of {', '.join(_names(lacking))}")


def _names(rows: pd.DataFrame) -> list[str]:
    saes = rows[["subject", "layer", "seed"]].drop_duplicates().itertuples(index=False, name=None)
    return [
        f"{subject} (layer {layer})" if pd.isna(seed) else f"{subject} (layer {layer}, seed {seed})"
        for subject, layer, seed in saes
    ]


def keep(rows: pd.DataFrame, chosen: "pd.Series[bool] | np.ndarray", otherwise: str) -> pd.DataFrame:
    """Rows that are chosen.

    Raises:
        NotMeasuredError: none is; `otherwise` is the message.
    """
    rows = rows[chosen]
    if rows.empty:
        raise NotMeasuredError(otherwise)
    return rows
