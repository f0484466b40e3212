"""Select rows of a run's tables by the criteria of a claim."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tsae.claims.criteria import ROLES, NotMeasuredError, Selection, TrainingFailedError, keep, suggest
from tsae.profile.config import Role

if TYPE_CHECKING:
    from tsae.measure.sums import DocumentSums

RECOMMENDED = "gpt2-layers"  # the authors' folder that is meant where none is named
SumsOf = tuple[int, str, int | None, int | None]
"""Layer, subject, seed or None, and training step of a checkpoint or None."""


@dataclass(frozen=True, eq=False)
class Run:
    """The measurements of a run."""

    tables: Mapping[str, pd.DataFrame]
    """A table per block; see `tsae.measure.table`."""
    roles: Mapping[Role, str]
    """Ids of the headline SAEs."""
    simple_threshold: float
    """The threshold of a simple feature."""
    sums: "Mapping[SumsOf, DocumentSums]" = field(default_factory=dict)
    """Sums over held-out documents, the same ones for all."""
    bootstrap: int = 1000
    """Bootstrap samples."""
    seed: int = 0
    """Seed of the bootstrap."""


def of_role(run: Run, subject: str) -> str:
    """The tables' name of a subject, which may be a role.

    Raises:
        NotMeasuredError: no headline SAE has the role.
    """
    if subject not in ROLES:
        return subject
    if subject not in run.roles:
        raise NotMeasuredError(f"this profile has no headline SAE {subject!r}")
    return run.roles[subject]


def candidates(run: Run, selection: Selection) -> pd.DataFrame:
    """All rows of a selection's SAEs at all its layers, failed SAEs included.

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
        TrainingFailedError: the training of one of its SAEs failed, or of the SAE whose table it is compared with.
        NotMeasuredError: there are no rows, several per seed, or an SAE without the metric.
    """
    of_what = _described(run, selection)
    rows = candidates(run, selection)
    rows = keep(rows, rows["layer"] == layer, f"no {of_what} at layer {layer}")
    # Among all SAEs: no other takes the place of a failed one.
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
    """Check that no SAE of these rows failed in training.

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
    """The rows of a metric, which every SAE must have: a mean over the others would be another number."""
    of = ["subject", "layer", "seed"]
    found = rows[rows["metric"] == metric]
    # A table without an SAE has the seed NaN, which does not equal itself.
    measured = pd.MultiIndex.from_frame(found[of].fillna({"seed": -1}))
    lacking = rows[~pd.MultiIndex.from_frame(rows[of].fillna({"seed": -1})).isin(measured)]
    if lacking.empty:
        return found
    # Features are compared with the table of the headline's tokenized SAE, which may be in another block.
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
