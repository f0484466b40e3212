"""What figures say in words and arrows, from tables made up by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fixtures.drawing import draw, drawn, sae
from fixtures.measured import BASELINE, REMAINDER, TOKENIZED, near, row
from matplotlib.axes import Axes
from matplotlib.text import Annotation

WITHOUT = "topk-k4-x4-learned-nounigram"


def said(ax: Axes) -> list[str]:
    """The texts within and beside a panel."""
    return [text.get_text() for text in ax.texts if text.get_text()]


def arrows(ax: Axes) -> list[Any]:
    """From where to where the arrows without a text go."""
    found = [text for text in ax.texts if isinstance(text, Annotation) and not text.get_text()]
    return [tuple(tuple(map(float, end)) for end in (text.xyann, text.xy)) for text in found]


def curve(subject: str, values: dict[int, float]) -> list[dict[str, Any]]:
    return [
        one
        for step, value in values.items()
        for one in sae(subject, {"nmse": value, "ce_added": value}, step=step, tokens=100 * step)
    ]


# Two thirds of the way from 10 to 40 steps, in the logarithm, a curve from 0.4 to 0.1 is at 0.2.
CROSSING = 10 ** (1 + np.log10(4) * 2 / 3)


@pytest.mark.parametrize(
    ("tokenized", "text", "steps"),
    [
        ({10: 0.4, 40: 0.1, 160: 0.05}, f"{160 / CROSSING:.2g}x sooner", CROSSING),
        ({10: 0.2, 40: 0.1, 160: 0.05}, "≥ 16x sooner", 10),
        ({10: 0.9, 40: 0.8, 160: 0.7}, "never as good", None),
    ],
)
def test_an_arrow_goes_to_where_the_baselines_final_value_is_reached(
    tmp_path: Path, tokenized: dict[int, float], text: str, steps: float | None
) -> None:
    curves = [*curve(BASELINE, {10: 0.5, 40: 0.3, 160: 0.2}), *curve(TOKENIZED, tokenized)]
    nmse = draw("training_curves", tmp_path, {"curves": curves}, remainder=False)[0]
    assert text in said(nmse)
    assert arrows(nmse) == ([(near((16, 0.2)), near((steps / 10, 0.2)))] if steps else [])


def test_the_difference_to_the_baseline_is_written_unless_it_may_be_zero(tmp_path: Path) -> None:
    rows = [
        *sae(BASELINE, {"nmse": 0.4, "fvu": 0.2, "ce_added": 0.01}),
        *sae(TOKENIZED, {"nmse": 0.3, "fvu": 0.25, "ce_added": 0.005}),
        *sae(TOKENIZED, {"nmse": 0.3, "fvu": 0.25, "ce_added": 0.005}, layer=2),  # whose baseline failed
        *sae(BASELINE, {"failed": 3}, layer=2),
    ]
    rows = [one | {"low": -0.01} if one["metric"] == "ce_added" else one for one in rows]
    found = draw("reconstruction_by_layer", tmp_path, {"headline": rows}, remainder=False)
    assert [said(ax) for ax in found] == [["\u221225%"], ["+25%"], []]


def test_a_difference_is_on_the_right_of_marks_that_are_near_zero(tmp_path: Path) -> None:
    rows = [
        *sae(BASELINE, {"nmse": 0.4, "fvu": 0.4, "ce_added": 0.4}),
        *sae(TOKENIZED, {"nmse": 0.3, "fvu": 0.05, "ce_added": 0.3}),
    ]
    found = draw("reconstruction_by_layer", tmp_path, {"headline": rows}, remainder=False)
    texts = [next(text for text in ax.texts if text.get_text()) for ax in found]
    assert [text.get_ha() for text in texts] == ["right", "left", "right"]
    assert [round(text.xy[0], 2) for text in texts if isinstance(text, Annotation)] == [0.3, 0.4, 30]


def test_the_smallest_table_no_worse_than_the_largest_baseline_is_pointed_at(tmp_path: Path) -> None:
    nmse = {("none", 2): 0.5, ("none", 16): 0.3, ("learned", 2): 0.35, ("learned", 4): 0.28, ("learned", 8): 0.2}
    metrics = {"dead_heldout": 0.1, "dead_training": 0.1}
    rows = {
        point: sae(f"topk-k4-x{point[1]}-{point[0]}", metrics | {"nmse": value}, expansion=float(point[1]))
        for point, value in nmse.items()
    }
    ax = draw("expansion", tmp_path, {"expansion": [one for of in rows.values() for one in of]})[0]
    assert said(ax) == ["4x with a table\n≤ 16x without"]
    assert arrows(ax) == [(near((16, 0.3)), near((4, 0.28)))]
    few = [*rows["none", 2], *rows["none", 16], *rows["learned", 2]]
    assert said(draw("expansion", tmp_path, {"expansion": few})[0]) == []


def test_lines_are_named_beside_the_panel_with_the_most_of_them(tmp_path: Path) -> None:
    metrics = {"nmse": 0.1, "ce_added": 0.2, "l0": 4}
    relu = {"architecture": "relu", "k": pd.NA}
    rows = [
        *(one for subject in (BASELINE, TOKENIZED, REMAINDER) for one in sae(subject, metrics)),
        *(one for kind in ("none", "learned") for one in sae(f"relu-l1_2-x4-{kind}", metrics, **relu)),
    ]
    topk, other, *_ = draw("pareto", tmp_path, {"pareto": rows})
    assert said(topk) == ["better", "baseline", "learned table", "remainder"]
    assert said(other) == []


def test_simple_features_are_counted_at_the_threshold_with_their_interval(tmp_path: Path) -> None:
    shares = {("features_match_unigram", at): share for at, share in ((0.35, 0.9), (0.4, 0.2), (0.5, 0.1))}
    shares |= {("simple_unigram", 0.5): 0.3, ("simple_bigram", 0.5): 0.4, ("simple_bigram", 0.4): 0.9}
    rows = [*sae(BASELINE, shares), *sae(TOKENIZED, shares)]
    match, fire, bigram, *_ = draw("simple_features", tmp_path, {"headline": rows}, remainder=False)
    assert [drawn(ax)["baseline"] for ax in (match, fire, bigram)] == [[(-0.09, y)] for y in (20, 30, 40)]


@pytest.mark.parametrize("expansion", [4.0, 8.0])
def test_the_baseline_of_the_same_size_is_a_line(tmp_path: Path, expansion: float) -> None:
    metrics = {"nmse": 0.1, "ce_added": 0.1, "dead_heldout": 0.1}
    init = [one for scale in (0.25, 0.5) for one in sae(TOKENIZED, metrics, lookup_scale=scale)]
    headline = sae(BASELINE, {"nmse": 0.3}, expansion=expansion)
    ax = draw("init_sweep", tmp_path, {"init": init, "headline": headline})[0]
    levels = [line.get_ydata()[0] for line in ax.lines if line.get_label() == "baseline"]
    assert levels == ([0.3] if expansion == 4 else [])


def test_token_biases_are_counted_between_thresholds(tmp_path: Path) -> None:
    shares = {0.0: 1.0, 0.5: 0.9, 1.0: 0.2}
    names = ("token_bias_unigram_cosine_share", "token_bias_neighbour_cosine_share", "token_bias_other_cosine_share")
    headline = sae(TOKENIZED, {(name, at): share for name in names for at, share in shares.items()}, min_count=20)
    ax = draw("lookup_geometry", tmp_path, {"headline": headline, "baselines": [row("x", "scale", 1)]})[0]
    heights = [near([10, 70])] * 3
    assert [patch.get_data().values.tolist() for patch in ax.patches] == heights
    assert ax.get_ylabel() == "token-biases (% per 0.5)"


def test_phrases_are_dots_of_paired_differences_and_the_mean_is_that_of_the_claim(tmp_path: Path) -> None:
    def phrase(text: str, subject: str, seed: int, score: float, lost: int) -> dict[str, Any]:
        seen = "without_unigram" if subject == WITHOUT else "residual"
        counts = {"firings": 10, "lost": lost, "lost_matched": 1}
        labels = {"layer": 1, "seed": seed, "table": "learned", "encoder_input": seen}
        return {"text": text, "score": score} | counts | labels

    phrases = [
        *(phrase(" New York", TOKENIZED, seed, 0.5, 5 + seed) for seed in (0, 1)),
        *(phrase(" New York", WITHOUT, seed, 0.3, 0) for seed in (0, 1)),
        phrase(" bitumen", TOKENIZED, 0, 0.9, 2),
        phrase(" bitumen", WITHOUT, 1, 0.1, 0),  # of another seed: no pair
    ]
    encoder = [
        one
        for subject, seen in ((TOKENIZED, "residual"), (WITHOUT, "without_unigram"))
        for one in sae(subject, {"phrase_coverage": 0.5, "phrase_firings_lost": 0.1}, encoder_input=seen)
    ]
    pd.DataFrame(phrases).to_csv(tmp_path / "phrases.csv", index=False)
    lost, coverage = draw("encoder_ablation", tmp_path, {"encoder": encoder}, extra=["phrases"])[2:]
    dots = [
        sorted(x for line in ax.lines if line.get_marker() == "o" for x in line.get_xdata()) for ax in (lost, coverage)
    ]
    assert dots == [near([10, 45]), near([-20])]
    assert said(lost) == said(coverage) == ["New York"]  # a word alone is not named
    # Of seed 0, 5 of 20 firings; of seed 1, 5 of 10.
    (mean,) = drawn(lost)["mean"]
    assert mean[0] == near(100 * (0.25 + 0.5) / 2)
