"""The site: built strictly, whole, and of nothing from another host."""

import inspect
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import conf
import nbformat
import pages
import pytest
import rulegraph
from fixtures import ROOT
from nbconvert import HTMLExporter

import tsae
from tsae.commands.signature import first_line
from tsae.commands.table import COMMANDS

# Links in the head of a page that a browser follows only when it is asked to.
RELATIONS = {"index", "search", "next", "prev", "canonical"}


class Parsed(HTMLParser):
    """The anchors of a page, its links, what it fetches, and its text."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.styles: list[str] = []
        self.text = ""
        self._tag = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        given = {name: value or "" for name, value in attributes}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        self.links += [given[name] for name in ("href", "src") if name in given]
        self.styles.append(given.get("style", ""))
        if tag == "link" and given.get("rel") not in RELATIONS:
            self.fetched.append(given.get("href", ""))
        self.fetched += [given["src"]] if "src" in given else []

    def handle_data(self, data: str) -> None:
        if self._tag == "style":
            self.styles.append(data)
        else:
            self.text += data


def dead_links(site: Path) -> list[str]:
    """Links and images of the pages of a site that lead to no file, or to no anchor of a page."""
    parsed = {path: Parsed(path) for path in site.rglob("*.html")}
    dead = []
    for path, page in parsed.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            name, _, anchor = unquote(link).partition("#")
            target = (path.parent / name.partition("?")[0]).resolve() if name else path
            missing = anchor and target in parsed and anchor not in parsed[target].ids
            if not target.is_file() or missing:
                dead.append(f"{path.relative_to(site)}: {link}")
    return dead


def fetched_elsewhere(site: Path) -> list[str]:
    """Scripts, styles, fonts and images of a site that are on another host."""
    asked = []
    for path in site.rglob("*.html"):
        page = Parsed(path)
        asked += [f"{path.name}: {link}" for link in page.fetched if re.match(r"(https?:)?//", link)]
        asked += [f"{path.name}: {text}" for text in page.styles if OUTSIDE.search(text)]
    for path in site.rglob("*.css"):
        asked += [f"{path.name}: {match}" for match in OUTSIDE.findall(path.read_text(encoding="utf-8"))]
    return asked


OUTSIDE = re.compile(r"@import|url\(\s*[\"']?(?:https?:)?//[^)]*")


class Built(NamedTuple):
    """A site, and the run whose notebooks it shows."""

    folder: Path
    results: Path

    def read(self, page: str) -> str:
        return (self.folder / page).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The site, with an executed notebook."""
    folder = tmp_path_factory.mktemp("site")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Executed here")])
    (folder / "results/notebooks").mkdir(parents=True)
    (folder / "results/notebooks/01_tokens.html").write_text(HTMLExporter().from_notebook_node(notebook)[0], "utf-8")
    built = Built(folder / "built", folder / "results")
    options = [
        "-W",
        "--keep-going",
        "-q",
        f"-c{ROOT / 'docs/site'}",
        f"-d{folder / 'read'}",
        f"-Dresults={built.results}",
    ]
    command = [sys.executable, "-m", "sphinx", *options, str(ROOT), str(built.folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return built


LISTED = [page for listed in conf.navigation.values() for page in listed]


def test_every_page_is_in_the_navigation_once() -> None:
    found = [path for pattern in ("*.md", "[a-z]*/*.md", "docs/site/*.md") for path in ROOT.glob(pattern)]
    assert sorted(LISTED) == sorted({str(path.relative_to(ROOT).with_suffix("")) for path in found} - {"README"})


def test_every_page_is_on_the_site_and_linked_from_the_start(site: Built) -> None:
    start = Parsed(site.folder / "index.html")
    for page in LISTED:
        assert (site.folder / f"{page}.html").is_file(), page
        assert f"{page}.html" in start.links, page


def test_no_link_is_dead(site: Built) -> None:
    assert dead_links(site.folder) == []


def test_nothing_is_fetched_from_another_host(site: Built) -> None:
    assert fetched_elsewhere(site.folder) == []


def test_a_dead_link_and_another_host_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="top">A</h1> <a href="#top">1</a> <a href="b.html?v=1#there">2</a> <a href="b.html#gone">3</a> <img src="c.png">'
        '<a href="https://example.org">4</a> <script src="//example.org/x.js"></script>'
        '<link rel="stylesheet" href="https://example.org/x.css"><style>@font-face {src: url(https://example.org/f.woff)}</style>'
    )
    (tmp_path / "b.html").write_text('<p id="there">')
    (tmp_path / "d.css").write_text("a {background: url('//example.org/i.png')}")
    assert dead_links(tmp_path) == ["a.html: b.html#gone", "a.html: c.png", "a.html: //example.org/x.js"]
    assert [line.partition(":")[0] for line in fetched_elsewhere(tmp_path)] == ["a.html", "a.html", "a.html", "d.css"]


def shown(text: str) -> str:
    """A docstring as a page shows it."""
    return text.replace("`", "")


@pytest.mark.parametrize("name", tsae.__all__)
def test_the_page_of_the_api_has_the_public_names_with_their_docstrings(site: Built, name: str) -> None:
    page = Parsed(site.folder / "docs/site/api.html")
    assert f"tsae.{name}" in page.ids
    for line in (inspect.getdoc(getattr(tsae, name)) or "").partition("\n\n")[0].splitlines():
        assert shown(line) in page.text


def test_the_page_of_the_api_has_types_shapes_and_units(site: Built) -> None:
    text = Parsed(site.folder / "docs/site/api.html").text
    for part in ("layer: int | None = None", "(..., n_features)", "(N, d_model) float32", "[tokens]", "DataFrame"):
        assert part in text, part


def test_the_page_of_the_commands_has_all_of_them_with_their_help(site: Built) -> None:
    text = Parsed(site.folder / "docs/site/commands.html").text
    for command in COMMANDS:
        assert f"tsae {command} [OPTIONS]" in text, command
        assert shown(first_line(command)) in text, command


def test_formulas_and_the_dag_are_shown_without_scripts(site: Built) -> None:
    assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">' in site.read("index.html")
    page = site.read("docs/workflow.html")
    assert '<svg class="rulegraph"' in page and ">prepare_model</text>" in page and "flowchart" not in page


def test_the_picture_of_a_dag_has_every_rule_below_what_it_needs() -> None:
    drawn = rulegraph.picture(
        "flowchart TB\n\tid0[all]\n\tid1[train]\n\tid2[fetch]\n\tid1 --> id0\n\tid2 --> id1\n\tid2 --> id0"
    )
    heights = {name: int(y) for y, name in re.findall(r'<text x="\d+" y="(\d+)">(\w+)</text>', drawn)}
    assert sorted(heights, key=lambda name: heights[name]) == ["fetch", "train", "all"]
    assert drawn.count("<path") == 3


def test_executed_notebooks_are_shown(site: Built) -> None:
    assert "https://cdnjs" in (site.results / "notebooks/01_tokens.html").read_text(encoding="utf-8")
    assert "01_tokens.html" in Parsed(site.folder / "notebooks/README.html").links
    assert "Executed here" in site.read("notebooks/01_tokens.html")


def test_without_a_run_the_site_says_how_to_make_the_notebooks(tmp_path: Path) -> None:
    assert f"no finished run in `{tmp_path}`" in pages.executed_section(tmp_path)
    assert "make reproduce" in pages.executed_section(tmp_path)
