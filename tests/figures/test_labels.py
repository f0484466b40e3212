"""Legends, and labels beside lines, against cases worked by hand."""

import re
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from fixtures.measured import near
from matplotlib.figure import Figure

from tsae.figures import labels, style


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


def texts(fig: Figure) -> list[str]:
    """What the legend says."""
    return [text.get_text() for legend in fig.legends for text in legend.get_texts()]


def test_labels_that_touch_move_apart_about_their_middle() -> None:
    assert labels.spread([0.5, 0.1], 0.1).tolist() == near([0.5, 0.1])
    assert labels.spread([0.3, 0.3, 0.9], 0.2).tolist() == near([0.2, 0.4, 0.9])
    # The group of the first two reaches the third and takes it in.
    assert labels.spread([0.5, 0.5, 0.55], 0.1).tolist() == near([0.41667, 0.51667, 0.61667], abs=1e-4)


def test_a_line_is_named_beside_the_last_panel_that_shows_it() -> None:
    fig, axes = style.figure(2)
    axes[0].plot([0, 1], [1, 2], label="both")
    axes[0].errorbar([0, 1], [3, np.nan], yerr=[0.1, 0.1], label="left")
    axes[1].plot([1, 0], [5, 2], label="both")
    axes[1].plot([], [], label="nowhere")
    named = labels.label_ends(axes, {"both": "B", "left": "L", "nowhere": "N"})
    assert named == {"both", "left"}
    found = [[(text.get_text(), getattr(text, "xy", None)) for text in ax.texts] for ax in axes]
    assert found == [[("L", (0, 3))], [("B", (1, 5))]]
    labels.legend_above(fig, axes[0], without=named)
    assert texts(fig) == ["nowhere", "95% interval"]


def test_a_legend_says_what_dots_bars_and_bands_are_where_there_are_any() -> None:
    fig, (left, right) = style.figure(2)
    left.errorbar([0], [1], yerr=[0], label="a")
    labels.legend_above(fig, left)
    assert texts(fig) == ["a"]
    style.draw_seeds(right, [0, 0], [1, 2])
    right.fill_between([0, 1], [0, 0], [1, 1], label=style.RANGE)
    right.errorbar([0], [1], yerr=[0.1])
    fig.legends.clear()
    labels.legend_above(fig, left)
    assert texts(fig) == ["a", "one seed", "95% interval", "range of the seeds"]


def test_a_legend_is_no_wider_than_its_figure() -> None:
    fig, (ax,) = style.figure(1)
    for number in range(7):
        ax.plot([0], [0], label=f"{number}: " + "a long label" * 3)
    labels.legend_above(fig, ax)
    fig.draw_without_rendering()
    assert fig.legends[0].get_window_extent().width <= fig.bbox.width


def test_text_in_the_colour_of_a_line_can_be_read_on_white() -> None:
    for colour in (*style.COLOURS.values(), "#FFFF00", "white"):
        assert float(np.array(labels.readable(colour)) @ labels.LUMA) <= 0.451
    assert labels.readable(style.COLOURS["baseline"]) == near((0, 0x30 / 255, 0x5F / 255))


def test_text_stays_text_in_one_font(tmp_path: Path) -> None:
    fig, (ax,) = style.figure(1)
    ax.set_title("cosine ≥ 0.4")
    style.save(fig, [tmp_path / "a.svg", tmp_path / "a.pdf"])
    svg = (tmp_path / "a.svg").read_text()
    assert "cosine ≥ 0.4</text>" in svg
    assert set(re.findall(r"font-family: ([^;]+);", svg)) == {"'DejaVu Sans', sans-serif"}
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert b"/CIDFontType2" in pdf and b"/Type3" not in pdf
