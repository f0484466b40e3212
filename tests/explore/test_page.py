"""The page of a run: what is in it, against the SAEs themselves."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from fixtures.evaluation import Evaluated
from fixtures.explored import IDS, read_block, read_page, write_run
from fixtures.training import LAYER, Prepared

from tsae.explore.page import explore
from tsae.sae.checkpoint import load
from tsae.text.tokens import load_tokenizer


@pytest.fixture(scope="module")
def results(evaluated: Evaluated, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), evaluated, prepared, "baseline", "tokenized")


@pytest.fixture(scope="module")
def page(results: Path) -> Path:
    return Path(explore(results))


def test_the_page_shows_what_was_measured(page: Path, results: Path, evaluated: Evaluated) -> None:
    about, blocks = read_page(page)
    assert page == results / "explorer.html"
    assert (about["layer"], [sae["id"] for sae in about["saes"]]) == (LAYER, list(IDS.values()))
    assert about["saes"][0]["metrics"] == {"nmse": [0.25, None, None], "l0": [4.0, None, None]}
    whole = evaluated.whole
    assert (
        about["kept"] == whole.kept.sum() and blocks["sequences"]["tokens"].tolist() == whole.tokens.flatten().tolist()
    )
    tokenizer = load_tokenizer(results / "model")
    assert blocks["words"]["texts"][300] == tokenizer.decode([300])
    for role, name in (("baseline", "none"), ("tokenized", "learned")):
        sae = load(evaluated.saes[name])
        acts = (sae.encode(whole.residuals.float(), whole.tokens) * whole.kept[..., None]).flatten(0, 1).numpy()
        overview, details = blocks[f"features-{role}"], blocks[f"details-{role}-0"]
        assert overview["firings"].tolist() == (acts != 0).sum(0).tolist()
        n_features, lengths = sae.n_features, overview["context_lengths"].astype(int)
        owners = np.repeat(np.arange(n_features), overview["context_counts"])
        starts = overview["context_places"].astype(int) - overview["context_starts"]
        near, at = details["near_counts"].astype(int), 0
        assert len(owners) == len(near) > n_features
        for feature, start, length, n in zip(owners, starts, lengths, near, strict=True):
            shown = np.zeros(length)
            shown[details["near_tokens"][at : at + n]] = details["near_values"][at : at + n]
            np.testing.assert_allclose(shown, acts[start : start + length, feature], rtol=1e-3, atol=1e-4)
            at += n
        assert details["raised"].size == details["lowered"].size == 8 * n_features
        assert len(overview["match"]) == n_features
    assert blocks["tokens"]["trained"].sum() == about["trained"] > 1000
    assert {"fvu_table", "fvu_baseline", "fvu_tokenized", "cosine", "bias_norm"} <= blocks["tokens"].keys()


def test_the_same_run_gives_the_same_bytes(page: Path, results: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.html"
    explore(results, again, layer=LAYER, baseline=IDS["baseline"], tokenized=IDS["tokenized"])
    assert again.read_bytes() == page.read_bytes()


@pytest.mark.parametrize("role", ["baseline", "tokenized"])
def test_a_run_with_one_sae(role: str, evaluated: Evaluated, prepared: Prepared, tmp_path: Path) -> None:
    about, blocks = read_page(Path(explore(write_run(tmp_path / "run", evaluated, prepared, role))))
    assert [sae["role"] for sae in about["saes"]] == [role]
    assert "match" not in blocks[f"features-{role}"]
    assert ("neighbours" in blocks) == ("fvu_table" in blocks["tokens"]) == (role == "tokenized")


def test_parts_are_beside_the_page(page: Path, results: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "text-old-7.js").write_text("")
    explore(results, tmp_path / "page.html", parts=parts)
    about, blocks = read_page(tmp_path / "page.html")
    _, whole = read_page(page)
    assert about["parts"] == "parts" and not [name for name in blocks if name.startswith(("text-", "details-"))]
    assert {path.stem for path in parts.glob("*.js")} == whole.keys() - blocks.keys()
    text = (parts / "text-tokenized-0.js").read_text().removeprefix('explorerPart("text-tokenized-0","')
    found = read_block(about["blocks"]["text-tokenized-0"], text.removesuffix('")\n'))
    np.testing.assert_array_equal(found["top"], whole["text-tokenized-0"]["top"])


def test_mistakes_are_one_line(results: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^layer 7 has no SAEs; the run has layers {LAYER}$"):
        explore(results, tmp_path / "p.html", layer=7)
    with pytest.raises(ValueError, match=r"parts: not in .*, the folder of the page; name a folder there"):
        explore(results, tmp_path / "p.html", parts=tmp_path / "other/parts")
    with pytest.raises(ValueError, match="no finished run in"):
        explore(tmp_path)
    missing = tmp_path / "missing"
    shutil.copytree(results, missing, symlinks=True)
    (missing / f"features/layer{LAYER}/{IDS['tokenized']}-s0.parquet").unlink()
    with pytest.raises(ValueError, match=r"learned-s0\.parquet"):
        explore(missing, tmp_path / "p.html")
    assert list(tmp_path.glob("p.html*")) == []
