"""The figures of the write-up, and what each needs of the sweep."""

from collections.abc import Mapping, Sequence
from typing import Any

from tsae.families import FAMILIES, family_of
from tsae.sweep import Job, Point

# Every figure of the write-up, and the blocks of the sweep that it cannot be without. Three show more where a profile has it:
# speedup the block `speed`, token_counts `controls` and `expansion`, encoder_offset `encoder`.
FIGURE_BLOCKS = {
    "token_subspaces": (),
    "pareto": ("pareto",),
    "speedup": ("headline",),
    "training_curves": ("headline",),
    "expansion": ("expansion",),
    "token_counts": ("headline",),
    "encoder_offset": ("centre",),
    "token_bias_similarity": ("headline", "expansion"),
    "lookup_geometry": ("headline",),
    "last_token_detection": ("headline",),
    "init_sweep": ("init",),
    "simple_features": ("headline",),
    "encoder_ablation": ("encoder",),
    "reconstruction_by_layer": ("headline",),
}
# Along what a figure lays out the points of a family, by block.
DRAWN_AGAINST: dict[str, tuple[str, ...]] = {
    "pareto": ("architecture", "k", "l1"),
    "expansion": ("expansion",),
    "init": ("lookup_scale",),
    "encoder": (),
}
# Blocks in which points without the unigram direction in the encoder's input have a place of their own.
WITHOUT_UNIGRAM = ("encoder", "centre")
FIGURE_NAMES = tuple(FIGURE_BLOCKS)


def check_points(figure: str, jobs_of: Mapping[str, Sequence[Job]]) -> None:
    """Check that the sweep has what a figure shows, and that the figure can show what the sweep has.

    Args:
        figure: its name.
        jobs_of: the SAEs of every block of the sweep.

    Raises:
        ValueError: a block or a point is missing, a point is of no family, or two points would be drawn at one place; the message
            names the block.
    """
    for block in FIGURE_BLOCKS[figure]:
        remedy = f"add it, or leave {figure} out of `figures`"
        if block not in jobs_of:
            raise ValueError(f"sweep: the figure {figure} shows the block `{block}`, which is missing; {remedy}")
        points = [job.point for job in jobs_of[block]]
        missing = None
        if block != "headline" and not any(point.table != "none" for point in points):
            missing = "a point with a table"
        elif block in ("pareto", "expansion") and not any(point.table == "none" for point in points):
            missing = "a baseline (table: none)"
        elif block == "expansion" and len({point.expansion for point in points}) < 2:
            missing = "a second expansion"
        elif block == "init" and len({point.lookup_scale for point in points if point.table != "none"}) < 2:
            missing = "a second lookup_scale"
        elif block == "encoder":
            with_unigram = {p for p in points if p.encoder_input != "without_unigram"}
            without = {p.model_copy(update={"encoder_input": "residual"}) for p in set(points) - with_unigram}
            if not without:
                missing = "a point with encoder_input: without_unigram"
            elif without - with_unigram:
                missing = f"{min(point.id for point in without - with_unigram)} (encoder_input: residual)"
        if block != "headline":
            _check_families(figure, block, points)
        if block in DRAWN_AGAINST:
            _check_one_point_each(figure, block, jobs_of[block])
        if missing:
            raise ValueError(f"sweep.{block}: the figure {figure} needs {missing}; {remedy}")


def _family(block: str, point: Point) -> tuple[str, bool] | None:
    """What a figure tells points of a block apart by: the family, and whether the unigram direction is hidden."""
    hidden = point.encoder_input == "without_unigram"
    if hidden and block not in WITHOUT_UNIGRAM:
        return None
    name = family_of(point.table, "residual" if hidden else point.encoder_input, point.rows)
    return None if name is None else (name, hidden)


def _check_families(figure: str, block: str, points: Sequence[Point]) -> None:
    for point in points:
        if _family(block, point) is None:
            raise ValueError(
                f"sweep.{block}: the figure {figure} shows the families {'; '.join(FAMILIES.values())}, and {point.id} is of "
                f"none; move it to a block of its own, or leave {figure} out of `figures`"
            )


def _check_one_point_each(figure: str, block: str, jobs: Sequence[Job]) -> None:
    drawn: dict[tuple[Any, ...], Point] = {}
    settings = DRAWN_AGAINST[block]
    for job in jobs:
        place = (job.layer, _family(block, job.point), *(getattr(job.point, name) for name in settings))
        other = drawn.setdefault(place, job.point)
        if other != job.point:
            raise ValueError(
                f"sweep.{block}: the figure {figure} shows one point for each {' and '.join(('family', *settings))}, but "
                f"{other.id} and {job.point.id} have them alike; move one to a block of its own, or leave {figure} out of `figures`"
            )
