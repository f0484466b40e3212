"""The executed notebooks that docs/ keeps."""

from pathlib import Path

import kept
import nbformat
import pytest
import run
from fixtures import ROOT

from tsae.explore.stored import names_of_sources
from tsae.profile.shown import notebooks_of


def write_run(folder: Path, text: str) -> None:
    """Executed notebooks of the embedded profile, each with a context from each source, in a run that is finished."""
    (folder / "notebooks").mkdir()
    contexts = "".join(f"<span class='context' data-source='{place}'>{text}{place}</span>" for place in (0, 1))
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("display_data", {"text/html": contexts})])
    for name in notebooks_of(run.PROFILE):
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / f"notebooks/{name}.ipynb")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    monkeypatch.setattr(kept, "KEPT", tmp_path / "kept")
    return tmp_path


def test_quoted_text_is_that_of_a_source_with_a_licence() -> None:
    assert {*kept.QUOTED} < {*names_of_sources(run.PROFILE)}
    assert "lee_background.cor" not in kept.QUOTED


def test_notebooks_of_a_finished_run_are_kept_with_their_sizes(results: Path) -> None:
    write_run(results, "text of source ")
    with pytest.raises(run.NotMeasuredError):
        kept.keep_notebooks()
    with pytest.raises(run.NotMeasuredError):
        kept.kept_notebooks()
    (results / "manifest.json").touch()
    kept.keep_notebooks()
    assert len(list(kept.KEPT.iterdir())) == len(list((ROOT / "notebooks").glob("*.py")))
    for path in kept.KEPT.iterdir():
        assert "text of source 0" in path.read_text() and "text of source 1" not in path.read_text()
    assert "| [`04_features.ipynb`](../docs/notebooks/04_features.ipynb) | 1 kB |" in kept.kept_notebooks()


def test_a_large_notebook_is_refused(results: Path) -> None:
    (results / "manifest.json").touch()
    write_run(results, "x" * 2 * kept.LARGEST)
    with pytest.raises(ValueError, match=r"01_token_subspaces: \d+ kB with its outputs, and at most 400 kB are kept"):
        kept.keep_notebooks()
