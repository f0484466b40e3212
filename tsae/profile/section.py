"""The base class and types of the sections of a configuration."""

from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="sha256 of the file, 64 hex digits")]
Layer = Annotated[int, Field(ge=0, description="Layer L: the residual entering block L, `blocks.L.hook_resid_pre`")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


def unusable_in(path: Path) -> str:
    """Characters of a path that the workflow cannot take, as text; empty: none."""
    unusable = sorted({c for c in str(path) if c in "{}<>" or not c.isprintable()})
    return " ".join(c if c.isprintable() else repr(c) for c in unusable)


def _usable(path: Path) -> Path:
    if unusable := unusable_in(path):
        raise ValueError(f"a path with {unusable}, which the workflow cannot take; rename the file or folder")
    return path


# The workflow reads braces and angle brackets as wildcards and variables.
LocalPath = Annotated[Path, AfterValidator(_usable)]

LARGEST = 1 << 53  # up to here every integer is exact as a float


class Section(BaseModel):
    """A section of the configuration. Unknown keys are errors, and values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_switches(cls, data: Any) -> Any:
        """YAML reads `yes` as true, which Pydantic would take for the number 1."""
        for key, value in data.items() if isinstance(data, dict) else ():
            field = cls.model_fields.get(key)
            if field and any(isinstance(part, bool) for part in _parts(value)) and not _takes(field.annotation, bool):
                raise ValueError(f"{key}: a switch (true, false, yes, no, on, off) does not belong here")
        return data

    @field_validator("*", mode="after")
    @classmethod
    def _refuse_what_json_loses(cls, value: Any) -> Any:
        """Commands receive settings as JSON, in UTF-8."""
        for part in _parts(value):
            if isinstance(part, int) and abs(part) > LARGEST:
                raise ValueError(f"an integer must be between -{LARGEST} and {LARGEST}")
            if isinstance(part, str) and any("\ud800" <= character <= "\udfff" for character in part):
                raise ValueError("half of a character (a surrogate), which cannot be written to a file")
        return value


def _parts(value: Any) -> list[Any] | tuple[Any, ...]:
    return value if isinstance(value, list | tuple) else (value,)


def _takes(annotation: Any, kind: type) -> bool:
    return annotation in (kind, Any) or any(_takes(part, kind) for part in get_args(annotation))
