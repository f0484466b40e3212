"""The manifest of a run: its code, configuration, machine, versions, and the sha256 of its results."""

import hashlib
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from tsae.store.arguments import Files
from tsae.store.files import check, known_sha256, write_json

PACKAGES = (
    "tsae",
    "torch",
    "transformers",
    "transformer_lens",
    "numba",
    "numpy",
    "pandas",
    "matplotlib",
    "seaborn",
    "snakemake",
)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def code_in_git() -> dict[str, Any]:
    """The commit of the code, and whether files differ from it (`modified`); None where git does not tell."""
    status = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": _git("rev-parse", "HEAD"), "modified": None if status is None else bool(status)}


def config_sha256(settings: Any) -> str:
    """sha256 of a configuration, as 64 hex digits."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def write_manifest(output: Path, settings: dict[str, Any], results: Files) -> None:
    """Write the manifest of a run.

    Args:
        output: the JSON file.
        settings: the whole configuration.
        results: results whose sha256 to list.

    Raises:
        ValueError: a result is damaged.
    """
    for file in results:
        check(file)
    write_json(
        output,
        {
            "git": code_in_git(),
            "config": settings,
            "config_sha256": config_sha256(settings),
            "machine": {"cores": os.cpu_count(), "architecture": platform.machine(), "system": platform.system()},
            "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES},
            "sha256": {str(file): known_sha256(file) for file in sorted(results)},
        },
    )
