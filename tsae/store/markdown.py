"""Tables in Markdown."""

from collections.abc import Mapping, Sequence


def markdown_table(rows: Sequence[Mapping[str, object]], others: str = "---:") -> str:
    """A table whose header is the keys of the rows. Cells are Markdown, so a `|` in one must be escaped.

    Not `DataFrame.to_markdown`: it pads every cell to its column's width, and does not escape.

    Args:
        rows: at least one, all with the same keys.
        others: rule of all columns but the first: `---:` aligns right, `---` left.
    """
    header = list(rows[0])
    lines = [header, ["---", *[others] * (len(header) - 1)], *([str(row[key]) for key in header] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """Text as a cell of a table: on one line, `|` escaped."""
    return " ".join(text.replace("|", "\\|").splitlines())
