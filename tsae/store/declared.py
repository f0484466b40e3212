"""What modules declare about themselves, read without importing them, which would take seconds at every start."""

import ast
import functools
from pathlib import Path
from typing import Any

from tsae.store.code import PACKAGE


@functools.cache
def declared(folder: str, name: str) -> dict[str, Any]:
    """The literal that each module of a folder assigns to a name, by module, in alphabetical order.

    Modules that do not assign the name are left out.

    Args:
        folder: below the package, such as `sae/architectures`.
        name: the name, such as `ABOUT`.

    Raises:
        ValueError: the value is not a literal; the message names the file.
    """
    found = {}
    for path in sorted((PACKAGE / folder).glob("*.py")):
        if name.encode() not in path.read_bytes():  # parsing takes most of the time
            continue
        for node in _parsed(path).body:
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
                raise ValueError(f"{path}: {name} must be a literal, since the module is not run") from None
    return found


def docstring(folder: str, module: str) -> str:
    """The docstring of a module of a folder below the package."""
    return ast.get_docstring(_parsed(PACKAGE / folder / f"{module}.py")) or ""


@functools.cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes())
