"""The code that a result depends on, found from imports."""

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
# These change no result, or change it only through parameters, which are compared by themselves.
LEFT_OUT = ("tsae.store", "tsae.profile", "tsae.plan", "tsae.commands", "tsae.__main__", "tsae.compute.devices")
# Exceptions: what a point means, what figures call a family, and the manifest, which is a result.
COUNTED = ("tsae.profile.point", "tsae.profile.families", "tsae.store.manifest")


def modules_of(*names: str | Path, package: Path = PACKAGE) -> list[Path]:
    """The files of some modules and of everything they import from this package, in alphabetical order.

    A package stands for all modules in its folder. Imports for type checking do not count, nor does `LEFT_OUT`.

    Args:
        names: modules or packages, such as `tsae.training.train`; or paths of scripts, of which only the imports count.
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
    """sha256 of the code that `modules_of` finds, as 64 hex digits."""
    digest = hashlib.sha256()
    for path in modules_of(*names, package=package):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def path_of(module: str, package: Path = PACKAGE) -> Path:
    """The file of a module, whether it exists or not."""
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
