"""The layout of results: rules spell the paths of `tsae/store/layout.py`, and no other Python does."""

import ast
import re

import pytest
from fixtures import ROOT

from tsae.store import layout

PATHS = {name: path for name, path in vars(layout).items() if name.isupper() and isinstance(path, str)}
NO_RULE = {"BENCHMARKS", "PREFIXES", "RELEASE"}
OTHERS = [
    path
    for folder in ("tsae", "workflow", "docs", "notebooks", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
    if path != ROOT / "tsae/store/layout.py"
]


def paths_of_rules() -> set[str]:
    """Paths below the folder of a profile, an SAE's layer, point and seed as {job}."""
    text = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    spelled = re.findall(r'"<results>/([^"]+)"', text.replace("{{", "{").replace("}}", "}"))
    return {path.replace("layer{layer}/{point}-s{seed}", "{job}") for path in spelled}


@pytest.mark.parametrize("name", sorted(PATHS.keys() - NO_RULE))
def test_rules_write_where_the_layout_says(name: str) -> None:
    path = PATHS[name]
    assert any(spelled == path or spelled.startswith(f"{path}/") for spelled in paths_of_rules())


def strings(source: str) -> set[str]:
    """The strings of one line in a Python file, and the parts of its f-strings."""
    return {
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value.strip()
    }


def is_page(text: str) -> bool:
    """Whether a string names a page of the repository, as the site does."""
    return (ROOT / f"{text}.md").is_file()


def test_no_other_file_spells_them() -> None:
    assert len(OTHERS) > 100 and strings('f"unigrams/layer{layer}.safetensors"') == {"unigrams/layer", ".safetensors"}
    starts = tuple({path.partition("{")[0] for path in PATHS.values() if "/" in path or "." in path})
    spelled = {
        str(path.relative_to(ROOT)): found
        for path in OTHERS
        if (
            found := sorted(text for text in strings(path.read_text()) if text.startswith(starts) and not is_page(text))
        )
    }
    assert spelled == {}
