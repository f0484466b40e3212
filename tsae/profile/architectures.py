"""What architectures declare about themselves, read without running their modules, which would import torch.

A module of `tsae/sae/architectures/` that assigns a literal to `ABOUT` is an architecture with the name of its file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tsae.store.declared import declared

Sparsity = Literal["k", "l1"]


@dataclass(frozen=True)
class Saelens:
    """How SAELens names an architecture."""

    architecture: str
    """Its name in SAELens."""
    b_enc: str = "b_enc"
    """Name of b_enc in SAELens; other parameters keep their names."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of `cfg.json`."""


@dataclass(frozen=True)
class About:
    """The content of `ABOUT`."""

    class_name: str
    """Key `class`: name of the class in the module."""
    order: int
    """Place in lists and figures, different for each architecture."""
    sparsity: Sparsity
    """The setting that controls its sparsity; the other is refused."""
    label: str
    """Its name in figures."""
    marker: str
    """Its marker in figures."""
    description: str
    """What it does, for the table of configuration keys."""
    saelens: Saelens | None = None
    """Its names in SAELens; None: it cannot be exported."""


def read_about(name: str, literal: Mapping[str, Any]) -> About:
    """Read the literal `ABOUT` of an architecture.

    Raises:
        ValueError: a key is missing or unknown, or its value is not allowed; the message names the file.
    """
    where = f"sae/architectures/{name}.py: ABOUT"
    try:
        about = About(**{"class_name" if key == "class" else key: value for key, value in literal.items()})
        saelens = None if about.saelens is None else Saelens(**literal["saelens"])
    except TypeError as error:
        raise ValueError(
            f"{where}: {str(error).removeprefix('About.__init__() ')}; see tsae.profile.architectures"
        ) from None
    if about.sparsity not in ("k", "l1"):
        raise ValueError(f"{where}: sparsity is {about.sparsity!r}; it must be k or l1")
    return About(**(vars(about) | {"saelens": saelens}))


_FOUND = {name: read_about(name, literal) for name, literal in declared("sae/architectures", "ABOUT").items()}
ARCHITECTURES: dict[str, About] = dict(sorted(_FOUND.items(), key=lambda item: item[1].order))


def about(name: str) -> About:
    """What an architecture declares about itself.

    Raises:
        ValueError: there is no such architecture; the message lists the architectures.
    """
    if name not in ARCHITECTURES:
        raise ValueError(
            f"unknown architecture {name!r}; there are {', '.join(ARCHITECTURES)}, see tsae/sae/architectures"
        )
    return ARCHITECTURES[name]


def label_of(name: str) -> str:
    """Name of an architecture in figures; raises as `about`."""
    return about(name).label


def with_sparsity(sparsity: Sparsity) -> list[str]:
    """Names of the architectures whose sparsity a setting controls."""
    return [name for name, found in ARCHITECTURES.items() if found.sparsity == sparsity]
