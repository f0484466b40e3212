"""The page of the runs beyond the paper is in step with their record."""

import json
from pathlib import Path
from typing import Any

import beyond
import fill
import pytest
import run
from fixtures import ROOT


def claim(name: str, check: str, verdict: str, layer: str = "12", decides: bool = True) -> dict[str, Any]:
    about = {"id": name, "claim": f"says {name}", "check": check, "decides": decides, "layer": layer}
    return about | {
        "measured": 0.5,
        "low": 0.4,
        "high": 0.6,
        "text": "0.5",
        "verdict": verdict,
        "claim_verdict": verdict,
    }


def record(**claims: list[dict[str, Any]]) -> str:
    made: dict[str, Any] = {"config_sha256": "c" * 64, "commit": "d" * 40}
    made |= {"machine": {"cores": 2, "architecture": "x86_64", "system": "Linux"}}
    return json.dumps({profile: made | {"claims": rows} for profile, rows in claims.items()})


@pytest.mark.parametrize("page", ["beyond.md", "two_models.md"])
def test_a_page_is_in_step_with_the_record(page: str, tmp_path: Path) -> None:
    text = (ROOT / "docs" / page).read_text()
    copy = tmp_path / page
    copy.write_text(text)
    fill.fill(copy)
    assert copy.read_text() == text, "run `make docs`"


def test_what_is_not_on_record_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beyond, "RECORD", tmp_path / "beyond.json")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(beyond, "ROOT", tmp_path)
    assert beyond.beyond_runs().count("not run yet") == len(beyond.PROFILES)
    for block in (beyond.beyond_verdicts, beyond.both_models, beyond.BLOCKS["beyond_lasting"]):
        with pytest.raises(run.NotMeasuredError):
            block()


def test_claims_of_ours_come_from_the_run_that_measured_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "beyond.json"
    monkeypatch.setattr(beyond, "RECORD", path)
    ours = [claim("B3", "a", "direction holds"), claim("B3", "b", "inconclusive", decides=False)]
    path.write_text(record(beyond=[claim("C1", "x", "reproduced"), *ours], random=[claim("B6", "c", "does not hold")]))
    assert "C1" not in beyond.beyond_verdicts()
    assert "| B6 | says B6 | **does not hold** |" in beyond.beyond_verdicts()
    assert "| B3 | 12 | b (context) | 0.5 | inconclusive |" in beyond.beyond_checks()
    assert beyond.measured("B3", "a") == "0.5"
    with pytest.raises(ValueError, match="0 rows of B3: 'lost'"):
        beyond.measured("B3", "lost")


def test_both_models_show_what_decides_at_their_middle_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "beyond.json"
    monkeypatch.setattr(beyond, "RECORD", path)
    check = "NMSE, TopK, tokenized / baseline, equal L0"
    rows = [
        claim("C1", check, "does not hold", layer) | {"measured": value}
        for layer, value in (("4", 0.7), ("8", 0.8), ("12", 0.9))
    ]
    path.write_text(record(gemma=rows))
    lines = [line for line in beyond.both_models().splitlines() if check in line]
    assert all("0.8 (0.4 to 0.6)" in line for line in lines)
    assert "- It holds on SmolLM2 alone: C1" in beyond.both_tally()
