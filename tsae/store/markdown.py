"""Tables in Markdown."""

from collections.abc import Mapping, Sequence


def markdown_table(rows: Sequence[Mapping[str, object]], others: str = "---:") -> str:
    """A table from rows that share their keys, which are its header; cells are Markdown, so `|` in one must be escaped.

    Args:
        rows: at least one.
        others: the rule below all columns but the first: `---:` aligns them right, `---` left.
    """
    header = list(rows[0])
    lines = [header, ["---", *[others] * (len(header) - 1)], *([str(row[key]) for key in header] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """Text as one cell of a table."""
    return " ".join(text.replace("|", "\\|").splitlines())
