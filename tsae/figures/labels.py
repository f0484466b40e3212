"""What names the lines, markers and bands of a figure: a legend above it, and labels beside lines."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tsae.figures.style import CHARACTERS, RANGE, SEED

LINE_HEIGHT = 8.5  # of a label [points]
AWAY = 4.0  # of a label from the panel [points]
LUMA = np.array([0.299, 0.587, 0.114])  # lightness as grey printing has it


def key(label: str, color: str = "0.25", **style: Any) -> Line2D:
    """A legend entry for a line or a marker of any colour."""
    return Line2D([], [], color=color, label=label, **style)


def legend_above(fig: Figure, ax: Axes, *more: Artist, without: Collection[str] = ()) -> None:
    """Put one legend for all panels above them: what `ax` labels, what others do besides, and more entries.

    What dots, bars and bands stand for comes last, if the figure has any. Labels of `without` are left out.
    """
    labelled: dict[str, Any] = {}
    for panel in (ax, *fig.axes):
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            labelled.setdefault(label, handle)
    bars = [drawn for panel in fig.axes for drawn in panel.containers if isinstance(drawn, ErrorbarContainer)]
    notes = [labelled.pop(label) for label in (SEED["label"],) if label in labelled]
    notes += [key("95% interval", marker="|", markersize=9, ls="")] * any(_has_length(drawn) for drawn in bars)
    notes += [Patch(color="0.8", lw=0, label=RANGE)] * bool(labelled.pop(RANGE, None))
    entries = {label: _line_of(handle) for label, handle in labelled.items() if label not in without}
    entries |= {str(artist.get_label()): artist for artist in (*more, *notes)}
    if entries:
        columns = _columns(fig, list(entries))
        fig.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=columns)


def _has_length(bars: ErrorbarContainer) -> bool:
    """Whether an error bar is longer than nothing."""
    segments = [segment for lines in bars.lines[2] for segment in lines.get_segments()]
    return any(np.ptp(segment, axis=0).max() > 0 for segment in segments if len(segment))


def _line_of(handle: Any) -> Any:
    """The line and markers of what has error bars."""
    return handle.lines[0] if isinstance(handle, ErrorbarContainer) else handle


def _columns(fig: Figure, labels: Sequence[str]) -> int:
    """The most columns of a legend that are no wider than the figure."""
    widths = [0.55 + len(label) / CHARACTERS for label in labels]
    for columns in range(len(labels), 1, -1):
        if sum(max(part) for part in np.array_split(widths, columns)) < fig.get_figwidth():
            return columns
    return 1


def label_ends(panels: Sequence[Axes], texts: Mapping[str, str]) -> set[str]:
    """Write beside the last point of each line what it is, to the right of the last panel that shows it.

    Call it when nothing more is drawn, since labels keep apart at the present limits of the axes.

    Args:
        panels: the panels of a row, left to right.
        texts: what to write, by label of a line.

    Returns:
        The labels of the lines found.
    """
    place: dict[str, tuple[Axes, Line2D]] = {}
    for ax in panels:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            line = _line_of(handle)
            if label in texts and len(_last_point(line)):
                place[label] = (ax, line)
    for ax in panels:
        lines = {label: line for label, (shown, line) in place.items() if shown is ax}
        write_ends(ax, {texts[label]: (*_last_point(line), line.get_color()) for label, line in lines.items()})
    return set(place)


def write_ends(ax: Axes, ends: Mapping[str, tuple[float, float, Any]]) -> None:
    """Write texts to the right of a panel, each at the height of its point and led to it where it had to move.

    Args:
        ax: the panel.
        ends: x, y and colour by text.
    """
    if not ends:
        return
    fig = ax.get_figure()
    assert isinstance(fig, Figure)
    height = 72 * fig.get_figheight() * ax.get_position().height
    to_panel = ax.transScale + ax.transLimits
    points = np.array([to_panel.transform((x, y)) for x, y, _ in ends.values()])
    heights = spread(points[:, 1], LINE_HEIGHT / height)
    for (text, (x, y, colour)), (across, up), at in zip(ends.items(), points, heights, strict=True):
        moved = abs(at - up) * height > 2 or across < 0.97
        ax.annotate(
            text,
            (x, y),
            (1 + AWAY / (72 * fig.get_figwidth() * ax.get_position().width), at),
            textcoords="axes fraction",
            color=readable(colour),
            fontsize="small",
            va="center",
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "0.6", "shrinkA": 0, "shrinkB": 3} if moved else None,
        )


def readable(colour: Any) -> Any:
    """A colour for text on white: the given one, darkened if it is too light."""
    rgb = np.array(to_rgb(colour))
    return tuple(rgb * min(1.0, 0.45 / max(1e-9, float(rgb @ LUMA))))


def spread(places: Sequence[float] | np.ndarray, gap: float) -> np.ndarray:
    """Move places (n,) to be at least `gap` apart in the same order, each group of touching ones about its mean."""
    order = np.argsort(places, kind="stable")
    groups: list[list[float]] = []  # of touching places: those that were wished
    for place in np.asarray(places, dtype=float)[order]:
        groups.append([place])
        while len(groups) > 1 and _top(groups[-2], gap) + gap > _bottom(groups[-1], gap):
            groups[-2:] = [groups[-2] + groups[-1]]
    moved = [_bottom(group, gap) + gap * rank for group in groups for rank in range(len(group))]
    found = np.empty(len(order))
    found[order] = moved
    return found


def _bottom(group: Sequence[float], gap: float) -> float:
    return float(np.mean(group)) - gap * (len(group) - 1) / 2


def _top(group: Sequence[float], gap: float) -> float:
    return float(np.mean(group)) + gap * (len(group) - 1) / 2


def _last_point(line: Line2D) -> tuple[float, float] | tuple[()]:
    """The rightmost point of a line that is somewhere; none if it has no such point."""
    points = np.array([np.asarray(part, dtype=float) for part in line.get_data()]).T
    points = points[np.isfinite(points).all(axis=1)]
    return (*points[points[:, 0].argmax()].tolist(),) if len(points) else ()


def point_to_better(ax: Axes) -> None:
    """An arrow in the lower left corner: less is better on both axes."""
    ax.annotate(
        "better",
        (0.03, 0.03),
        (0.16, 0.16),
        xycoords="axes fraction",
        fontsize="small",
        color="0.35",
        ha="left",
        va="bottom",
        arrowprops={"arrowstyle": "-|>", "color": "0.35", "lw": 0.8, "shrinkA": 0, "shrinkB": 0},
    )
