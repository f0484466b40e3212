"""What architectures declare about themselves, read without running their modules, which would import torch.

A module of `tsae/sae/architectures/` that assigns a literal to `ABOUT` is an architecture with the name of its file.
"""

from typing import Any, Literal

from pydantic import Field, ValidationError

from tsae.profile.section import Section
from tsae.profile.validation import describe_errors
from tsae.store.declared import declared

Sparsity = Literal["k", "l1", "l0_penalty"]


class Saelens(Section):
    """How SAELens names an architecture."""

    architecture: str = Field(description="Its name in SAELens")
    b_enc: str = Field("b_enc", description="Name of b_enc in SAELens; other parameters keep their names")
    settings: dict[str, Any] = Field({}, description="Further entries of `cfg.json`")


class About(Section):
    """The content of `ABOUT`."""

    class_name: str = Field(alias="class", description="Name of the class in the module")
    order: int = Field(description="Place in lists and figures, different for each architecture")
    sparsity: Sparsity = Field(description="The setting that controls its sparsity; others are refused")
    label: str = Field(description="Its name in figures")
    description: str = Field(description="What it does, for the table of configuration keys")
    saelens: Saelens | None = Field(None, description="Its names in SAELens; null: it cannot be exported")


def read_about(name: str, literal: Any) -> About:
    """Read the literal `ABOUT` of an architecture.

    Raises:
        ValueError: a key is missing or unknown, or its value is not allowed; the message names the file.
    """
    try:
        return About.model_validate(literal)
    except ValidationError as error:
        raise ValueError(describe_errors(error, About, f"tsae/sae/architectures/{name}.py: ABOUT")) from None


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
