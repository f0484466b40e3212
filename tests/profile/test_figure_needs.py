"""What figures need from the sweep."""

from typing import Any

import pytest
from fixtures.configuration import error_of

from tsae.profile import config
from tsae.profile.figures import FIGURE_NAMES, FIGURES


@pytest.mark.parametrize("block", ["pareto", "expansion", "init", "encoder", "centre"])
def test_a_figure_needs_its_block_unless_it_is_left_out(data: dict[str, Any], block: str) -> None:
    del data["sweep"][block]
    figures = [name for name, needs in FIGURES.items() if block in needs.blocks]
    assert figures
    for figure in figures:
        expected = f"the figure {figure} shows the block `{block}`, which is missing; add it, or leave {figure} out"
        assert error_of(data | {"figures": [figure]}) == f"config: sweep: {expected} of `figures`"
    assert f"`{block}`, which is missing" in error_of(data)
    others = [name for name in FIGURE_NAMES if name not in figures]
    assert config.parse(data | {"figures": others}).figures == tuple(others)


@pytest.mark.parametrize(
    ("block", "changes", "missing"),
    [
        ("pareto", {"table": ["learned"]}, "a baseline (table: none)"),
        ("pareto", {"table": ["none"]}, "a point with a table"),
        ("expansion", {"table": ["fixed"]}, "a baseline (table: none)"),
        ("expansion", {"table": ["none"]}, "a point with a table"),
        ("expansion", {"expansion": [4]}, "a second expansion"),
        ("init", {"lookup_scale": [0.25]}, "a second lookup_scale"),
        ("init", {"lookup_scale": [0.25], "table": ["none", "learned"]}, "a second lookup_scale"),
        ("init", {"table": ["none"]}, "a point with a table"),
        ("encoder", {"encoder_input": ["residual"]}, "a point with encoder_input: without_unigram"),
        ("encoder", {"encoder_input": ["without_unigram"]}, "topk-k32-x4-learned (encoder_input: residual)"),
        ("encoder", {"table": ["none"]}, "a point with a table"),
        ("centre", {"table": ["none"]}, "a point with a table"),
    ],
)
def test_a_figure_needs_the_points_that_it_compares(
    data: dict[str, Any], block: str, changes: dict[str, Any], missing: str
) -> None:
    data["sweep"][block] = [data["sweep"][block][0] | changes]
    figures = [name for name, needs in FIGURES.items() if block in needs.blocks]
    for figure in figures:
        expected = f"the figure {figure} needs {missing}; add it, or leave {figure} out of `figures`"
        assert error_of(data | {"figures": [figure]}) == f"config: sweep.{block}: {expected}"
    config.parse(data | {"figures": [name for name in FIGURE_NAMES if name not in figures]})


def test_the_points_that_a_figure_compares_may_be_in_several_grids(data: dict[str, Any]) -> None:
    grid = data["sweep"]["encoder"][0]
    data["sweep"]["encoder"] = [grid | {"encoder_input": [name]} for name in ("without_unigram", "residual")]
    config.parse(data)
    data["sweep"]["encoder"][1]["table"] = ["learned"]
    assert "needs topk-k32-x4-none (encoder_input: residual)" in error_of(data)


def test_every_form_of_a_tokenized_sae_has_its_place_in_a_sweep(data: dict[str, Any]) -> None:
    for block in ("pareto", "expansion", "init", "encoder", "centre"):
        grid = data["sweep"][block][0]
        remainder = grid | {"table": ["learned"], "encoder_input": ["remainder"]}
        data["sweep"][block] = [*data["sweep"][block], remainder]
    data["sweep"]["centre"].append(data["sweep"]["encoder"][0])
    # Points that no figure shows may be in other blocks.
    data["sweep"]["controls"] = [data["sweep"]["expansion"][0] | {"table": ["scaled", "embedding"]}]
    config.parse(data)
