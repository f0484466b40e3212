"""The executed notebooks of the last finished run, as docs/notebooks keeps them."""

from run import PROFILE, ROOT, NotMeasuredError, of_run

from tsae.explore.stored import as_ipynb, names_of_sources, stored
from tsae.profile.shown import notebooks_of
from tsae.store import layout
from tsae.store.markdown import markdown_table

KEPT = ROOT / "docs/notebooks"
# The text of the embedded profile that may be passed on: Wikipedia's, see docs/licences.md. Contexts from the other are left out.
QUOTED = ("enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",)
LARGEST = 400_000  # of a notebook [bytes]; git keeps every version of it


def keep_notebooks() -> None:
    """Copy the notebooks of the finished run to docs/notebooks, with their outputs.

    Raises:
        NotMeasuredError: there is no finished run.
        ValueError: a notebook is too large.
    """
    sources = names_of_sources(PROFILE)
    for name in notebooks_of(PROFILE):
        text = as_ipynb(stored(of_run(layout.NOTEBOOK.format(notebook=name)), sources, QUOTED))
        if len(text) > LARGEST:
            raise ValueError(
                f"{name}: {len(text) / 1000:.0f} kB with its outputs, and at most {LARGEST / 1000:.0f} kB are kept; show less"
            )
        KEPT.mkdir(exist_ok=True)
        (KEPT / f"{name}.ipynb").write_text(text, encoding="utf-8")


def kept_notebooks() -> str:
    """The kept notebooks and their sizes."""
    paths = sorted(KEPT.glob("*.ipynb"))
    if not paths:
        raise NotMeasuredError("docs/notebooks")
    return markdown_table(
        [
            {
                "with its outputs": f"[`{path.name}`](../docs/notebooks/{path.name})",
                "size": f"{path.stat().st_size / 1000:.0f} kB",
            }
            for path in paths
        ]
    )


BLOCKS = (kept_notebooks,)
