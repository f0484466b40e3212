"""What the README tells a user to do."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fixtures import ROOT, tiny
from fixtures.workflow import copy_project, snakemake

from tsae.profile import config

PAGES = [ROOT / "README.md", ROOT / "config/README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def snippets(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def write_book(path: Path, corpus: Path) -> None:
    """One document, long enough for the held-out text that a profile asks for."""
    lines = corpus.read_text(encoding="utf-8").splitlines()
    path.write_text("\n\n".join(f"{number} {line}" for number in range(3) for line in lines), encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_yaml_is_a_profile_or_a_part_of_one(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").mkdir()
    (tmp_path / "my-model/config.json").write_text('{"num_hidden_layers": 12, "hidden_size": 768, "vocab_size": 50257}')
    for snippet in snippets(page.read_text(encoding="utf-8"), "yaml"):
        data = yaml.safe_load(snippet)
        if not data.keys() <= config.Config.model_fields.keys():
            continue  # of another file
        whole = "gpt2" if "released" in data else "minimal"
        base = {} if "profile" in data else yaml.safe_load((ROOT / f"config/{whole}.yaml").read_text(encoding="utf-8"))
        config.parse(base | data, f"{page.name}: {snippet}")


@pytest.fixture(scope="module")
def project(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with a model of one's own and a book."""
    folder = tmp_path_factory.mktemp("readme")
    copy_project(folder)
    shutil.copy2(ROOT / "docs/cost.json", folder / "docs")  # for the time left
    tiny.write_gpt2(folder / "my-model", tiny_corpus, n_positions=128)
    write_book(folder / "book.txt", tiny_corpus)
    return folder


def test_the_recipe_ends_with_an_sae_and_three_figures(project: Path) -> None:
    (recipe,) = (snippet for snippet in snippets(README, "yaml") if "profile: mine" in snippet)
    (project / "config/mine.yaml").write_text(recipe)
    code, output = snakemake(project, configfile="config/mine.yaml")
    assert code == 0, output
    assert " left" in output
    assert len(list((project / "figures/mine").glob("*.png"))) >= 3
    saes = (project / "results/mine/saes").glob("*/*/sae.safetensors")
    assert {sae.parent.name for sae in saes} == {"topk-k32-x4-none-s0", "topk-k32-x4-learned-s0"}
    assert "nmse" in (project / "results/mine/metrics.csv").read_text()
    assert "passed" in (project / "results/mine/verified.txt").read_text()


def test_the_lines_of_python_run(project: Path, tiny_corpus: Path) -> None:
    (lines,) = (snippet for snippet in snippets(README, "python") if "tsae.train" in snippet)
    assert len([line for line in lines.splitlines() if line]) <= 8
    # The embedded model is a download, so a model of the test's own takes its place, with what fits it.
    (project / "config/minimal.yaml").write_text(
        "profile: minimal\n"
        "model: {source: {kind: folder, path: my-model}}\n"
        "corpus: {sources: [{kind: files, paths: [book.txt], format: text, cut: 1000}]}\n"
        "sweep: {headline: [{k: [32], table: [learned]}]}\n"
    )
    small = lines.replace("layer=12", "layer=1").replace("tokens=60_000", "tokens=6_000, heldout=6_000")
    assert small.count("layer=1,") == 1 and "heldout=6_000" in small
    done = subprocess.run(
        [sys.executable, "-c", small + "\nprint(x.shape, acts.shape, x_hat.shape, (acts != 0).sum(1).max().item())"],
        cwd=project,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    shapes = re.findall(r"torch\.Size\(\[(\d+), (\d+)\]\)", done.stdout)
    assert [int(width) for _, width in shapes] == [32, 128, 32] and done.stdout.split()[-1] == "32"
