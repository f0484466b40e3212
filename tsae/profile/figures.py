"""What each figure of the write-up needs of a profile: its module declares that in `NEEDS`, and its caption in the docstring."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from tsae.profile.families import FAMILIES, family_of
from tsae.profile.point import OF_TABLES, Point
from tsae.profile.section import Name, Section
from tsae.profile.sweep import Job
from tsae.profile.validation import describe_errors
from tsae.store.declared import declared, docstring

FOLDER = "figures"


def _lacks_table(points: Sequence[Point]) -> str | None:
    return None if any(point.table != "none" for point in points) else "a point with a table"


def _lacks_baseline(points: Sequence[Point]) -> str | None:
    return None if any(point.table == "none" for point in points) else "a baseline (table: none)"


def _lacks_pairs_without_unigram(points: Sequence[Point]) -> str | None:
    with_unigram = {point for point in points if point.encoder_input != "without_unigram"}
    without = {point.model_copy(update={"encoder_input": "residual"}) for point in set(points) - with_unigram}
    if not without:
        return "a point with encoder_input: without_unigram"
    alone = without - with_unigram
    return f"{min(point.id for point in alone)} (encoder_input: residual)" if alone else None


# What a figure may need of the points of a block: each says what they lack, if anything.
REQUIREMENTS: dict[str, Callable[[Sequence[Point]], str | None]] = {
    "table": _lacks_table,
    "baseline": _lacks_baseline,
    "pairs without unigram": _lacks_pairs_without_unigram,
}


class Shown(Section):
    """What a figure needs of the points of a block, and how it lays them out."""

    has: tuple[Literal[tuple(REQUIREMENTS)], ...] = Field((), description="Points that it compares")  # type: ignore[valid-type]
    varies: str | None = Field(
        None, description="A setting with two values at least, if of tables among those with one"
    )
    by_family: bool = Field(False, description="It tells points apart by their family, so each must be of one")
    without_unigram: bool = Field(
        False, description="Points without the unigram direction in the encoder's input have a place of their own"
    )
    against: tuple[str, ...] | None = Field(
        None,
        description="Settings that points of a family are laid out along, one at each place; null: there may be several",
    )

    @field_validator("varies", "against")
    @classmethod
    def _are_settings(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        for setting in (value,) if isinstance(value, str) else value or ():
            if setting not in Point.model_fields:
                raise ValueError(f"{setting!r} is no setting of a point")
        return value

    def lack(self, points: Sequence[Point]) -> str | None:
        """What a block's points lack, in words."""
        if lacks := [missing for name in self.has if (missing := REQUIREMENTS[name](points))]:
            return lacks[0]
        if self.varies is not None:
            varied = [p for p in points if self.varies not in OF_TABLES or p.table != "none"]
            if len({getattr(point, self.varies) for point in varied}) < 2:
                return f"a second {self.varies}"
        return None


class Needs(Section):
    """What a figure needs of a profile."""

    category: str = Field(description="Where the report has it")
    claims: tuple[str, ...] = Field((), description="Claims of the ledger that it speaks for")
    blocks: dict[Name, Shown] = Field({}, description="Blocks of the sweep that it cannot be without")
    optional: tuple[Name, ...] = Field((), description="Blocks, and `released`, that it shows where a profile has them")
    tables: tuple[Literal["baselines", "curves"], ...] = Field((), description="Tables that every profile has")
    sums: tuple[Name, ...] = Field((), description="Blocks, and `curves`, of which it takes sums over documents")
    files: tuple[Literal["claims", "published"], ...] = Field((), description="The ledger, and the authors' numbers")
    examples: bool = Field(False, description="It takes the activations on phrases of the block `encoder`")

    @property
    def required(self) -> tuple[str, ...]:
        """The tables that it cannot be drawn without."""
        return (*self.blocks, *self.tables)


def _needs(figure: str, literal: Any) -> Needs:
    try:
        return Needs.model_validate(literal)
    except ValidationError as error:
        raise ValueError(describe_errors(error, Needs, f"tsae/{FOLDER}/{figure}.py: NEEDS")) from None


FIGURES = {figure: _needs(figure, literal) for figure, literal in declared(FOLDER, "NEEDS").items()}
FIGURE_NAMES = tuple(FIGURES)


def title_of(figure: str) -> str:
    """What a figure shows: the first line of its module's docstring, without the full stop."""
    return docstring(FOLDER, figure).partition("\n")[0].removesuffix(".")


def caption_of(figure: str) -> str:
    """The caption of a figure in the report, as reStructuredText: what follows the first line of its module's docstring."""
    return docstring(FOLDER, figure).partition("\n")[2].strip()


def check_points(figure: str, jobs_of: Mapping[str, Sequence[Job]]) -> None:
    """Check that the sweep has what a figure shows, and that the figure can show what the sweep has.

    Args:
        figure: its name.
        jobs_of: the SAEs of every block of the sweep.

    Raises:
        ValueError: a block or a point is missing, a point is of no family, or two points would be drawn at one place; the message
            names the block.
    """
    for block, shown in FIGURES[figure].blocks.items():
        remedy = f"add it, or leave {figure} out of `figures`"
        if block not in jobs_of:
            raise ValueError(f"sweep: the figure {figure} shows the block `{block}`, which is missing; {remedy}")
        points = [job.point for job in jobs_of[block]]
        if shown.by_family:
            _check_families(figure, block, shown, points)
        if shown.against is not None:
            _check_one_point_each(figure, block, shown, shown.against, jobs_of[block])
        if missing := shown.lack(points):
            raise ValueError(f"sweep.{block}: the figure {figure} needs {missing}; {remedy}")


def _family(shown: Shown, point: Point) -> tuple[str, bool] | None:
    """What a figure tells points of a block apart by: the family, and whether the unigram direction is hidden."""
    hidden = point.encoder_input == "without_unigram"
    if hidden and not shown.without_unigram:
        return None
    name = family_of(point.table, "residual" if hidden else point.encoder_input, point.rows)
    return None if name is None else (name, hidden)


def _check_families(figure: str, block: str, shown: Shown, points: Sequence[Point]) -> None:
    for point in points:
        if _family(shown, point) is None:
            raise ValueError(
                f"sweep.{block}: the figure {figure} shows the families {'; '.join(FAMILIES.values())}, and {point.id} is of "
                f"none; move it to a block of its own, or leave {figure} out of `figures`"
            )


def _check_one_point_each(
    figure: str, block: str, shown: Shown, settings: tuple[str, ...], jobs: Sequence[Job]
) -> None:
    drawn: dict[tuple[Any, ...], Point] = {}
    for job in jobs:
        place = (job.layer, _family(shown, job.point), *(getattr(job.point, name) for name in settings))
        other = drawn.setdefault(place, job.point)
        if other != job.point:
            raise ValueError(
                f"sweep.{block}: the figure {figure} shows one point for each {' and '.join(('family', *settings))}, but "
                f"{other.id} and {job.point.id} have them alike; move one to a block of its own, or leave {figure} out of `figures`"
            )
