"""What each figure needs from a profile, as its module declares in `NEEDS`; its caption is the module's docstring."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

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


def _lacks_tokenized(points: Sequence[Point]) -> str | None:
    in_papers_form = any(point.table != "none" and point.encoder_input != "remainder" for point in points)
    return None if in_papers_form else "a point with a table in the paper's form (encoder_input: residual)"


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
    "tokenized": _lacks_tokenized,
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
    tables: tuple[Literal["baselines", "curves", "phrases"], ...] = Field(
        (), description="Tables of no block that it requires"
    )
    sums: tuple[Name, ...] = Field((), description="Blocks, and `curves`, whose sums over documents it reads")
    files: tuple[Literal["claims", "published"], ...] = Field(
        (), description="Files it reads: the ledger, the authors' numbers"
    )
    compares: bool = Field(
        False, description="It compares the headline's tokenized SAE with its baseline, at every layer"
    )

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


class Lack(NamedTuple):
    """Why a figure cannot be drawn from a sweep."""

    where: str
    """The key of the configuration."""
    problem: str
    """A sentence whose subject is the figure."""
    remedy: str
    missing: str
    """What to add, in a few words."""


def lack_of_points(figure: str, jobs_of: Mapping[str, Sequence[Job]]) -> Lack | None:
    """What the sweep lacks of what a figure shows, or has that the figure cannot show.

    Args:
        figure: its name.
        jobs_of: the SAEs of every block of the sweep, and under `curves` those whose checkpoints are measured.

    Returns:
        The first block or point that is missing, has no family or shares a place with another; None if all is well.
    """
    needs = FIGURES[figure]
    for block, shown in needs.blocks.items():
        if block not in jobs_of:
            return Lack("sweep", f"shows the block `{block}`, which is missing", "add it", f"the block {block}")
        where = f"sweep.{block}"
        drawn: dict[tuple[Any, ...], Point] = {}
        for job in jobs_of[block]:
            family = _family(shown, job.point)
            if shown.by_family and family is None:
                return Lack(
                    where,
                    f"shows the families {'; '.join(FAMILIES.values())}, and {job.point.id} has none",
                    "move it to a block of its own",
                    f"{block} without {job.point.id}",
                )
            if shown.against is None:
                continue
            other = drawn.setdefault((job.layer, family, *(getattr(job.point, s) for s in shown.against)), job.point)
            if other != job.point:
                return Lack(
                    where,
                    f"shows one point for each {' and '.join(('family', *shown.against))}, but {other.id} and "
                    f"{job.point.id} share them",
                    "move one to a block of its own",
                    f"{block} without {job.point.id}",
                )
        if missing := shown.lack([job.point for job in jobs_of[block]]):
            return Lack(where, f"needs {missing}", "add it", f"{missing} in {block}")
    layers = {job.layer for job in jobs_of.get("headline", ())}
    if needs.compares and (not layers or layers != {job.layer for job in jobs_of["curves"]}):
        both = "a tokenized SAE with its baseline at every layer"
        return Lack("sweep.headline", f"compares {both} of the block", "add both", f"{both} of headline")
    return None


def check_points(figure: str, jobs_of: Mapping[str, Sequence[Job]]) -> None:
    """Check that a figure can be drawn from the sweep.

    Raises:
        ValueError: it cannot; the message says why and what to do.
    """
    if lack := lack_of_points(figure, jobs_of):
        raise ValueError(
            f"{lack.where}: the figure {figure} {lack.problem}; {lack.remedy}, or leave {figure} out of `figures`"
        )


def _family(shown: Shown, point: Point) -> tuple[str, bool] | None:
    """How a figure distinguishes points of a block: by family, and by whether the unigram direction is hidden."""
    hidden = point.encoder_input == "without_unigram"
    if hidden and not shown.without_unigram:
        return None
    name = family_of(point.table, "residual" if hidden else point.encoder_input, point.rows)
    return None if name is None else (name, hidden)
