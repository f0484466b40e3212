"""Executed notebooks as they are kept and passed on: without times, and without text of the corpus that may not be passed on."""

import logging
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import HTMLExporter

from tsae.profile.config import Config
from tsae.profile.sources import CorpusSource, FileCorpus, HubCorpus, WheelCorpus
from tsae.store.files import read_text

# What `contexts_html` writes.
CONTEXT = re.compile(r"<span class='context' data-source='(\d+)'>.*?</span>", re.DOTALL)


def names_of_sources(config: Config) -> list[str]:
    """Names of the sources of text, in the order of `corpus.sources`."""
    return [name_of(source) for source in config.corpus.sources]


def name_of(source: CorpusSource) -> str:
    """The file name, or the hub id, of a source of text."""
    match source:
        case WheelCorpus():
            return source.filename
        case HubCorpus():
            return source.id
        case FileCorpus():
            return source.paths[0].name


def stored(notebook: Path, sources: Sequence[str], quoted: Collection[str]) -> Any:
    """An executed notebook without times; the same outputs give the same bytes.

    Args:
        notebook: the .ipynb that the workflow wrote.
        sources: of `names_of_sources`.
        quoted: names of the sources whose text may be passed on; contexts from others are left out.

    Raises:
        ValueError: the file is damaged.
    """

    def keep(context: re.Match[str]) -> str:
        name = sources[int(context[1])]
        left_out = f"<br><small>a context from {name} is left out, as its text is not passed on here</small>"
        return context[0] if name in quoted else f"<span>{left_out}</span>"

    node = nbformat.reads(read_text(notebook), as_version=4)
    for place, cell in enumerate(node.cells):
        cell.id = f"cell-{place}"
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if html := output.get("data", {}).get("text/html"):
                output.data["text/html"] = CONTEXT.sub(keep, html)
    return node


def as_ipynb(notebook: Any) -> str:
    """The text of an .ipynb file."""
    return str(nbformat.writes(notebook)).rstrip("\n") + "\n"


def as_html(notebook: Any) -> str:
    """The notebook as a page."""
    exporter = HTMLExporter()
    exporter.log.setLevel(logging.ERROR)  # it warns of images without a description
    page, _ = exporter.from_notebook_node(notebook)
    return str(page)
