"""The shape of the package: which part may import which, and how long files may be."""

import ast
from pathlib import Path

import pytest
from fixtures import ROOT

PACKAGE = ROOT / "tsae"
# From the bottom up: a part imports from those before it alone. Commands are found by name when they are asked for.
ORDER = [
    "store", "profile", "compute", "text", "plan", "model", "residuals", "sae", "training", "measure", "phrases", "claims", "figures",
    "explore", "release", "api", "commands", "__main__",
]  # fmt: skip
LONGEST_CHAIN = 8
MOST_LINES = {"tsae": 300, "workflow": 300, "benchmarks": 300, "tests": 400}


def part_of(path: Path) -> str:
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def imports() -> dict[str, set[str]]:
    """Part -> the parts that its modules import."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        modules = [
            module
            for node in ast.walk(ast.parse(path.read_text()))
            for module in (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else []
            )
        ]
        parts = {module.split(".")[1] for module in modules if module.startswith("tsae.")}
        found.setdefault(part_of(path), set()).update(parts - {part_of(path)})
    return found


def test_every_part_has_a_place() -> None:
    there = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}
    assert there - {"__init__", "__pycache__"} == set(ORDER)


def test_imports_run_downwards() -> None:
    upwards = {
        (part, other)
        for part, others in imports().items()
        for other in others
        if part != "__init__" and ORDER.index(other) >= ORDER.index(part)
    }
    assert not upwards


def test_no_chain_of_imports_is_long() -> None:
    found, depth = imports(), dict[str, int]()
    for part in ORDER:
        depth[part] = 1 + max((depth[other] for other in found.get(part, ())), default=0)
    assert max(depth[part] for part in ORDER if part != "__main__") <= LONGEST_CHAIN, depth


@pytest.mark.parametrize("folder", MOST_LINES)
def test_no_file_is_long(folder: str) -> None:
    paths = [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".smk")]
    assert len(paths) > 5
    long = {
        str(path.relative_to(ROOT)): n
        for path in paths
        if (n := len(path.read_text().splitlines())) > MOST_LINES[folder]
    }
    assert not long
