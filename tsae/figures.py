"""The figures of the write-up, and what each needs of the sweep."""

from collections.abc import Mapping, Sequence
from typing import Any

from tsae.sweep import Job, Point

# Every figure of the write-up, and the blocks of the sweep whose SAEs it shows.
FIGURE_BLOCKS = {
    "token_subspaces": (),
    "pareto": ("pareto",),
    "speedup": ("headline",),
    "training_curves": ("headline",),
    "expansion": ("expansion",),
    "token_bias_similarity": ("headline", "expansion"),
    "lookup_geometry": ("headline",),
    "last_token_detection": ("headline",),
    "init_sweep": ("init",),
    "simple_features": ("headline",),
    "encoder_ablation": ("encoder",),
    "reconstruction_by_layer": ("headline",),
}
# Along what a figure lays out the points of a block; all else but the table is the same.
DRAWN_AGAINST = {"expansion": "expansion", "init": "lookup_scale", "encoder": "encoder_input"}
FIGURE_NAMES = tuple(FIGURE_BLOCKS)


def check_points(figure: str, jobs_of: Mapping[str, Sequence[Job]]) -> None:
    """Check that the sweep has what a figure shows.

    Args:
        figure: its name.
        jobs_of: the SAEs of every block of the sweep.

    Raises:
        ValueError: a block or a point is missing, or two points would be drawn at one place; the message names the block.
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
            with_unigram = {p for p in points if p.encoder_input == "residual"}
            without = {p.model_copy(update={"encoder_input": "residual"}) for p in set(points) - with_unigram}
            if not without:
                missing = "a point with encoder_input: without_unigram"
            elif without - with_unigram:
                missing = f"{min(point.id for point in without - with_unigram)} (encoder_input: residual)"
        if block in DRAWN_AGAINST:
            _check_one_point_each(figure, block, jobs_of[block])
        if missing:
            raise ValueError(f"sweep.{block}: the figure {figure} needs {missing}; {remedy}")


def _check_one_point_each(figure: str, block: str, jobs: Sequence[Job]) -> None:
    drawn: dict[tuple[Any, ...], Point] = {}
    for job in jobs:
        place = (job.layer, job.point.table, job.point.encoder_input, getattr(job.point, DRAWN_AGAINST[block]))
        other = drawn.setdefault(place, job.point)
        if other != job.point:
            raise ValueError(
                f"sweep.{block}: the figure {figure} shows one point for each table and {DRAWN_AGAINST[block]}, but "
                f"{other.id} and {job.point.id} have both alike; move one to a block of its own, or leave {figure} out of `figures`"
            )
