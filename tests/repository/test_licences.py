"""docs/licences.md is in step with the lock."""

import re
from pathlib import Path

import fill
import licences
from fixtures.locks import named
from packaging.utils import canonicalize_name

PAGE = licences.ROOT / "docs/licences.md"
COPYLEFT = re.compile(r"GPL|MPL|EPL|CDDL|EUPL|CC-BY-SA|CNRI|Proprietary")


def rows() -> list[list[str]]:
    """Name, version and licence of every package on the page."""
    tables = PAGE.read_text().partition("<!-- begin named_packages -->")[2]
    return [
        [cell.strip(" `") for cell in line.strip("|").split("|")][:3]
        for line in tables.splitlines()
        if line.startswith("| `")
    ]


def test_the_page_is_up_to_date(tmp_path: Path) -> None:
    text = PAGE.read_text()
    copy = tmp_path / PAGE.name
    copy.write_text(text.replace("| MIT |", "| unknown |"))
    fill.fill(copy)
    assert copy.read_text() == text, "run `make docs`"
    assert text.count("| MIT |") > 10


def test_names_and_versions_are_the_locks() -> None:
    text = (licences.ENVS / "requirements.lock").read_text() + (licences.ENVS / "torch.txt").read_text()
    locked = set(re.findall(r"(?m)^([a-z0-9._-]+)==([^\s;]+)", text))
    shown = {(name, version) for name, version, _ in rows()}
    # For Windows, browsers and PyPy.
    elsewhere = {"cffi", "colorama", "httpx2-jsfetch", "pycparser", "pyreadline3"}
    assert shown == {(name, version) for name, version in locked if name not in elsewhere}


def test_what_every_direct_dependency_is_for_is_said() -> None:
    assert {canonicalize_name(requirement.name) for requirement in named()} == licences.USED_FOR.keys()


def test_every_licence_that_asks_for_more_is_discussed() -> None:
    discussed = PAGE.read_text().partition("## What needs a second look")[2].partition("## Models")[0]
    asking = {name for name, _, licence in rows() if COPYLEFT.search(licence)}
    assert asking >= {"certifi", "tqdm"}
    for name in asking:
        assert f"`{name}`" in discussed, name
