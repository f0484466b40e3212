"""Figures as pages show them: the picture, and below it the title and the caption, each written in one place."""

import functools
from collections.abc import Callable

from run import ROOT, NotMeasuredError, of_run

from tsae.claims.ledger import is_ours
from tsae.profile.figures import FIGURES, caption_of, title_of
from tsae.store import layout

# Of the pictures that benchmarks/pictures.py draws.
OF_BENCHMARKS = {
    "peers": (
        "A training step beside other tools'",
        "Time of a training step over that of the encoder's product as PyTorch computes it (dotted line), which runs just before "
        "each step. Bars begin at zero, and the number beside each is its length. Dark bars are this project's, grey ones other "
        "tools'. Thin lines are the range over rounds.",
    ),
    "growth": (
        "Time of a step by tokens, features and k",
        "Median time of a training step over rounds, by tokens in a batch (a), features (b) and active features per token (c); one "
        "size changes at a time. Both axes are logarithmic. The dotted line is the encoder's product as PyTorch computes it.",
    ),
}


def with_caption(figure: str, title: str, caption: str) -> str:
    """A picture of docs/figures with a title and a caption.

    Raises:
        NotMeasuredError: there is no picture.
    """
    path = ROOT / f"docs/figures/{figure}.png"
    if not path.is_file():
        raise NotMeasuredError(path.relative_to(ROOT))
    text = " ".join(caption.replace("``", "`").split())
    return f"![{title}](figures/{figure}.png)\n\n> **{title}.** {text}"


def of_module(figure: str) -> str:
    """A figure of a run, as its module describes it; the caption changes with the picture, when a run is finished.

    Raises:
        NotMeasuredError: there is no finished run.
    """
    of_run(layout.MANIFEST)
    return with_caption(figure, title_of(figure), caption_of(figure))


def of_benchmark(figure: str) -> str:
    """A picture of the benchmarks."""
    return with_caption(figure, *OF_BENCHMARKS[figure])


# Figures of claims of ours are on a page of their own, see beyond.py.
OF_THE_PAPER = [name for name, needs in FIGURES.items() if not any(map(is_ours, needs.claims))]
BLOCKS: dict[str, Callable[[], str]] = {
    f"figure_{name}": functools.partial(describe, name)
    for describe, names in ((of_module, OF_THE_PAPER), (of_benchmark, OF_BENCHMARKS))
    for name in names
}
