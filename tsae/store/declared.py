"""What modules declare of themselves, read without importing them: an import of all would cost every start seconds."""

import ast
import functools
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]


@functools.cache
def declared(folder: str, name: str) -> dict[str, Any]:
    """The literal that each module of a folder assigns to a name, by module, in alphabetical order.

    Modules without the name are left out, so a folder may hold others.

    Args:
        folder: below the package, for example `sae/architectures`.
        name: of the assignment, for example `ABOUT`.

    Raises:
        ValueError: what is assigned is not a literal; the message names the file.
    """
    found = {}
    for path in sorted((PACKAGE / folder).glob("*.py")):
        if name.encode() not in path.read_bytes():  # parsing takes most of the time
            continue
        for node in _statements(path):
            match node:
                case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                    pass
                case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value) if target == name:
                    pass
                case _:
                    continue
            try:
                found[path.stem] = ast.literal_eval(value)
            except ValueError:
                raise ValueError(f"{path}: {name} is read without running the module, and must be a literal") from None
    return found


@functools.cache
def _statements(path: Path) -> list[ast.stmt]:
    return ast.parse(path.read_bytes()).body


def docstring(folder: str, module: str) -> str:
    """The docstring of a module of a folder, as `declared` reads it."""
    return ast.get_docstring(ast.parse((PACKAGE / folder / f"{module}.py").read_bytes())) or ""
