"""The ledger: the claims and their checks (config/claims.yaml), and the authors' curves (config/published.yaml)."""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pandas as pd
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from tsae.claims.criteria import Metric
from tsae.claims.measures import Measure
from tsae.claims.pareto import Pareto, inside, ratio_at_equal_l0
from tsae.profile.point import ArchitectureName
from tsae.profile.section import Section
from tsae.profile.validation import describe_errors, read_yaml


class Curve(Section):
    """A published curve."""

    architecture: ArchitectureName
    table: Literal["none", "fixed", "learned"]
    metric: Metric
    points: tuple[tuple[float, float], ...] = Field(description="L0 and the metric")


class SpeedUps(Section):
    """Published speed-ups of a model."""

    model: str
    metric: Metric
    layers: dict[int, float] = Field(min_length=1, description="Layer and its speed-up")


class Published(Section):
    """The authors' numbers."""

    pareto: tuple[Curve, ...]
    speedup: tuple[SpeedUps, ...]


class Direction(Section):
    """The side of a bound that the value must be on."""

    below: float | None = None
    above: float | None = None

    @model_validator(mode="after")
    def _check(self) -> "Direction":
        if (self.below is None) == (self.above is None):
            raise ValueError("needs one of below and above")
        return self


def _as_range(value: Any) -> Any:
    match value:
        case bool():
            pass
        case None | "computed":
            return value
        case int() | float():
            return (value, value)
        case [int() | float() as low, int() | float() as high] if low <= high:
            return (low, high)
    raise ValueError("expected a number, a range [low, high], computed, or null")


class Check(Section):
    """One number for or against a claim."""

    name: str = Field(min_length=1)
    decides: bool = Field(False, description="Whether the claim's verdict depends on it; otherwise it is context")
    measure: Measure
    published: Annotated[tuple[float, float] | Literal["computed"] | None, BeforeValidator(_as_range)] = Field(
        description="Number, range [low, high], null if none was published, or `computed` from the curves in "
        "published.yaml by the same measure (pareto)"
    )
    tolerance: float | None = Field(
        None, ge=0, description="How far outside the published range still counts as reproduced [units of the measure]"
    )
    direction: Direction | None = None
    not_comparable: str | None = Field(
        None, min_length=1, description="Why no profile can be compared with the published level"
    )

    @model_validator(mode="after")
    def _check(self) -> "Check":
        level = self.published is not None and self.not_comparable is None
        if level and self.tolerance is None:
            raise ValueError("a published number needs a tolerance")
        if not level and self.tolerance is not None:
            raise ValueError("tolerance says nothing where no published number is compared")
        if self.published == "computed" and not isinstance(self.measure, Pareto):
            raise ValueError("published: only a measure of kind pareto can be computed")
        if self.published is None and self.direction is None and self.not_comparable is None:
            raise ValueError("nothing to check: there is neither a published number nor a direction")
        if self.decides and self.not_comparable is not None and self.direction is None:
            raise ValueError("decides: a check that is comparable in no profile cannot decide")
        return self

    @property
    def published_text(self) -> str:
        """The published number, as tables show it."""
        if not isinstance(self.published, tuple):
            return "no number"
        low, high = (f"{end:.3g}" for end in self.published)
        text = low if low == high else f"{low} to {high}"
        return text if self.tolerance is None else f"{text} ± {self.tolerance:g}"


def is_ours(claim: str) -> bool:
    """Whether the claim of an id is ours, and not of the write-up."""
    return claim.startswith("B")


class Claim(Section):
    """A claim of the write-up, or one of our own about what it leaves open."""

    id: str = Field(pattern=r"^[BC]\d+$", description="C and a number for the write-up's, B and a number for ours")
    claim: str = Field(min_length=1, description="The claim, in our own words")
    source: str = Field(
        min_length=1, description="Where the authors make it; of our own, where the question comes from"
    )
    checks: tuple[Check, ...] = Field(
        description="Numbers for or against it; the claim's verdict is the worst of the deciding ones"
    )

    @model_validator(mode="after")
    def _check(self) -> "Claim":
        if not self.checks:  # min_length would also complain about a check with a mistake
            raise ValueError("checks: a claim needs at least one")
        names = [check.name for check in self.checks]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"checks: two are called {twice!r}")
        if not any(check.decides for check in self.checks):
            raise ValueError("checks: none of them decides the claim; mark one with decides: true")
        return self

    @property
    def is_ours(self) -> bool:
        """Whether it goes beyond the write-up; then only profiles that measure it list it."""
        return is_ours(self.id)


Ledger = tuple[Claim, ...]
Form = TypeVar("Form", bound=BaseModel)


def _validated(form: type[Form], data: Any, where: str) -> Form:
    try:
        return form.model_validate(data)
    except ValidationError as error:
        raise ValueError(describe_errors(error, form, where)) from None


def load_published(path: str | Path) -> dict[str, pd.DataFrame]:
    """Read the authors' numbers.

    Returns:
        `pareto`: architecture, table, metric, l0, value; `speedup`: model, metric, layer, speedup.

    Raises:
        ValueError: one line per mistake.
    """
    published = _validated(Published, read_yaml(Path(path)), str(path))
    return {
        "pareto": pd.DataFrame(
            [(c.architecture, c.table, c.metric, *point) for c in published.pareto for point in c.points],
            columns=["architecture", "table", "metric", "l0", "value"],
        ),
        "speedup": pd.DataFrame(
            [(s.model, s.metric, layer, value) for s in published.speedup for layer, value in s.layers.items()],
            columns=["model", "metric", "layer", "speedup"],
        ),
    }


def load_ledger(path: str | Path, published: str | Path | None = None) -> Ledger:
    """Read the ledger, and compute the published numbers that are `computed`.

    Args:
        path: the ledger.
        published: the authors' numbers; by default `published.yaml` beside it.

    Raises:
        ValueError: one line per mistake, with the file, the claim and the key.
    """
    path = Path(path)
    published = path.with_name("published.yaml") if published is None else Path(published)
    entries = read_yaml(path)
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: expected a list of claims")
    curves = load_published(published)["pareto"]
    claims: list[Claim] = []
    mistakes = []
    for place, entry in enumerate(entries, start=1):
        name = entry.get("id") if isinstance(entry, dict) else None
        where = f"{path}: {name or f'claim number {place}'}"
        try:
            claim = _validated(Claim, entry, where)
            if claim.id in [other.id for other in claims]:
                raise ValueError(f"{where}: id: there are two claims {claim.id}")
            checks = tuple(_with_published(c, curves, f"{where}: checks.{i}") for i, c in enumerate(claim.checks))
            claims.append(claim.model_copy(update={"checks": checks}))
        except ValueError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ValueError("\n".join(mistakes))
    return tuple(claims)


def published_range(ledger: Ledger, claim: str, check: str) -> tuple[float, float]:
    """The published range of a check; both ends are equal for a number.

    Raises:
        ValueError: there is no such check, or it has no published number.
    """
    for entry in ledger:
        for candidate in entry.checks:
            if (entry.id, candidate.name) == (claim, check) and isinstance(candidate.published, tuple):
                return candidate.published
    raise ValueError(f"the ledger has no published number for {claim}: {check!r}")


def _with_published(check: Check, curves: pd.DataFrame, where: str) -> Check:
    if check.published != "computed" or not isinstance(check.measure, Pareto):
        return check
    wanted = (curves["architecture"] == check.measure.architecture) & (curves["metric"] == check.measure.metric)
    curve_of = dict(iter(curves[wanted].groupby("table")))
    tables = [table for table in curve_of if table != "none"]
    if "none" in curve_of and len(tables) == 1:
        baseline_l0, baseline, l0, values = (
            curve_of[table][column].to_numpy(float) for table in ("none", tables[0]) for column in ("l0", "value")
        )
        if (chosen := inside(baseline_l0, l0)).any():
            ratio = ratio_at_equal_l0(baseline_l0, baseline, l0[chosen], values[chosen])
            return check.model_copy(update={"published": (ratio, ratio)})
    raise ValueError(f"{where}.published: published.yaml has no such curves that overlap in L0")
