"""The code that a result depends on, found from imports, so that nobody keeps a list of it."""

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
# What changes no result, or changes it by way of a parameter that is compared by itself.
LEFT_OUT = ("tsae.store", "tsae.profile", "tsae.plan", "tsae.commands", "tsae.__main__", "tsae.compute.devices")
# Of a profile two things count: what a point means, and what figures call a family. Of the store the manifest, which is a result.
COUNTED = ("tsae.profile.point", "tsae.profile.families", "tsae.store.manifest")


def modules_of(*names: str | Path, package: Path = PACKAGE) -> list[Path]:
    """The files of some modules and of all that they import of this package, at any depth, in alphabetical order.

    A package stands for the modules in its folder, which it may import by their listing. What is imported for type checking alone
    does not count, nor do `LEFT_OUT` and what they import.

    Args:
        names: modules or packages, for example `tsae.training.train`, and scripts outside the package by their paths, whose
            imports count and they themselves do not.
        package: the folder of the package.

    Raises:
        ValueError: there is no such module.
    """
    found: dict[str, Path] = {}
    to_read: list[str] = []
    for name in names:
        to_read += _imports_of(name, package) if isinstance(name, Path) else [name]
    while to_read:
        name = to_read.pop()
        for module, path in _files_of(name, package):
            if module not in found and not _is_left_out(module):
                found[module] = path
                to_read += _imports_of(path, package)
    return [path for _, path in sorted(found.items())]


def digest_of(*names: str, package: Path = PACKAGE) -> str:
    """sha256 of the code of some modules and of all that they import, 64 hex digits; see `modules_of`."""
    digest = hashlib.sha256()
    for path in modules_of(*names, package=package):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def path_of(module: str, package: Path = PACKAGE) -> Path:
    """Where a module of the package is, or would be."""
    return package.joinpath(*module.split(".")[1:]).with_suffix(".py")


def _is_left_out(module: str) -> bool:
    def within(names: tuple[str, ...]) -> bool:
        return any(module == name or module.startswith(f"{name}.") for name in names)

    return within(LEFT_OUT) and not within(COUNTED)


def _files_of(name: str, package: Path) -> list[tuple[str, Path]]:
    folder = package.joinpath(*name.split(".")[1:])
    if folder.is_dir():
        return [
            (name if file.stem == "__init__" else f"{name}.{file.stem}", file) for file in sorted(folder.glob("*.py"))
        ]
    if not path_of(name, package).is_file():
        raise ValueError(f"{name}: there is no such module in {package}")
    return [(name, path_of(name, package))]


@functools.cache
def _imports_of(path: Path, package: Path) -> list[str]:
    return sorted(set(_imported(ast.parse(path.read_bytes()), package)))


def _imported(node: ast.AST, package: Path) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
            case ast.Import(names=names):
                yield from (alias.name for alias in names if alias.name.startswith("tsae."))
            case ast.ImportFrom(module=str(module), names=names) if module.split(".")[0] == "tsae":
                for alias in names:
                    inside = f"{module}.{alias.name}"
                    is_module = path_of(inside, package).is_file() or path_of(inside, package).with_suffix("").is_dir()
                    yield inside if is_module else module
            case _:
                yield from _imported(child, package)
