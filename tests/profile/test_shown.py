"""What notebooks, the explorer and a release show of a profile."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures import ROOT

from tsae.profile import config
from tsae.profile.shown import notebooks_of, shown_of

ALL = sorted(path.stem for path in (ROOT / "notebooks").glob("*.py"))


def profile(**sections: Any) -> config.Config:
    return config.parse(yaml.safe_load((ROOT / "config/smoke.yaml").read_text()) | sections)


def test_the_middle_layer_and_the_lowest_seed_are_shown() -> None:
    shown = shown_of(config.load(ROOT / "config/config.yaml"))
    assert shown.layer == 12 and shown.explored == ["baseline", "tokenized"]
    assert shown.saes["tokenized"] == "layer12/topk-k32-x4-learned-s0"


@pytest.mark.parametrize(
    ("tables", "explored", "missing"),
    [
        (["none", "learned"], ["baseline", "tokenized"], "02"),
        (["learned"], ["tokenized"], "02"),
        (["none"], ["baseline"], "02 03"),
    ],
)
def test_a_profile_gets_the_notebooks_that_it_has_the_saes_for(
    tables: list[str], explored: list[str], missing: str
) -> None:
    few = profile(sweep={"headline": [{"k": [4], "table": tables}]}, figures=None, evaluation={})
    assert shown_of(few).explored == explored
    assert notebooks_of(few) == [name for name in ALL if name[:2] not in missing.split()]


def test_a_profile_without_a_headline_gets_none() -> None:
    few = profile(sweep={"mine": [{"k": [4], "table": ["none"]}]}, figures=None, evaluation={})
    assert shown_of(few) == (None, {}) and notebooks_of(few) == []


def test_the_smoke_profile_gets_all() -> None:
    assert notebooks_of(config.load(Path(ROOT / "config/smoke.yaml"))) == ALL
