"""Text is UTF-8, whatever the locale of the machine."""

import ast

from fixtures import ROOT

FOLDERS = ("tsae", "workflow", "notebooks", "docs", "benchmarks")


def in_locale(call: ast.Call) -> bool:
    """Whether a call opens text in the encoding of the locale."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if any(keyword.arg == "encoding" for keyword in call.keywords):
        return False
    if name == "read_text":  # that of tsae.store.files takes the path, pathlib's takes none
        return isinstance(call.func, ast.Attribute) and not call.args
    if name == "write_text":
        return isinstance(call.func, ast.Attribute) and len(call.args) == 1
    if (
        name == "open"
        and isinstance(call.func, ast.Attribute)
        and ast.unparse(call.func.value) in ("os", "tarfile", "bz2")
    ):
        return False
    modes = [part.value for part in call.args if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    if name == "open" and isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "archive":
        return False
    return name in ("open", "FileHandler") and not any("b" in mode for mode in modes)


def test_no_text_is_read_or_written_in_the_encoding_of_the_locale() -> None:
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in paths
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Call) and in_locale(node)
    ]
    assert len(paths) > 100 and found == []
