"""The comparison of reconstructions with other tools', on the tiny model's residuals, and how the docs show it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import other_tools
import pytest
import yaml
from fixtures import ROOT

if TYPE_CHECKING:
    from fixtures.training import Prepared

PEERS = ROOT / ".venv-bench"
SWEEP = """
headline:
  - {k: [4], expansion: [2], table: [none, learned]}
pareto:
  - {architecture: batchtopk, k: [2, 4, 8], expansion: [2], table: [none, learned]}
  - {architecture: auxk, k: [4], expansion: [2], table: [none]}
  - {architecture: matryoshka, k: [4], expansion: [2], table: [none], seeds: [0, 1]}
  - {architecture: jumprelu, l0_penalty: [0.2, 0.05, 0.1], expansion: [2], table: [none]}
  - {architecture: relu, l1: [1], expansion: [2], table: [none]}
"""


def needs_peers(test: Callable[..., None]) -> Callable[..., None]:
    there = (PEERS / "ready").is_file()
    return pytest.mark.peers(pytest.mark.skipif(not there, reason="no .venv-bench; make bench sets it up")(test))


def compare(prepared: "Prepared", folder: Path, python: str, *options: str, sweep: str = SWEEP) -> dict[str, Any]:
    """Run the benchmark; returns what it wrote."""
    content = yaml.safe_load((ROOT / "config/beyond.yaml").read_text())
    content["residuals"]["layers"] = [2]
    content["training"] |= {"tokens": 12_800, "batch_size": 128, "buffer_tokens": 2000}
    content["evaluation"] |= {"token_biases": "topk-k4-x2-learned", "dead_window": 2000}
    content |= {"sweep": yaml.safe_load(sweep), "figures": []}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    command = [python, "benchmarks/quality.py", "--results", str(prepared.residuals.parents[1]), "--threads", "1"]
    command += ["--config", str(folder / "config.yaml"), "--output", str(folder), *options]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    written: dict[str, Any] = json.loads((folder / "quality.json").read_bytes())
    return written


def test_every_architecture_of_the_sweep_has_a_row(prepared: "Prepared", tmp_path: Path) -> None:
    written = compare(prepared, tmp_path, sys.executable, "--tool", "ours")
    rows = {row["architecture"]: row for row in written["tools"]}
    assert list(rows) == ["topk", "batchtopk", "matryoshka", "auxk", "jumprelu"]
    # Of three penalties the middle one.
    assert rows["jumprelu"]["path"].startswith("tsae, jumprelu-l0_0.1-x2-none:")
    assert {name: row["dead_window"] for name, row in rows.items() if name != "auxk"} == dict.fromkeys(
        ("topk", "batchtopk", "matryoshka", "jumprelu"), 2000
    )
    assert rows["auxk"]["dead_window"] == 50_000
    assert rows["topk"]["l0"] <= 4 and all(row["l0"] > 0 and 0 < row["nmse"] < 1 for row in rows.values())


def test_a_tool_that_fails_has_its_error_as_its_row(prepared: "Prepared", tmp_path: Path) -> None:
    options = ("--architecture", "jumprelu", "--tool", "dictionary_learning")
    (row,) = compare(prepared, tmp_path, sys.executable, *options)["tools"]
    assert row["architecture"] == "jumprelu" and row["error"]


@needs_peers
def test_every_tool_trains_every_architecture_that_it_has(prepared: "Prepared", tmp_path: Path) -> None:
    written = compare(prepared, tmp_path, str(PEERS / "bin/python"))
    assert not [row for row in written["tools"] if "error" in row]
    assert len(written["tools"]) == 11 + 3 + 3 + 4 + 4
    assert all(0 < row["nmse"] < 2 and row["l0"] > 0 for row in written["tools"])


def row(tool: str, nmse: float, architecture: str | None = "batchtopk", l0: float = 32) -> dict[str, Any]:
    one = {"nmse": nmse, "l0": l0, "dead": 0.01, "seconds": 60.0}
    return {"architecture": architecture, "tool": tool, "path": "said", "seeds": [{"seed": 0} | one]} | one


def shown(monkeypatch: pytest.MonkeyPatch, *rows: dict[str, Any]) -> str:
    training = {"tokens": 1000, "batch_size": 10, "lr": 3e-3, "lr_end": 3e-4}
    content = {"settings": {"layer": 12, "k": 32, "n_features": 2304, "training": training}, "tools": list(rows)}
    monkeypatch.setattr(other_tools, "measured", lambda name: {"quality": content}[name])
    return other_tools.quality()


def test_the_docs_have_a_table_for_each_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = {"architecture": "jumprelu", "tool": "SAELens", "error": "ImportError: none"}
    text = shown(monkeypatch, row("ours", 0.098), row("SAELens", 0.1), row("ours", 0.2, "jumprelu"), failed)
    first, second = text.split("**JumpReLU**")
    assert "**BatchTopK**" in first and "| **ours** | 0.0980 |" in first
    assert first.rstrip().endswith(
        "The NMSE of ours is 2.0% below that of the best other, SAELens (one seed). L0: 32.0 of ours, 32.0 of SAELens."
    )
    assert "SAELens failed: ImportError: none" in second
    assert second.endswith("Ours and others were not measured together.")


def test_an_sae_with_more_active_features_is_not_the_best_other(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, row("ours", 0.1), row("SAELens", 0.05, l0=64), row("dictionary_learning", 0.125, l0=30))
    assert "20.0% below that of the best other, dictionary_learning" in text


def test_a_file_from_before_there_were_architectures_is_of_topk(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row("ours", 0.098, None), row("SAELens", 0.1, None)]
    for old in rows:
        del old["architecture"], old["l0"], old["seeds"][0]["l0"]
    text = shown(monkeypatch, *rows)
    assert "**TopK**" in text and "L0:" not in text
    assert "The NMSE of ours is 2.0% below that of the best other, SAELens (one seed)." in text
