"""Selections: rows of the tables of a run, chosen by what they are, declared as data."""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from tsae.metrics import METRICS
from tsae.section import Section
from tsae.sweep import SPARSITY, ArchitectureName

Block = Literal["headline", "pareto", "expansion", "init", "encoder", "baselines", "curves", "phrases", "released"]
ROLES = ("baseline", "tokenized")
FAILED = "failed in training"  # how the message of a TrainingFailedError ends
RECOMMENDED = "gpt2-layers"  # of the authors' folders, the one whose SAEs are meant where none is named
TABLES_ALONE = ("unigram-residuals", "conditional-means", "residuals")


class NotMeasuredError(Exception):
    """A profile lacks what a measure needs; the message says what."""


class TrainingFailedError(NotMeasuredError):
    """A measure needs an SAE whose training failed; the message names it."""


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
Extreme = Literal["min", "max"]


class Points(Section):
    """Points of a sweep by their settings; `min` and `max` are taken after everything else is chosen."""

    architecture: ArchitectureName | None = None
    table: Literal["none", "fixed", "learned"] | None = None
    encoder_input: Literal["residual", "without_unigram"] | None = None
    k: Annotated[float | Extreme, number_or("min", "max")] | None = None
    lookup_scale: Annotated[float | Extreme, number_or("min", "max")] | None = None
    expansion: Annotated[float | Extreme, number_or("min", "max")] | None = None

    def __str__(self) -> str:
        return ", ".join(
            f"{field} {value:g}" if isinstance(value, float) else f"{field} {value}"
            for field, value in self
            if value is not None
        )


class Change(Section):
    """What the second of two selections has otherwise than the first."""

    block: Block | None = None
    metric: Metric | None = None
    subject: Annotated[str, AfterValidator(_known_subject)] | None = Field(
        None, description="`baseline` or `tokenized`, the headline SAEs, or what else the tables call a subject"
    )
    points: Points | None = Field(None, description="In place of a subject: a point by its settings")
    at: Annotated[float | Literal["min", "max", "simple"], number_or("min", "max", "simple")] | None = Field(
        None, description="Value of `at`; simple: the threshold of a simple feature"
    )
    min_count: int | None = Field(None, ge=0)
    layer: Annotated[int | Literal["first", "last"], number_or("first", "last")] | None = Field(
        None, description="One layer; by default all"
    )

    @model_validator(mode="after")
    def _check_subject(self) -> "Change":
        if self.subject is not None and self.points is not None:
            raise ValueError("subject and points exclude each other")
        return self


class Selection(Change):
    """Rows of a table: one per layer and seed."""

    block: Block = "headline"
    metric: Metric

    @model_validator(mode="after")
    def _check_complete(self) -> "Selection":
        if self.subject is None and self.points is None:
            raise ValueError("needs a subject, or points")
        return self


class Run(NamedTuple):
    """What a run measured."""

    tables: Mapping[str, pd.DataFrame]
    """A table per block; see `tsae.table`."""
    baseline: str
    """Id of the headline baseline."""
    tokenized: str
    """Id of the headline tokenized SAE."""
    simple_threshold: float
    """The threshold of a simple feature."""


def select(run: Run, selection: Selection) -> pd.DataFrame:
    """Rows of a selection, one per layer and seed; a value without an interval has itself as both ends.

    Raises:
        TrainingFailedError: an SAE of it failed in training, or the one whose table it was to be compared with.
        NotMeasuredError: there are none, or several per layer and seed, or one lacks the metric.
    """
    # Settings and layers are chosen among all SAEs, those that failed included: another does not take the place of one.
    rows = table_of(run, selection.block)
    if selection.points is not None:
        what = f"point with {selection.points}"
        for field, value in selection.points:
            if value is not None and value not in ("min", "max"):
                rows = keep(rows, rows[field] == value, f"block {selection.block!r} has no {what}")
        for field, value in selection.points:
            if value in ("min", "max"):
                rows = rows[rows[field] == getattr(rows[field], value)()]
    else:
        what = {"baseline": run.baseline, "tokenized": run.tokenized}.get(
            str(selection.subject), str(selection.subject)
        )
        recommended = what.replace("released-", f"released-{RECOMMENDED}-")
        if what not in set(rows["subject"]) and recommended in set(rows["subject"]):
            what = recommended
        rows = keep(rows, rows["subject"] == what, f"block {selection.block!r} has no {selection.metric} of {what}")
    of_what = f"{selection.metric} of {what}"
    if selection.layer is not None:
        edges = {"first": rows["layer"].min(), "last": rows["layer"].max()}
        layer = edges.get(str(selection.layer), selection.layer)
        rows = keep(rows, rows["layer"] == layer, f"no {of_what} at layer {layer}")
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
    if rows.duplicated(["layer", "seed"]).any():
        raise NotMeasuredError(f"there are several {of_what} per layer and seed")
    return rows.assign(low=rows["low"].fillna(rows["value"]), high=rows["high"].fillna(rows["value"]))


def table_of(run: Run, block: str) -> pd.DataFrame:
    """The table of a block.

    Raises:
        NotMeasuredError: the run has none.
    """
    if block not in run.tables:
        raise NotMeasuredError(f"this profile has no block {block!r}")
    return run.tables[block]


def refuse_failed(rows: pd.DataFrame) -> None:
    """See that no SAE of these rows failed in training.

    Raises:
        TrainingFailedError: one did; the message names all that did.
    """
    failed = rows[rows["metric"] == "failed"]
    if len(failed):
        raise TrainingFailedError(f"{_name_saes(failed)} {FAILED}")


def _with_metric(run: Run, rows: pd.DataFrame, metric: str, otherwise: str) -> pd.DataFrame:
    """The rows of a metric, which every SAE must have: a mean of what is left would be of something else."""
    of = ["subject", "layer", "seed"]
    found = rows[rows["metric"] == metric]
    # What is no SAE has the seed NaN, which is not equal to itself.
    measured = pd.MultiIndex.from_frame(found[of].fillna({"seed": -1}))
    lacking = rows[~pd.MultiIndex.from_frame(rows[of].fillna({"seed": -1})).isin(measured)]
    if lacking.empty:
        return found
    # Features are compared with the table of the headline's tokenized SAE, which need not be in the block.
    headline = run.tables.get("headline", rows.iloc[:0])
    failed = headline[
        (headline["metric"] == "failed")
        & (headline["subject"] == run.tokenized)
        & headline["layer"].isin(lacking["layer"])
    ]
    if metric.startswith("feature_token_bias") and len(failed):
        raise TrainingFailedError(f"{_name_saes(failed)}, with whose table features are compared, {FAILED}")
    raise NotMeasuredError(otherwise if found.empty else f"there is no {metric} of {_name_saes(lacking)}")


def _name_saes(rows: pd.DataFrame) -> str:
    saes = rows[["subject", "layer", "seed"]].drop_duplicates().itertuples(index=False, name=None)
    return ", ".join(
        f"{subject} (layer {layer})" if pd.isna(seed) else f"{subject} (layer {layer}, seed {seed})"
        for subject, layer, seed in saes
    )


def keep(rows: pd.DataFrame, chosen: "pd.Series[bool] | np.ndarray", otherwise: str) -> pd.DataFrame:
    """Rows that are chosen.

    Raises:
        NotMeasuredError: none is; `otherwise` is the message.
    """
    rows = rows[chosen]
    if rows.empty:
        raise NotMeasuredError(otherwise)
    return rows
