"""What figures draw, from tables made up by hand, and what each declares."""

import importlib
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fixtures import ROOT
from fixtures.drawing import draw, drawn, sae, ticks
from fixtures.measured import BASELINE, REMAINDER, TOKENIZED, near, row, table

from tsae.claims.ledger import load_ledger
from tsae.figures.draw import draw_figure
from tsae.profile.config import Headline
from tsae.profile.figures import FIGURES, caption_of, title_of

BUDGETS = {BASELINE: 0.2, f"{TOKENIZED}-budget0.25": 0.4, TOKENIZED: 0.1}
AUTHORS = {"start": "authors"}


def test_dead_features_are_drawn_at_the_offset_of_the_input(tmp_path: Path) -> None:
    def point(subject: str, offset: float, dead: float, **columns: Any) -> list[dict[str, Any]]:
        return sae(subject, {"encoder_offset_at_start": offset, "dead_heldout": dead, "nmse": dead + 0.1}, **columns)

    shared = [*point(BASELINE, 0, 0.01, seed=0), *point(BASELINE, 0, 0.03, seed=1)]
    hidden = point(f"{TOKENIZED}-nounigram", 0.1, 0.04, encoder_input="without_unigram")
    centre = [
        *shared,
        *point(f"{BASELINE}-centre0", 0.5, 0.2, centre=0.0),
        *point(f"{TOKENIZED}-centre0", 0.8, 0.3, centre=0.0),
        *point(f"{TOKENIZED}-authors", 0.6, 0.25, **AUTHORS),
        *point(TOKENIZED, 0.01, 0.02),
    ]
    found = draw("encoder_offset", tmp_path, {"centre": centre, "encoder": [*shared, *hidden]})
    dead, nmse = found
    by_family = drawn(dead)
    assert by_family["baseline"] == [(0, 2), (0.5, 20)]  # the shared SAE once, its seeds as their mean
    assert by_family["tokenized, learned table"] == [(0.01, 2), (0.8, 30)]
    markers = {line.get_xdata()[0]: line.get_fillstyle() for line in dead.lines if line.get_marker() == "D"}
    assert markers == {0.01: "full", 0.6: "left", 0.1: "none"}
    assert drawn(nmse)["baseline"] == [(0, 0.12), (0.5, 0.3)]


EDGES = (0, 1, 2, 5, 1000)


def counts(values: Sequence[float]) -> dict[Any, float]:
    return {("nmse_by_count", float(edge)): value for edge, value in zip(EDGES, values, strict=False)}


def test_the_gain_by_count_is_over_the_baseline_of_the_same_layer_and_seed(tmp_path: Path) -> None:
    headline = [
        *sae(BASELINE, counts([0.4, 0.2]), seed=0),
        *sae(BASELINE, counts([0.8, 0.4]), seed=1),
        *sae(TOKENIZED, counts([0.2, 0.1]), seed=0),
        *sae(TOKENIZED, counts([0.6, 0.3]), seed=1),
        *sae(REMAINDER, counts([0.3]), seed=1),
        *sae(BASELINE, counts([1, 1]), layer=2),
        *sae(TOKENIZED, counts([0.9, 0.9]), layer=2),
    ]
    controls = [
        *sae("topk-k4-x4-scaled", counts([0.1, 0.05]), seed=0),
        *sae("topk-k4-x4-learned-permuted", counts([0.4, 0.3]), seed=0, rows="permuted"),
        # Of neither is there a place.
        *sae(f"{TOKENIZED}-tablelr0.1", counts([9, 9]), table_lr=0.1),
        *sae("topk-k4-x4-embedding", counts([9, 9]), seed=7),
    ]
    shares = zip(EDGES, (0.1, 0.2, 0.3, 0.4, 0), strict=True)
    about = [row("residuals", "heldout_share_by_count", share, layer=1, at=float(edge)) for edge, share in shares]
    expansion = [*sae("topk-k4-x4-fixed", counts([0.3, 0.3])), *sae("topk-k4-x2-fixed", counts([9]), expansion=2.0)]
    tables = {"headline": headline, "baselines": about, "controls": controls, "expansion": expansion}
    above, above_2, below, _ = draw("token_counts", tmp_path, tables)
    ratios = {label: [y for _, y in points] for label, points in drawn(above).items()}
    assert ratios == {
        "tokenized, fixed table": near([0.75, 1.5]),
        "tokenized, learned table": near([0.8 / 1.2, 0.4 / 0.6]),  # of the means of both seeds
        "tokenized, remainder": near([0.375]),  # of the seed that both have
        "fixed rows, each scaled": near([0.25, 0.25]),
        "learned, rows permuted": near([1, 1.5]),
    }
    assert drawn(above_2).keys() == {"tokenized, learned table"}
    assert ticks(below) == ["0", "1", "2\u20134", "5\u2013999", "1000+"]
    assert [bar.get_height() for bar in below.patches] == near([10, 20, 30, 40, 0])


def test_the_gain_by_position_has_a_bin_for_each_power_of_two(tmp_path: Path) -> None:
    def positions(*values: float) -> dict[Any, float]:
        return {("nmse_by_position", at): value for at, value in zip((1.0, 2.0, 4.0, 8.0), values, strict=False)}

    headline = [
        *sae(BASELINE, positions(0.4, 0.4, 0.5, 0.5), seed=0),
        *sae(BASELINE, positions(0.8, 0.4, 0.5, 0.5), seed=1),
        *sae(TOKENIZED, positions(0.2, 0.2, 0.4, 0.5), seed=0),
        *sae(TOKENIZED, positions(0.6, 0.2, 0.4, 0.5), seed=1),
        *sae(BASELINE, positions(1, 1), layer=2),
        *sae(TOKENIZED, positions(0.9, 0.7), layer=2),
    ]
    controls = sae("topk-k4-x4-learned-permuted", positions(0.4), seed=0, rows="permuted")
    first, second = draw("gain_by_position", tmp_path, {"headline": headline, "controls": controls})
    ratios = {label: [y for _, y in points] for label, points in drawn(first).items()}
    assert ratios == {"tokenized, learned table": near([0.8 / 1.2, 0.5, 0.8, 1]), "learned, rows permuted": near([1])}
    assert [y for _, y in drawn(second)["tokenized, learned table"]] == near([0.9, 0.7])
    assert ticks(first) == ticks(second) == ["1", "2", "3\u20134", "5\u20138"]


def test_lookups_and_components_share_an_axis_and_the_table_is_a_line(tmp_path: Path) -> None:
    about = [
        row("unigram-residuals", "table_fvu_fitted", 0.9),
        *(row("conditional-means", "table_fvu_by_order", 1 / (1 + at), at=at) for at in (1.0, 2.0, 3.0, 4.0)),
        *(row("residuals", "pca_fvu", 0.8 / at, at=at) for at in (1.0, 2.0, 4.0)),
    ]
    by_order, by_rank = draw("table_orders", tmp_path, {"baselines": about})
    assert drawn(by_order) == {"layer 1": [(1, 0.5), (2, near(1 / 3, abs=1e-6)), (3, 0.25), (4, 0.2)]}
    assert drawn(by_rank) == {"layer 1": [(1, 0.8), (2, 0.4), (4, 0.2)]}
    lines = [
        [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() in ("--", ":")] for ax in (by_order, by_rank)
    ]
    assert lines == [[0.9], [0.5]]


def speed(scale: float = 1.0) -> dict[str, Any]:
    """A baseline of NMSE 0.2, and tokenized SAEs whose NMSE is 0.1 / budget, all times a factor at each seed."""
    rows = {
        (subject, seed): sae(subject, {"nmse": value * (1 + seed) * scale}, seed=seed, **columns)
        for subject, value in BUDGETS.items()
        for columns in [{"budget": 0.25} if subject.endswith("0.25") else {}]
        for seed in (0, 1)
    }
    way = {BASELINE: {10: 0.5, 40: 0.3, 160: 0.2}, TOKENIZED: {10: 0.3, 40: 0.1, 160: 0.05}}
    curves = [
        one
        for subject, curve in way.items()
        for step, value in curve.items()
        for one in sae(subject, {"nmse": value}, step=step, tokens=step)
    ]
    headline = [one for (subject, _), of in rows.items() if subject in (BASELINE, TOKENIZED) for one in of]
    fewer = [one for (subject, _), of in rows.items() if subject not in (BASELINE, TOKENIZED) for one in of]
    return {"headline": headline, "curves": curves, "speed": fewer}


def test_speed_ups_are_drawn_at_equal_loss_and_on_one_schedule(tmp_path: Path) -> None:
    found = draw("speedup", tmp_path, speed())
    nmse, ce_added = found
    # Half the tokens at equal loss; on one schedule step 20 of 160.
    assert list(itertools.chain(*drawn(nmse).values())) == [(0, 2), (1.8, 8)]
    assert [text.get_text() for text in nmse.texts[:2]] == ["this run,\nequal loss", "this run,\none schedule"]
    seeds = [line.get_ydata() for line in nmse.lines if line.get_markersize() == near(1.8)]
    assert [sorted(map(float, of)) for of in seeds if len(of)] == [near([2, 2])]
    assert drawn(ce_added) == {}  # not measured
    found = draw("speedup", tmp_path, {name: rows for name, rows in speed().items() if name != "speed"})
    assert list(itertools.chain(*drawn(found[0]).values())) == [(0, 8)]


def test_a_speed_up_beyond_the_budgets_is_a_bound(tmp_path: Path) -> None:
    tables = speed()
    for value, place in ((0.1, "above"), (0.9, "below")):
        budgets = [one | {"value": value, "low": value, "high": value} for one in tables["speed"]]
        whole = [
            one | {"value": one["value"] * 9} if one["subject"] == TOKENIZED else one for one in tables["headline"]
        ]
        changed = {"speed": budgets, "headline": whole if place == "below" else tables["headline"]}
        ax = draw("speedup", tmp_path, tables | changed)[0]
        (equal,) = (line for line in ax.lines if line.get_marker() in ("D", "x") and line.get_xdata()[0] == 0)
        assert equal.get_marker() == ("D" if place == "above" else "x")
        if place == "above":
            assert (float(equal.get_ydata()[0]), equal.get_markerfacecolor()) == (4, "none")


def test_kinds_of_tables_are_drawn_in_rows(tmp_path: Path) -> None:
    def table(kind: str, rows: str, scale: float, encoder_input: str, value: float) -> list[dict[str, Any]]:
        settings = {"rows": rows, "lookup_scale": scale, "encoder_input": encoder_input}
        name = f"topk-k4-x4-{kind}-{rows}-{scale:g}-{encoder_input}"
        return sae(name, {"nmse": value, "ce_added": value / 2, "dead_heldout": value / 4}, **settings)

    rows = [
        *sae(BASELINE, {"nmse": 0.4, "ce_added": 0.2, "dead_heldout": 0.1}),
        *table("fixed", "conditional", 1, "remainder", 0.1),
        *table("learned", "unigram", 0.5, "residual", 0.3),
        *table("fixed", "unigram", 0.5, "residual", 0.35),
        *table("scaled", "unigram", 0.5, "residual", 0.9),  # a control, which has no place
    ]
    nmse, ce_added, dead = draw("table_rows", tmp_path, {"tables": rows})
    points = sorted(point for of in drawn(nmse).values() for point in of)
    assert points == [(near(0.1), near(0.86)), (near(0.3), near(0.14)), (near(0.35), near(-0.14))]
    assert sorted(x for of in drawn(ce_added).values() for x, _ in of) == near([5, 15, 17.5])
    assert sorted(x for of in drawn(dead).values() for x, _ in of) == near([2.5, 7.5, 8.75])
    names = [tick.get_text().replace("\n", " ") for tick in nmse.get_yticklabels()]
    assert names == [
        "unigram residuals x 0.5, encoder sees the residual",
        "conditional means x 1, encoder sees the remainder",
    ]


def test_a_gain_is_drawn_by_text_and_epochs(tmp_path: Path) -> None:
    def pair(ratio: float, seed: int = 0, **settings: float) -> list[dict[str, Any]]:
        name = "-".join(f"{key}{value:g}" for key, value in settings.items())
        values = {"none": 0.2, "learned": 0.2 * ratio}
        return [
            one
            for kind, value in values.items()
            for one in sae(f"topk-k4-x4-{kind}-{name}", {"nmse": value, "ce_added": value**2}, seed=seed, **settings)
        ]

    growth = [one for seed in (0, 1) for b, r in ((0.25, 0.5), (0.5, 0.6), (1, 0.7)) for one in pair(r, seed, budget=b)]
    epochs = [*pair(0.8, budget=2), *pair(0.9, distinct=0.25)]
    values, nmse, ce_added = draw("lasting", tmp_path, {"growth": growth, "epochs": epochs})
    once = [(0.25, near(0.5)), (0.5, near(0.6)), (1, near(0.7))]
    assert drawn(nmse)["tokenized, learned table"] == once
    assert drawn(ce_added)["tokenized, learned table"] == [(x, near(y.expected**2)) for x, y in once]
    (hollow,) = (points for label, points in drawn(nmse).items() if label.startswith("_") or label == "None")
    assert hollow == [(0.25, near(0.9)), (1, near(0.8))]
    assert [text.get_text() for text in nmse.texts] == ["4 epochs", "2 epochs"]
    assert drawn(values)["baseline"] == [(0.25, near(0.2)), (0.5, near(0.2)), (1, near(0.2))]
    assert ticks(values) == ["0.25", "0.5", "1"]


def test_where_encoders_differ_at_the_start_the_axis_says_so(tmp_path: Path) -> None:
    metrics = {"nmse": 0.1, "ce_added": 0.1, "dead_heldout": 0.1}
    authors = [
        one
        for scale in (0, 0.25)
        for one in sae(f"topk-k4-x4-fixed-lookup{scale:g}", metrics, lookup_scale=scale, **AUTHORS)
    ]
    centred = [{**one, "start": "centred"} for one in authors]
    for rows, labels in ((authors, ["0\n1", "0.25\n0.75"]), (centred, ["0", "0.25"])):
        ax = draw("init_sweep", tmp_path, {"init": rows})[0]
        assert ticks(ax) == labels
        assert ("encoder" in ax.get_figure().get_supxlabel()) == (rows is authors)
        assert "baseline" not in ax.get_legend_handles_labels()[1]


def test_parameters_are_shown_where_the_table_has_them(tmp_path: Path) -> None:
    sizes = {("none", 2): 2e6, ("none", 4): 4e6, ("learned", 2): 30e6}
    metrics = {"nmse": 0.1, "dead_heldout": 0.1, "dead_training": 0.1}
    for known in (True, False):
        rows = [
            one
            for (kind, expansion), size in sizes.items()
            for one in sae(
                f"topk-k4-x{expansion}-{kind}",
                metrics | ({"n_parameters": size} if known else {}),
                expansion=float(expansion),
            )
        ]
        panels = draw("expansion", tmp_path, {"expansion": rows})
        assert len(panels) == 3 + known
        assert drawn(panels[0])["baseline"] == [(2, 0.1), (4, 0.1)]
        if known:
            assert drawn(panels[1]) == {
                "baseline": [(2, 0.1), (4, 0.1)],
                "tokenized, learned table": [(30, 0.1)],
            }


def test_tables_of_older_runs_are_drawn_as_far_as_they_go(tmp_path: Path) -> None:
    share = {("token_bias_unigram_cosine_share", 0.5): 0.9, ("token_bias_neighbour_cosine_share", 0.5): 0.8}
    floor = {("token_bias_other_cosine_share", 0.5): 0.1}
    old = sae(TOKENIZED, share | floor, min_count=20)
    by_count = {("token_bias_unigram_cosine_centred_by_count", 1.0): 0.7}
    about = [row("residuals", f"residual_{other}_cosine", 0.5, at=2.0) for other in ("unigram", "other")]
    ngrams = [row("residuals", f"ngram_{other}_cosine", 0.5, at=2.0) for other in ("unigram", "other")]
    for new in (False, True):
        headline = old + (sae(TOKENIZED, by_count) if new else [])
        found = draw("lookup_geometry", tmp_path, {"headline": headline, "baselines": about})
        assert len(found) == 2 * (1 + new)
        found = draw("token_subspaces", tmp_path, {"baselines": about + ngrams * new})
        assert len(found) == 1 + new


def test_architectures_have_a_column_each(tmp_path: Path) -> None:
    metrics = {"nmse": 0.1, "ce_added": 0.2}
    rows = [
        *sae(BASELINE, metrics | {"l0": 4}),
        *sae(REMAINDER, metrics | {"l0": 4}),
        *sae("relu-l1_2-x4-none", metrics | {"l0": 9}, architecture="relu", k=pd.NA),
    ]
    *nmse, _, ce_added = draw("pareto", tmp_path, {"pareto": rows})
    assert [drawn(ax) for ax in nmse] == [
        {"baseline": [(4, 0.1)], "tokenized, remainder": [(4, 0.1)]},
        {"baseline": [(9, 0.1)]},
    ]
    assert drawn(ce_added) == {"baseline": [(9, 20)]}


def test_an_unknown_architecture_is_not_left_out_silently(tmp_path: Path) -> None:
    rows = sae("topp-k4-x4-none", {"nmse": 0.1, "ce_added": 0.2, "l0": 4}, architecture="topp")
    with pytest.raises(ValueError) as error:
        draw("pareto", tmp_path, {"pareto": [*sae(BASELINE, {"nmse": 0.1, "l0": 4}), *rows]})
    assert str(error.value).startswith("unknown architecture 'topp'; there are topk, ")


@pytest.mark.parametrize("remainder", [True, False])
def test_both_forms_are_shown_where_a_profile_has_them(tmp_path: Path, remainder: bool) -> None:
    subjects = [BASELINE, TOKENIZED, *([REMAINDER] if remainder else [])]
    rows = [one for subject in subjects for one in sae(subject, {"nmse": 0.1, "fvu": 0.2, "ce_added": 0.3})]
    found = draw("reconstruction_by_layer", tmp_path, {"headline": rows}, remainder=remainder)
    names = ["baseline", "tokenized, learned table", "tokenized, remainder"]
    assert [list(drawn(ax)) for ax in found] == [names[: len(subjects)]] * 3


@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_is_one_file(figure: str) -> None:
    module = importlib.import_module(f"tsae.figures.{figure}")
    assert list(module.draw.__annotations__) == ["inputs", "return"]
    assert module.NEEDS["category"] == FIGURES[figure].category
    assert set(FIGURES[figure].claims) <= {claim.id for claim in load_ledger(ROOT / "config/claims.yaml")}
    # The title is a cell of a table, and Snakemake takes braces for wildcards and renders the caption.
    assert title_of(figure) and not re.search(r"[|{}]", title_of(figure))
    assert len(caption_of(figure)) > 200 and not re.search(r"[{}]", caption_of(figure))


def test_a_mistake_in_what_a_figure_is_given_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no figure 'pareot'; there are: encoder_ablation, "):
        draw("pareot", tmp_path, {})
    with pytest.raises(ValueError, match=r"the figure lookup_geometry needs the table baselines\.csv too"):
        draw("lookup_geometry", tmp_path, {"headline": sae(TOKENIZED, {"nmse": 0.1})})


def test_the_command_writes_every_format(tmp_path: Path) -> None:
    rows = [row("residuals", f"residual_{other}_cosine", 0.5, at=2.0) for other in ("unigram", "other")]
    table(*rows).to_csv(tmp_path / "baselines.csv", index=False)
    outputs = {ending: tmp_path / f"token_subspaces.{ending}" for ending in ("svg", "pdf", "png")}
    settings: dict[str, Any] = {"simple_threshold": 0.5, "bootstrap": 50, "seed": 0}
    settings |= {"headline": Headline(BASELINE, TOKENIZED), **outputs}
    draw_figure("token_subspaces", [tmp_path / "baselines.csv"], **settings)
    starts = {"svg": b"<?xml", "pdf": b"%PDF", "png": b"\x89PNG"}
    assert all(outputs[ending].read_bytes().startswith(start) for ending, start in starts.items())
