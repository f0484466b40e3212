"""What each figure needs from a profile, as its module declares in `NEEDS`; its caption is the module's docstring."""

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


# What a figure may need from the points of a block -> what is missing, in words, or None.
REQUIREMENTS: dict[str, Callable[[Sequence[Point]], str | None]] = {
    "table": _lacks_table,
    "baseline": _lacks_baseline,
    "pairs without unigram": _lacks_pairs_without_unigram,
}


class Shown(Section):
    """What a figure needs from the points of a block, and how it lays them out."""

    has: tuple[Literal[tuple(REQUIREMENTS)], ...] = Field((), description="Points that it compares")  # type: ignore[valid-type]
    varies: str | None = Field(
        None, description="A setting with at least two values; a setting of tables, among points with a table"
    )
    by_family: bool = Field(False, description="It distinguishes points by family, so every point must have one")
    without_unigram: bool = Field(
        False, description="It has a place for points without the unigram direction in the encoder's input"
    )
    against: tuple[str, ...] | None = Field(
        None,
        description="Settings that place the points of a family, at most one at each place; null: any number",
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
        for name in self.has:
            if missing := REQUIREMENTS[name](points):
                return missing
        if self.varies is not None:
            varied = [p for p in points if self.varies not in OF_TABLES or p.table != "none"]
            if len({getattr(point, self.varies) for point in varied}) < 2:
                return f"a second {self.varies}"
        return None


class Needs(Section):
    """What a figure needs from a profile."""

    category: str = Field(description="Its category in the report")
    claims: tuple[str, ...] = Field((), description="Claims of the ledger that it illustrates")
    blocks: dict[Name, Shown] = Field({}, description="Blocks of the sweep that it requires")
    optional: tuple[Name, ...] = Field((), description="Blocks, and `released`, that it shows if a profile has them")
    tables: tuple[Literal["baselines", "curves"], ...] = Field((), description="Tables that every profile has")
    sums: tuple[Name, ...] = Field((), description="Blocks, and `curves`, whose sums over documents it reads")
    files: tuple[Literal["claims", "published"], ...] = Field(
        (), description="Files it reads: the ledger, the authors' numbers"
    )
    examples: bool = Field(False, description="It reads activations on phrases of the block `encoder`")

    @property
    def required(self) -> tuple[str, ...]:
        """The tables that it requires."""
        return (*self.blocks, *self.tables)


def _needs(figure: str, literal: Any) -> Needs:
    try:
        return Needs.model_validate(literal)
    except ValidationError as error:
        raise ValueError(describe_errors(error, Needs, f"tsae/{FOLDER}/{figure}.py: NEEDS")) from None


FIGURES = {figure: _needs(figure, literal) for figure, literal in declared(FOLDER, "NEEDS").items()}
FIGURE_NAMES = tuple(FIGURES)


def title_of(figure: str) -> str:
    """Title of a figure: the first line of its module's docstring, without the full stop."""
    return docstring(FOLDER, figure).partition("\n")[0].removesuffix(".")


def caption_of(figure: str) -> str:
    """Caption of a figure in the report, as reStructuredText: its module's docstring after the first line."""
    return docstring(FOLDER, figure).partition("\n")[2].strip()


def check_points(figure: str, jobs_of: Mapping[str, Sequence[Job]]) -> None:
    """Check that the sweep has what a figure shows, and that the figure can show what the sweep has.

    Args:
        figure: its name.
        jobs_of: the SAEs of every block of the sweep.

    Raises:
        ValueError: a block or point is missing, a point has no family, or two share a place; the message says where.
    """
    without_it = f"leave {figure} out of `figures`"
    for block, shown in FIGURES[figure].blocks.items():
        if block not in jobs_of:
            raise ValueError(
                f"sweep: the figure {figure} shows the block `{block}`, which is missing; add it, or {without_it}"
            )
        where = f"sweep.{block}: the figure {figure}"
        drawn: dict[tuple[Any, ...], Point] = {}
        for job in jobs_of[block]:
            family = _family(shown, job.point)
            if shown.by_family and family is None:
                raise ValueError(
                    f"{where} shows the families {'; '.join(FAMILIES.values())}, and {job.point.id} has none; move it "
                    f"to a block of its own, or {without_it}"
                )
            if shown.against is None:
                continue
            other = drawn.setdefault((job.layer, family, *(getattr(job.point, s) for s in shown.against)), job.point)
            if other != job.point:
                raise ValueError(
                    f"{where} shows one point for each {' and '.join(('family', *shown.against))}, but {other.id} and "
                    f"{job.point.id} share them; move one to a block of its own, or {without_it}"
                )
        if missing := shown.lack([job.point for job in jobs_of[block]]):
            raise ValueError(f"{where} needs {missing}; add it, or {without_it}")


def _family(shown: Shown, point: Point) -> tuple[str, bool] | None:
    """How a figure distinguishes points of a block: by family, and by whether the unigram direction is hidden."""
    hidden = point.encoder_input == "without_unigram"
    if hidden and not shown.without_unigram:
        return None
    name = family_of(point.table, "residual" if hidden else point.encoder_input, point.rows)
    return None if name is None else (name, hidden)
