"""Points and grids of the sweep: ids, products and refused settings."""

import itertools
from typing import Any

import pytest
from pydantic import ValidationError

from tsae.profile.point import Point
from tsae.profile.sweep import Grid, Job


def test_ids_are_readable_and_tell_points_apart() -> None:
    grid = Grid(
        k=(8, 32), expansion=(0.5, 4), table=("none", "fixed", "learned"), lookup_scale=(0.5, 0.25), topk_relu=(False,)
    )
    points = set(grid.points())
    assert len({point.id for point in points}) == len(points) == 2 * 2 * (1 + 2 + 2)
    assert Point(k=32, expansion=4, table="learned").id == "topk-k32-x4-learned"
    assert (
        Point(k=8, expansion=0.5, table="fixed", lookup_scale=1, encoder_scale=0.25).id
        == "topk-k8-x0.5-fixed-lookup1-enc0.25"
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"k": 32, "table": "none"}, "topk-k32-x4-none"),
        ({"k": 32, "table": "none", "lookup_scale": 0.25}, "topk-k32-x4-none"),
        ({"k": 32, "table": "learned", "lookup_scale": 0.25}, "topk-k32-x4-learned-lookup0.25"),
        ({"k": 32, "table": "none", "encoder_scale": 0.5}, "topk-k32-x4-none-enc0.5"),
        (
            {"k": 32, "table": "learned", "encoder_input": "without_unigram"},
            "topk-k32-x4-learned-nounigram",
        ),
        ({"k": 32, "table": "learned", "encoder_input": "remainder"}, "topk-k32-x4-learned-remainder"),
        ({"k": 32, "table": "none", "start": "authors"}, "topk-k32-x4-none-authors"),
        ({"k": 32, "table": "none", "centre": 0.5, "decoder_norm": 1}, "topk-k32-x4-none-centre0.5-dec1"),
        ({"k": 32, "table": "scaled", "rows": "permuted"}, "topk-k32-x4-scaled-permuted"),
        ({"k": 32, "table": "embedding", "table_lr": 1e-3}, "topk-k32-x4-embedding-tablelr0.001"),
        ({"k": 32, "table": "learned", "budget": 0.25}, "topk-k32-x4-learned-budget0.25"),
        ({"k": 32, "table": "none", "budget": 2, "distinct": 0.125}, "topk-k32-x4-none-budget2-distinct0.125"),
        ({"k": 32, "table": "none", "topk_relu": False}, "topk-k32-x4-none-norelu"),
        ({"architecture": "relu", "l1": 3, "table": "none"}, "relu-l1_3-x4-none"),
        ({"architecture": "relu", "l1": 0.25, "table": "fixed"}, "relu-l1_0.25-x4-fixed"),
        ({"architecture": "gated", "l1": 1, "table": "learned"}, "gated-l1_1-x4-learned"),
        (
            {
                "k": 1,
                "table": "fixed",
                "lookup_scale": 0.3,
                "encoder_scale": 2,
                "encoder_input": "without_unigram",
                "start": "authors",
                "topk_relu": False,
            },
            "topk-k1-x4-fixed-lookup0.3-nounigram-authors-enc2-norelu",
        ),
    ],
)
def test_ids(settings: dict[str, Any], expected: str) -> None:
    point = Point(expansion=4, **settings)
    assert point.id == expected
    assert Job(layer=12, point=point, seed=3).id == f"layer12/{expected}-s3"


def test_every_setting_shows_in_the_id() -> None:
    ids = set()
    n_points = 0
    starts: tuple[dict[str, Any], ...] = ({"start": ("authors",)}, {"centre": (None, 0.5), "decoder_norm": (None, 1)})
    for (architecture, sparsity), start in itertools.product(
        (
            ("topk", {"k": (4, 8), "topk_relu": (True, False)}),
            ("relu", {"l1": (1, 2)}),
            ("gated", {"l1": (1, 2)}),
        ),
        starts,
    ):
        grid = Grid.model_validate(
            {
                "architecture": architecture,
                "expansion": (1, 2),
                "table": ("none", "fixed", "scaled", "embedding", "learned"),
                "rows": ("unigram", "permuted"),
                "lookup_scale": (0.5, 0.3),
                "table_lr": (None, 0.1),
                "encoder_scale": (None, 0.5),
                "encoder_input": ("residual", "without_unigram"),
                "budget": (1, 0.5),
                "distinct": (1, 0.25),
                **sparsity,
                **start,
            }
        )
        points = list(grid.points())
        n_points += len(points)
        ids |= {point.id for point in points}
    # Baselines have no settings of a table, so there are 1 + 4 * 8 combinations of these. Starts: the authors' and 4 others.
    assert len(ids) == n_points == (4 + 2 + 2) * 2 * (1 + 4 * 8) * 2 * 2 * 2 * 2 * (1 + 4)


SPARSITY_MISTAKES = [
    ({"architecture": "relu", "k": 4, "l1": 1}, "k says nothing about architecture relu"),
    ({"architecture": "gated", "k": 4}, "k says nothing about architecture gated"),
    ({"k": 4, "l1": 1}, "l1 says nothing about architecture topk"),
    ({"l1": 1}, "architecture topk"),
    ({}, "architecture topk needs k"),
    ({"architecture": "relu"}, "architecture relu needs l1"),
    ({"architecture": "gated"}, "architecture gated needs l1"),
    ({"architecture": "gated", "l1": 1, "topk_relu": False}, "topk_relu: false says nothing about architecture gated"),
    ({"architecture": "relu", "l1": 1, "topk_relu": False}, "topk_relu: false says nothing about architecture relu"),
]


@pytest.mark.parametrize(("settings", "message"), SPARSITY_MISTAKES)
def test_a_point_whose_settings_say_nothing_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Point.model_validate({"expansion": 4, "table": "none", **settings})


@pytest.mark.parametrize(("settings", "message"), SPARSITY_MISTAKES)
def test_so_is_a_grid(settings: dict[str, Any], message: str) -> None:
    lists = {key: value if key == "architecture" else [value] for key, value in settings.items()}
    with pytest.raises(ValidationError, match=message):
        Grid.model_validate({"expansion": [4], "table": ["none"], **lists})


def test_a_grid_that_sweeps_the_relu_of_another_architecture_is_refused() -> None:
    with pytest.raises(ValidationError, match="topk_relu: false says nothing about architecture relu"):
        Grid.model_validate(
            {"architecture": "relu", "l1": [1], "expansion": [4], "table": ["none"], "topk_relu": [True, False]}
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k\n.*greater than or equal to 1"),
        ({"architecture": "relu", "l1": 0}, "l1\n.*greater than 0"),
        ({"architecture": "relu", "l1": float("inf")}, "l1\n.*finite"),
        ({"architecture": "topp", "k": 4}, "architecture\n.*should be 'topk', "),
        ({"k": 4, "expansion": 0}, "expansion\n"),
        ({"k": 4, "encoder_input": "embedding"}, "encoder_input\n.*'residual', 'remainder' or 'without_unigram'"),
        ({"k": 4, "top_k": 4}, "top_k\n.*not permitted"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Point.model_validate({"expansion": 4, "table": "none", **settings})


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("seeds", [0, 1, 0]),
        ("layers", [6, 6]),
        ("k", [4, 8, 4]),
        ("expansion", [4, 4.0]),
        ("table", ["none", "none"]),
        ("encoder_scale", [None, None]),
        ("encoder_input", ["residual", "residual"]),
        ("topk_relu", [True, True]),
    ],
)
def test_a_repeated_value_is_refused(field: str, values: list[Any]) -> None:
    with pytest.raises(ValidationError, match=f"{field} names a value twice"):
        Grid.model_validate({"k": [4], "expansion": [4], "table": ["none"], field: values})


def test_a_repeated_penalty_is_refused() -> None:
    with pytest.raises(ValidationError, match="l1 names a value twice"):
        Grid.model_validate({"architecture": "relu", "l1": [1, 1.0], "expansion": [4], "table": ["none"]})


@pytest.mark.parametrize("field", ["seeds", "layers", "expansion", "table", "lookup_scale", "encoder_scale", "start"])
def test_an_empty_list_is_refused(field: str) -> None:
    with pytest.raises(ValidationError, match=f"{field}\n.*at least 1 item"):
        Grid.model_validate({"k": [4], "expansion": [4], "table": ["none"], field: []})


def test_a_grid_is_the_product_of_its_lists() -> None:
    grid = Grid(architecture="relu", l1=(1, 2), expansion=(4,), table=("none", "learned"), seeds=(0, 1), layers=(3,))
    assert [point.id for point in grid.points()] == [
        "relu-l1_1-x4-none",
        "relu-l1_1-x4-learned",
        "relu-l1_2-x4-none",
        "relu-l1_2-x4-learned",
    ]
    assert all(point.k is None and point.topk_relu for point in grid.points())


def test_a_baseline_is_there_once_whatever_the_tables_scale() -> None:
    grid = Grid(k=(4,), expansion=(4,), table=("none", "learned"), lookup_scale=(0.25, 0.75))
    assert [point.id for point in grid.points()] == [
        "topk-k4-x4-none",
        "topk-k4-x4-learned-lookup0.25",
        "topk-k4-x4-learned-lookup0.75",
    ]
    assert next(grid.points()) == Point(k=4, expansion=4, table="none")


def test_the_baseline_of_a_tokenized_point() -> None:
    point = Point(
        architecture="gated",
        l1=2,
        expansion=3,
        table="learned",
        lookup_scale=0.2,
        encoder_scale=0.7,
        encoder_input="without_unigram",
        start="authors",
    )
    assert point.without_table() == Point(
        architecture="gated", l1=2, expansion=3, table="none", encoder_input="without_unigram", start="authors"
    )
    # Without a table there is no remainder: the encoder sees the residual.
    remainder = Point(k=2, expansion=3, table="learned", encoder_input="remainder", rows="permuted", table_lr=0.1)
    assert remainder.without_table() == Point(k=2, expansion=3, table="none")


def test_both_arms_start_alike_but_for_the_authors() -> None:
    for table in ("none", "fixed"):
        point = Point.model_validate({"k": 1, "expansion": 1, "table": table, "lookup_scale": 0.2})
        assert (point.initial_encoder_scale, point.initial_decoder_norm, point.is_centred) == (1, 0.1, True)
    assert Point(k=1, expansion=1, table="none", start="authors").initial_encoder_scale == 1
    theirs = Point(k=1, expansion=1, table="fixed", lookup_scale=0.2, start="authors")
    assert (theirs.initial_encoder_scale, theirs.initial_decoder_norm, theirs.is_centred) == (0.8, 1, False)
    assert Point(k=1, expansion=1, table="fixed", encoder_scale=0.3).initial_encoder_scale == 0.3
    assert not Point(k=1, expansion=1, table="none", centre=0.9).is_centred


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"table": "none", "encoder_input": "remainder"},
            "encoder_input: remainder subtracts the token's row .* no rows",
        ),
        ({"table": "none", "start": "authors", "centre": 1}, "centre: start: authors has .*leave centre out"),
        (
            {"table": "none", "start": "authors", "decoder_norm": 1},
            "decoder_norm: start: authors has .*leave decoder_norm",
        ),
    ],
)
def test_what_contradicts_itself_is_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Point.model_validate({"k": 4, "expansion": 4, **settings})
    lists = {key: [value] for key, value in settings.items()}
    with pytest.raises(ValidationError, match=message):
        Grid.model_validate({"k": [4], "expansion": [4], **lists})


def test_labels_name_every_setting() -> None:
    point = Point(architecture="relu", l1=2, expansion=4, table="none")
    labels = Job(layer=6, point=point, seed=1).labels
    assert set(labels) == {"layer", "seed", *Point.model_fields}
    assert (labels["layer"], labels["seed"], labels["architecture"]) == (6, 1, "relu")
    assert (labels["k"], labels["l1"], labels["encoder_scale"]) == (None, 2.0, None)
