"""The figure of what moves into the table, from tables made up by hand."""

from pathlib import Path
from typing import Any

import pytest
from fixtures.drawing import draw, drawn, sae
from fixtures.measured import BASELINE, TOKENIZED, near, row

ACCURACY = "first_letter_accuracy"


def of_one(scale: float, table: bool = False) -> dict[Any, float]:
    found: dict[Any, float] = {
        (ACCURACY, 1.0): 0.8 * scale,
        (ACCURACY, 2.0): 0.85 * scale,
        (ACCURACY, 5.0): 0.9 * scale,
    }
    found |= {("simple_share_by_rate", 0.001): 0.5 * scale, ("simple_share_by_rate", 0.003): 0.25 * scale}
    found |= {("density", 0.0): 0.1, ("density", 0.001): 0.6, ("density", 0.003): 0.3}
    found |= {"first_letter_absorption": 0.1 * scale}
    return found | ({"first_letter_accuracy_table": 0.95} if table else {})


def ceiling() -> list[dict[str, Any]]:
    return [row("residuals", ACCURACY, 0.97, seed=None)]


def test_each_panel_shows_what_it_says(tmp_path: Path) -> None:
    headline = [*sae(BASELINE, of_one(1)), *sae(TOKENIZED, of_one(0.8, table=True))]
    simple, accuracy, absorption, density = draw("what_moves", tmp_path, {"headline": headline, "baselines": ceiling()})
    baseline, tokenized = "baseline", "tokenized, learned table"
    assert drawn(simple) == {baseline: [(0.001, 50), (0.003, 25)], tokenized: [(0.001, 40), (0.003, 20)]}
    assert drawn(accuracy)[tokenized] == [(1, 64), (2, 68), (5, 72)]
    levels = {line.get_linestyle(): line.get_ydata()[0] for line in accuracy.lines if len(line.get_xdata()) == 2}
    assert (levels[":"], levels["--"]) == (near(95), near(97))
    assert [point for points in drawn(absorption).values() for point in points] == [(0, 10), (1, 8)]
    # Features that never fire are drawn on the left edge, which a logarithmic axis has no zero for.
    first = density.lines[0]
    assert first.get_xdata()[0] == density.get_xlim()[0] > 0
    assert first.get_ydata().tolist() == near([10, 60, 30])


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    without = {key: value for key, value in of_one(1).items() if "first_letter" not in str(key)}
    headline = [*sae(BASELINE, without), *sae(TOKENIZED, without)]
    other = [row("residuals", "scale", 2.0, seed=None)]
    simple, accuracy, absorption, _ = draw("what_moves", tmp_path, {"headline": headline, "baselines": other})
    assert drawn(simple) and not drawn(accuracy) and not drawn(absorption)


@pytest.mark.parametrize("n_seeds", [1, 2])
def test_seeds_are_dots(tmp_path: Path, n_seeds: int) -> None:
    headline = [r for seed in range(n_seeds) for r in sae(BASELINE, of_one(1 - seed / 10), seed=seed)]
    headline += [r for seed in range(n_seeds) for r in sae(TOKENIZED, of_one(0.8), seed=seed)]
    _, _, absorption, _ = draw("what_moves", tmp_path, {"headline": headline, "baselines": ceiling()})
    dots = [line for line in absorption.lines if line.get_label() == "one seed"]
    assert len(dots) == (2 if n_seeds > 1 else 0)
