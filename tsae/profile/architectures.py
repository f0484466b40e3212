"""What architectures say of themselves, read without running their modules, which would import torch.

A module of `tsae/sae/architectures/` that assigns a literal to `ABOUT` is an architecture under the name of its file.
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
    """Its name there."""
    b_enc: str = "b_enc"
    """What b_enc is called there; parameters of the class keep their names."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What else `cfg.json` says."""


@dataclass(frozen=True)
class About:
    """What `ABOUT` says."""

    class_name: str
    """`class`: the class that computes."""
    order: int
    """Place in lists and figures; no two have the same."""
    sparsity: Sparsity
    """The setting that says how sparse it is; the other one is refused."""
    label: str
    """What figures call it."""
    marker: str
    """Its marker, where figures tell architectures apart by one."""
    description: str
    """What it does, for the description of the configuration."""
    saelens: Saelens | None = None
    """How SAELens names it; without, it cannot be exported."""


def read_about(name: str, literal: Mapping[str, Any]) -> About:
    """What an architecture says of itself.

    Raises:
        ValueError: a key is missing or unknown, or has no such value; the message names the architecture.
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
    """What an architecture says of itself, by the name that `sweep` gives it.

    Raises:
        ValueError: there is no such architecture; the message lists those that there are.
    """
    if name not in ARCHITECTURES:
        raise ValueError(
            f"unknown architecture {name!r}; there are {', '.join(ARCHITECTURES)}, see tsae/sae/architectures"
        )
    return ARCHITECTURES[name]


def label_of(name: str) -> str:
    """What figures call an architecture; errors as of `about`."""
    return about(name).label


def with_sparsity(sparsity: Sparsity) -> list[str]:
    """The names of the architectures whose sparsity a setting says."""
    return [name for name, found in ARCHITECTURES.items() if found.sparsity == sparsity]
