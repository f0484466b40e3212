"""What the site has beside the pages: the navigation, formulas, the picture of the DAG, executed notebooks."""

import re
import shutil
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from rulegraph import Mermaid
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

NOTEBOOKS = "notebooks/README"


def toctree(caption: str, pages: list[str]) -> str:
    """A part of the navigation, as a directive that shows nothing on the page itself."""
    listed = "".join(f"/{page}\n" for page in pages)
    return f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{listed}```\n"


def executed(results: Path) -> list[Path]:
    """The executed notebooks of a finished run, in order."""
    return sorted((results / "notebooks").glob("*.html"))


def executed_section(results: Path) -> str:
    """Links to the executed notebooks; without a finished run, how to make them."""
    links = "\n".join(f'- <a href="{path.name}">{path.stem}</a>' for path in executed(results))
    without = f"There was no finished run in `{results}` when this site was built. To have its notebooks here: `make reproduce site`."
    return f"\n## Executed\n\n{links or without}\n"


def add_to_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Add to a page's text what GitHub has no use for."""
    if page == app.config.root_doc:
        source[0] += "".join(toctree(caption, pages) for caption, pages in app.config.navigation.items())
    if page == NOTEBOOKS:
        source[0] += executed_section(Path(app.config.results))


def add_files(app: Sphinx, error: Exception | None) -> None:
    """Copy the executed notebooks, and put the start page where servers look for it."""
    if error is not None:
        return
    site = Path(app.outdir)
    shutil.copyfile(site / f"{app.config.root_doc}.html", site / "index.html")
    for path in executed(Path(app.config.results)):
        # Scripts of other hosts, which nbconvert adds for widgets and formulas; the notebooks have neither.
        text = re.sub(r"<script[^>]* src=\"https?://[^>]*>\s*</script>", "", path.read_text(encoding="utf-8"))
        (site / NOTEBOOKS).with_name(path.name).write_text(text, encoding="utf-8")


def show_formula(translator: HTML5Translator, node: nodes.math) -> None:
    """A formula in a line, as MathML."""
    translator.body.append(str(tex2mathml(node.astext())))
    raise nodes.SkipNode


def show_equation(translator: HTML5Translator, node: nodes.math_block) -> None:
    """A formula of its own, as MathML."""
    translator.body.append(str(tex2mathml(node.astext(), as_block=True)))
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_config_value("navigation", {}, "env")
    app.add_config_value("results", "results/embedded", "env")
    app.add_html_math_renderer("mathml", (show_formula, None), (show_equation, None))
    app.add_directive("mermaid", Mermaid)
    app.connect("source-read", add_to_page)
    app.connect("build-finished", add_files)
    return {"parallel_read_safe": True}
