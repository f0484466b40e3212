"""The command that draws a figure."""

import importlib
from pathlib import Path

from tsae.figures.inputs import Drawing, Inputs
from tsae.figures.style import save
from tsae.profile.config import Headline
from tsae.profile.figures import FIGURES
from tsae.store.arguments import Files


def draw(figure: str, inputs: Inputs) -> Drawing:
    """Draw a figure by its name, with the function `draw` of its module.

    Raises:
        ValueError: there is no such figure, or an input is missing.
    """
    if figure not in FIGURES:
        raise ValueError(f"there is no figure {figure!r}; there are: {', '.join(FIGURES)}")
    if missing := [name for name in FIGURES[figure].required if name not in inputs.tables]:
        raise ValueError(f"the figure {figure} needs the table {missing[0]}.csv too; name its path")
    drawing: Drawing = importlib.import_module(f"tsae.figures.{figure}").draw(inputs)
    return drawing


def draw_figure(
    figure: str,
    results: Files,
    *,
    headline: Headline,
    simple_threshold: float,
    bootstrap: int,
    seed: int,
    svg: Path,
    pdf: Path,
    png: Path,
) -> None:
    """Draw one figure from the results that it needs.

    Args:
        figure: its name.
        results: tables (.csv), sums over documents (.safetensors), claims.yaml and published.yaml.
        headline: ids of the headline SAEs, as far as the profile has them.
        simple_threshold: share of activation mass on one token from which a feature is simple.
        bootstrap: bootstrap samples.
        seed: seed of the bootstrap.
        svg: output.
        pdf: output.
        png: output.

    Raises:
        ValueError: there is no such figure, or an input is missing or damaged.
    """
    drawing = draw(figure, Inputs.read(results, headline.roles, simple_threshold, bootstrap, seed))
    save(drawing.figure, (svg, pdf, png), *drawing.shown)
