"""Families, and the means and intervals that figures draw, against cases worked by hand."""

import itertools
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from fixtures.measured import BASELINE, REMAINDER, TOKENIZED, near, row, table
from matplotlib.colors import to_rgb

from tsae.figures import style as plots
from tsae.figures.labels import LUMA
from tsae.profile import families
from tsae.profile.config import Headline

FAMILIES = list(families.FAMILIES.values())


def settings(kind: str, seen: str = "residual", rows: str = "unigram") -> dict[str, Any]:
    return {"table": kind, "encoder_input": seen, "rows": rows}


def test_families_are_apart_in_colour_marker_line_and_grey() -> None:
    styles = [plots.style_of(family) for family in FAMILIES]
    for key in ("color", "marker", "ls", "label"):
        assert len({style[key] for style in styles}) == len(FAMILIES) == 4
    # Neighbours in grey are told apart by markers and lines too.
    grey = {s["label"]: sum(w * c for w, c in zip(LUMA, to_rgb(s["color"]), strict=True)) for s in styles}
    assert min(b - a for a, b in itertools.pairwise(sorted(grey.values()))) > 0.15
    assert grey[families.LEARNED] - grey[families.BASELINE] > 0.35


def test_a_table_falls_into_its_families() -> None:
    of = table(
        row("remainder", "nmse", 1, **settings("learned", "remainder")),
        row("none", "nmse", 2, **settings("none")),
        row("learned", "nmse", 3, **settings("learned")),
        row("permuted", "nmse", 4, **settings("learned", rows="permuted")),
        row("scaled", "nmse", 5, **settings("scaled")),
        row("hidden", "nmse", 6, **settings("none", "without_unigram")),
        row("released", "nmse", 7, table="fixed", encoder_input="residual"),
    )
    found = plots.families_in(of)
    assert list(found) == FAMILIES
    assert [rows["subject"].tolist() for rows in found.values()] == [["none"], ["released"], ["learned"], ["remainder"]]
    assert families.family_of("learned", "residual", "permuted") is None
    assert families.family_of("none", "without_unigram") is None


@pytest.mark.parametrize("kind", ["learned", "fixed"])
def test_headline_saes_have_the_families_of_their_roles(kind: str) -> None:
    of = table(row(BASELINE, "nmse", 1, table="none"), row(TOKENIZED, "nmse", 1, table=kind))
    headline = Headline(BASELINE, TOKENIZED)
    tokenized = f"tokenized, {kind} table"
    assert plots.headline_families(of, headline.roles) == {"baseline": BASELINE, tokenized: TOKENIZED}
    roles = headline._replace(remainder=REMAINDER).roles
    assert list(plots.headline_families(of, roles).items())[2:] == [("tokenized, remainder", REMAINDER)]


def test_bars_are_of_one_seed_and_not_the_hull_of_all() -> None:
    of = table(
        row("a", "nmse", 0.3, 0.01, seed=0), row("a", "nmse", 0.4, 0.03, seed=1), row("b", "nmse", 0.5, 0.02, seed=0)
    )
    summary = plots.over_seeds(of, "subject")
    assert list(summary.loc["a"]) == near([0.35, 0.33, 0.37])  # the hull is 0.29 to 0.43
    assert list(summary.loc["b"]) == near([0.5, 0.48, 0.52])
    below, above = plots.bars(summary, 100)
    assert (below.tolist(), above.tolist()) == (near([2, 2]), near([2, 2]))


def test_several_panels_have_letters(tmp_path: Path) -> None:
    for n, letters in ((1, []), (3, ["a", "b", "c"])):
        fig, _ = plots.figure(n)
        path = tmp_path / f"{n}.svg"
        plots.save(fig, [path])
        assert re.findall(r"<text[^>]*>([a-z])</text>", path.read_text()) == letters
    assert not plt.get_fignums()
