"""Turn a function into a command: its parameters become options with types, defaults and help."""

import ast
import inspect
import itertools
import json
import re
import textwrap
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel, ValidationError

from tsae.commands.signature import DEVICE_OPTIONS
from tsae.compute.devices import Device, Float32Device, claim
from tsae.profile.validation import describe_errors
from tsae.store.arguments import Files

SCALARS: dict[Any, click.ParamType] = {
    bool: click.BOOL,
    int: click.INT,
    float: click.FLOAT,
    str: click.STRING,
    Path: click.Path(path_type=Path),
}
HELP_OF_DEVICES = {
    "gpus": "1 to compute on a GPU that no other job has, 0 to compute on the CPU",
    "tf32": "On a GPU, multiply matrices in TF32",
}


class Json(click.ParamType):
    """A part of the configuration, or any object, as JSON text."""

    name = "JSON"

    def __init__(self, model: type[BaseModel] | None):
        """Read a section, or any object if `model` is None."""
        self._model = model

    def convert(self, value: Any, param: click.Parameter | None, _context: click.Context | None) -> Any:
        """Parse and validate.

        Raises:
            ValueError: one line per mistake, with the option.
        """
        option = param.opts[0] if param else self.name
        if self._model is None:
            try:
                return json.loads(value)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{option}: not JSON ({error})") from None
        try:
            return self._model.model_validate_json(value)
        except ValidationError as error:
            raise ValueError(describe_errors(error, self._model, option)) from None


def command_of(name: str, function: Callable[..., Any]) -> click.Command:
    """The command that calls a function, and prints the text that it returns.

    Parameters need types that `_type_of` knows, and descriptions under `Args:` in the docstring.
    """
    signature = inspect.signature(function)
    described = _descriptions(inspect.getdoc(function) or "")
    options: list[click.Parameter] = []
    for parameter in signature.parameters.values():
        options += _options_of(parameter, described.get(parameter.name, ""))

    def run(**values: Any) -> None:
        arguments = {key: _argument(parameter, values) for key, parameter in signature.parameters.items()}
        # Last, so that mistakes in options are reported before a wait for a GPU.
        for key, parameter in signature.parameters.items():
            if _options_of_device(parameter.annotation):
                arguments[key] = claim(values["gpus"], values.get("tf32", False))
        returned = function(**arguments)
        if isinstance(returned, str):
            click.echo(returned, nl=not returned.endswith("\n"))

    summary, _, more = (inspect.getdoc(function) or "").partition("\n\n")
    about = more.partition("Args:\n")[0].partition("Returns:\n")[0].partition("Raises:\n")[0]
    return click.Command(name, params=options, callback=run, help=f"{summary}\n\n{about}".strip())


def _options_of(parameter: inspect.Parameter, description: str) -> list[click.Parameter]:
    if names := _options_of_device(parameter.annotation):
        return [_option(name, bool if name == "tf32" else int, 0, HELP_OF_DEVICES[name]) for name in names]
    if not _is_group(parameter.annotation):
        return [_option(parameter.name, parameter.annotation, parameter.default, description)]
    group, given = parameter.annotation, parameter.default
    about = _descriptions_of_fields(group)
    return [
        _option(
            field,
            annotation,
            group._field_defaults.get(field, inspect.Parameter.empty)
            if given is parameter.empty
            else getattr(given, field),
            about.get(field, ""),
        )
        for field, annotation in group.__annotations__.items()
    ]


def _options_of_device(annotation: Any) -> tuple[str, ...]:
    kinds = {"Device": Device, "Float32Device": Float32Device}
    return next((DEVICE_OPTIONS[name] for name, kind in kinds.items() if annotation == kind), ())


def _option(name: str, annotation: Any, default: Any, description: str) -> click.Parameter:
    if annotation == Files:
        return _Files([name], nargs=-1, type=click.Path(path_type=Path), help=description)
    required = default is inspect.Parameter.empty
    kind, is_list = _type_of(annotation)
    if kind is click.BOOL:
        return click.Option([f"--{name.replace('_', '-')}", name], is_flag=True, default=False, help=description)
    return click.Option(
        [f"--{name.replace('_', '-')}", name],
        type=kind,
        multiple=is_list,
        required=required,
        # An explicit default, None among them, satisfies click's `required`.
        **({} if required else {"default": default}),
        show_default=not required and default not in (None, ()),
        help=description,
    )


class _Files(click.Argument):
    """Positional files, with a help text."""

    def __init__(self, *arguments: Any, help: str, **more: Any):
        super().__init__(*arguments, **more)
        self.help = help

    def get_help_record(self, context: click.Context) -> tuple[str, str]:
        return self.make_metavar(context), self.help or ""


def _type_of(annotation: Any) -> tuple[click.ParamType, bool]:
    """The click type of an annotation, and whether the option may be repeated.

    Raises:
        TypeError: no option can have this type.
    """
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        (wanted,) = (part for part in parts if part is not type(None))
        return _type_of(wanted)
    if origin is Annotated:
        kind, is_list = _type_of(parts[0])
        least = [limit.ge for part in parts[1:] for limit in getattr(part, "metadata", ()) if hasattr(limit, "ge")]
        if not least:
            return kind, is_list
        return (click.IntRange(min=least[0]) if kind is click.INT else click.FloatRange(min=least[0])), is_list
    if origin is Sequence:
        return _type_of(parts[0])[0], True
    if origin is Literal:
        return click.Choice(parts), False
    if origin is dict:
        return Json(None), False
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return Json(annotation), False
    if annotation not in SCALARS:
        raise TypeError(f"an option cannot be of the type {annotation}")
    return SCALARS[annotation], False


def _is_group(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, tuple) and hasattr(annotation, "_fields")


def _argument(parameter: inspect.Parameter, values: dict[str, Any]) -> Any:
    if _is_group(parameter.annotation):
        return parameter.annotation(**{field: values[field] for field in parameter.annotation._fields})
    return values.get(parameter.name)


def _descriptions(docstring: str) -> dict[str, str]:
    """The texts under `Args:` in a docstring, by parameter."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n(?=[ ]))+)", docstring, re.MULTILINE)
    text = textwrap.dedent(section[1]) if section else ""
    return {
        entry[1]: _sentence(" ".join(entry[2].split()))
        for entry in re.finditer(r"^(\w+): ((?:.+\n?)(?:[ ]+.+\n?)*)", text, re.MULTILINE)
    }


def _descriptions_of_fields(group: type) -> dict[str, str]:
    """The docstring behind each field of a class."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(group))).body
    body = definition.body if isinstance(definition, ast.ClassDef) else []
    return {
        field.target.id: _sentence(" ".join(str(text.value.value).split()))
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
