"""The DAG of the workflow as a picture: a page's block of Mermaid, which browsers cannot show without another host's script."""

import re
from graphlib import TopologicalSorter
from html import escape

from docutils import nodes
from docutils.parsers.rst import Directive

ROW, COLUMN, NAMES = 18, 11, 190  # height of a row, step to the right, room for the last name [px]


def picture(mermaid: str) -> str:
    """A rule to each row below and to the right of all that it needs, joined to each by a line down and right; SVG.

    Args:
        mermaid: a flowchart as `snakemake --rulegraph mermaid-js` writes it.
    """
    names = dict(re.findall(r"^\s*(\w+)\[(\w+)\]$", mermaid, re.MULTILINE))
    edges = re.findall(r"^\s*(\w+) --> (\w+)$", mermaid, re.MULTILINE)
    needs: dict[str, set[str]] = {name: set() for name in names}
    for needed, node in edges:
        needs[node].add(needed)
    row = {node: number for number, node in enumerate(TopologicalSorter(needs).static_order())}
    at = {node: (COLUMN * (number + 1), ROW * number + ROW // 2) for node, number in row.items()}
    width, height = COLUMN * len(row) + NAMES, ROW * len(row)
    lines, dots, words = [], [], []
    for node, (x, y) in at.items():
        lines += [f'<path d="M{at[needed][0]} {at[needed][1]}V{y}H{x}"/>' for needed in sorted(needs[node])]
        dots += [f'<circle cx="{at[needed][0]}" cy="{y}" r="2"/>' for needed in sorted(needs[node])]
        dots.append(f'<circle cx="{x}" cy="{y}" r="4"/>')
        words.append(f'<text x="{x + 9}" y="{y + 4}">{escape(names[node])}</text>')
    return (
        f'<svg class="rulegraph" role="img" aria-label="The rules and what each needs" viewBox="0 0 {width} {height}">'
        f'<g fill="none" stroke="currentColor" stroke-opacity=".25">{"".join(lines)}</g>'
        f'<g fill="currentColor">{"".join(dots)}</g><g fill="currentColor" font-size="12">{"".join(words)}</g></svg>'
    )


class Mermaid(Directive):
    """A block of Mermaid, drawn."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Its picture."""
        return [nodes.raw("", picture("\n".join(self.content)), format="html")]
