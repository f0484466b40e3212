"""Executed notebooks as they are passed on: no times, and no text that may not be."""

import datetime
from pathlib import Path

import nbformat
from fixtures import ROOT

from tsae.explore.stored import as_html, as_ipynb, names_of_sources, stored
from tsae.profile import config

EMBEDDED = config.load(ROOT / "config/config.yaml")
SOURCES = ["wiki", "news"]
CONTEXTS = "".join(
    f"<span class='context' data-source='{place}'><br><small>2.0, a title:</small> text of <mark>{name}</mark></span>"
    for place, name in enumerate(SOURCES)
)


def write_notebook(path: Path, cell_id: str) -> Path:
    outputs = [
        nbformat.v4.new_output("display_data", {"text/html": f"<p><b>feature 7</b>{CONTEXTS}</p>"}),
        nbformat.v4.new_output("stream", text="as it was"),
    ]
    cell = nbformat.v4.new_code_cell("run", outputs=outputs, id=cell_id, execution_count=1)
    cell.metadata["execution"] = {"iopub.status.busy": datetime.datetime.now().isoformat()}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    return path


def test_text_of_other_sources_is_left_out(tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "a.ipynb", "one")
    for quoted in ([], ["wiki"], ["wiki", "news"]):
        node = stored(path, SOURCES, quoted)
        for text in (as_ipynb(node), as_html(node)):
            assert "feature 7" in text and "as it was" in text
            for name in SOURCES:
                assert (f"text of <mark>{name}</mark>" in text) == (name in quoted)
                assert (f"a context from {name} is left out" in text) == (name not in quoted)


def test_the_same_outputs_are_the_same_bytes(tmp_path: Path) -> None:
    texts = [
        as_ipynb(stored(write_notebook(tmp_path / f"{name}.ipynb", name), SOURCES, ["wiki"])) for name in ("a", "b")
    ]
    assert texts[0] == texts[1] and "busy" not in texts[0]
    nbformat.validate(nbformat.reads(texts[0], as_version=4))


def test_sources_are_named_after_their_files() -> None:
    assert names_of_sources(EMBEDDED)[1] == "lee_background.cor"
    assert names_of_sources(config.load(ROOT / "config/smoke.yaml")) == ["corpus.txt"]
    assert names_of_sources(config.load(ROOT / "config/gpt2.yaml")) == ["allenai/c4"]
