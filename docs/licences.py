"""Licences of what envs/requirements.lock pins: the tables of docs/licences.md."""

import re
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from run import ROOT

from tsae.store.markdown import markdown_table

ENVS = ROOT / "envs"
# The oldest Python of every release that the lock is for, and one of 3.11 that takes a newer soupsieve.
PYTHONS = ("3.11.0", "3.11.5", "3.12.0", "3.13.0")
PLATFORMS = (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
IDENTIFIER = r"(MIT|[A-Z\d]+(-[A-Z\d.]+)+)"  # of SPDX
# Licence fields and classifiers in SPDX's words. Of "BSD", metadata does not say which.
SPDX = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
# Read in the licence files of the wheels, since metadata says nothing, contradicts itself or lists all that occurs in the
# sources; and of packages that only some platforms or Pythons install, or install a build of their own.
READ = {
    "appnope": "BSD-2-Clause",
    "conda-inject": "MIT",
    "docutils": "public domain, BSD-2-Clause, BSD-3-Clause",
    "ptyprocess": "ISC",
    "snakemake-interface-common": "MIT",
    "snakemake-interface-logger-plugins": "MIT",
    "snakemake-interface-report-plugins": "MIT",
    "snakemake-interface-scheduler-plugins": "MIT",
    "snakemake-interface-storage-plugins": "MIT",
    "soupsieve": "MIT",
    "torch": "Apache-2.0 AND Apache-2.0 WITH LLVM-exception AND BSD-2-Clause AND BSD-3-Clause AND BSL-1.0 AND MIT",
    "transformers-stream-generator": "MIT",
}
# What pyproject.toml names.
USED_FOR = {
    "click": "commands",
    "datasets": "text from the Hugging Face hub",
    "furo": "the site",
    "gguf": "the embedded model's weights",
    "huggingface-hub": "models from the hub",
    "ipykernel": "running the notebooks",
    "jupytext": "notebooks from Python files",
    "markdown-it-py": "the claims as HTML",
    "matplotlib": "figures",
    "mwparserfromhell": "text from wikitext",
    "hypothesis": "tests",
    "mypy": "tests",
    "myst-parser": "the site",
    "nbconvert": "notebooks as HTML",
    "llvmlite": "says which processor this is",
    "numba": "loops of training and evaluation",
    "numpy": "arrays",
    "packaging": "tests and documents",
    "pandas": "tables",
    "pandas-stubs": "tests",
    "pyarrow": "feature tables in Parquet",
    "pydantic": "the configuration",
    "pytest": "tests, and the verification of results",
    "pytest-xdist": "tests",
    "pyyaml": "profiles and the ledger",
    "ruff": "tests",
    "safetensors": "every tensor on disk",
    "seaborn": "figures",
    "setuptools": "installing this package",
    "snakefmt": "tests",
    "snakemake": "the workflow",
    "sphinx": "the site",
    "sphinx-click": "the site",
    "tokenizers": "tokens",
    "torch": "everything",
    "tqdm": "progress bars",
    "transformer-lens": "residuals",
    "transformers": "models",
    "types-pyyaml": "tests",
    "types-tqdm": "tests",
}


class Pin(NamedTuple):
    """A line of a lock."""

    name: str
    """As the package index writes it."""
    version: str
    marker: Marker | None
    """Where it is installed; None is everywhere."""
    hashes: tuple[str, ...]
    """What its files may hash to, `sha256:...`."""


def read_pins(path: Path) -> list[Pin]:
    """The lines of a lock, or of a list of exact versions.

    Raises:
        ValueError: A line is something else.
    """
    pins = []
    for line in path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        stated, *hashes = re.split(r"\s+--hash=", line.partition("#")[0].strip())
        if not stated:
            continue
        requirement = Requirement(stated)
        versions = [specifier.version for specifier in requirement.specifier if specifier.operator == "=="]
        if len(versions) != 1 or len(requirement.specifier) != 1 or requirement.url or requirement.extras:
            raise ValueError(f"{path}: not one exact version: {stated}")
        pins.append(Pin(canonicalize_name(requirement.name), versions[0], requirement.marker, tuple(hashes)))
    return pins


def is_installed_somewhere(pin: Pin) -> bool:
    """Whether one of the platforms and Pythons that the lock is for installs it."""
    return pin.marker is None or any(
        pin.marker.evaluate(
            {
                "implementation_name": "cpython",
                "platform_machine": machine,
                "platform_python_implementation": "CPython",
                "platform_system": system.capitalize(),
                "python_full_version": python,
                "python_version": python.rpartition(".")[0],
                "sys_platform": system,
            }
        )
        for system, machine in PLATFORMS
        for python in PYTHONS
    )


def installed() -> list[Pin]:
    """Everything that the lock installs anywhere, and torch."""
    pins = read_pins(ENVS / "requirements.lock") + read_pins(ENVS / "torch.txt")
    return sorted(pin for pin in pins if is_installed_somewhere(pin))


def licence(name: str) -> str:
    """The licence of a package, in SPDX's words where metadata allows.

    Raises:
        ValueError: Metadata states none, or one that this module does not know.
    """
    if name in READ:
        return READ[name]
    stated = metadata.metadata(name)
    if expressions := stated.get_all("License-Expression"):
        return expressions[0]
    field = "".join(stated.get_all("License") or ()).strip()
    if field in SPDX or re.fullmatch(f"{IDENTIFIER}( (AND|OR|WITH) {IDENTIFIER})*", field, re.IGNORECASE):
        return SPDX.get(field, field)
    classifiers = [
        line.rpartition(" :: ")[2] for line in stated.get_all("Classifier") or () if line.startswith("License")
    ]
    if not classifiers or not SPDX.keys() >= set(classifiers):
        raise ValueError(
            f"{name}: read its licence file and add it to READ in docs/licences.py: {field!r}, {classifiers}"
        )
    return ", ".join(SPDX[name] for name in classifiers)


def _row(pin: Pin) -> dict[str, object]:
    return {"package": f"`{pin.name}`", "version": pin.version, "licence": licence(pin.name)}


def named_packages() -> str:
    """Packages that pyproject.toml names."""
    rows = [_row(pin) | {"used for": USED_FOR[pin.name]} for pin in installed() if pin.name in USED_FOR]
    return markdown_table(rows, "---")


def other_packages() -> str:
    """Packages that those need."""
    return markdown_table([_row(pin) for pin in installed() if pin.name not in USED_FOR], "---")


BLOCKS = (named_packages, other_packages)
