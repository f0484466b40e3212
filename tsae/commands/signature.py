"""Signatures of commands, read from the source, so that the workflow need not import the stages."""

import ast
import functools
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tsae.commands.table import COMMANDS
from tsae.store.code import path_of

# Options of a device, by the type of the parameter.
DEVICE_OPTIONS = {"Device": ("gpus", "tf32"), "Float32Device": ("gpus",)}


class Parameter(NamedTuple):
    """An option of a command, or its files."""

    name: str
    kind: str
    """The annotation, in the function or in the NamedTuple whose field it is."""
    required: bool


def first_line(command: str) -> str:
    """The first line of a command's docstring."""
    return (ast.get_docstring(_function(command)) or "").partition("\n")[0]


@functools.cache
def parameters_of(command: str) -> dict[str, Parameter]:
    """The parameters of a command by name, in the function's order. A NamedTuple stands for its fields, a device for its options.

    Raises:
        KeyError: there is no such command.
    """
    module = _parse(path_of(COMMANDS[command].module))
    found = []
    for argument, default in _arguments(_function(command)):
        kind = ast.unparse(argument.annotation) if argument.annotation else ""
        group = _class(module, kind)
        if kind in DEVICE_OPTIONS:
            found += [Parameter(name, kind, False) for name in DEVICE_OPTIONS[kind]]
        elif group is not None and any(ast.unparse(base) == "NamedTuple" for base in group.bases):
            found += [
                Parameter(field.target.id, ast.unparse(field.annotation), default is None and field.value is None)
                for field in group.body
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            ]
        else:
            found.append(Parameter(argument.arg, kind, default is None and kind != "bool"))
    return {parameter.name: parameter for parameter in found}


def command_line(command: str, values: Mapping[str, Any]) -> str:
    """A command with its options, quoted for a shell.

    Args:
        command: its name.
        values: its parameters by name; None, False and an empty list stand for the default.

    Raises:
        ValueError: a parameter without default is missing, or one is unknown.
    """
    parameters = parameters_of(command)
    if unknown := sorted(values.keys() - parameters.keys()):
        raise ValueError(f"{command}: it has no parameter {', '.join(unknown)}; it has {', '.join(parameters)}")
    words, files = [command], []
    for name, parameter in parameters.items():
        value = values.get(name)
        listed = [str(each) for each in (value if isinstance(value, list | tuple) else [value])]
        option = f"--{name.replace('_', '-')}"
        if value is None or value is False or not listed:
            if parameter.required and parameter.kind != "Files":
                raise ValueError(f"{command}: {name} is missing")
        elif value is True:
            words.append(option)
        elif parameter.kind == "Files":
            files = listed
        else:
            words += [word for each in listed for word in (option, each)]
    return shlex.join([*words, *files])


def _function(command: str) -> ast.FunctionDef:
    target = COMMANDS[command]
    for node in _parse(path_of(target.module)).body:
        if isinstance(node, ast.FunctionDef) and node.name == target.function:
            return node
    raise ValueError(f"{command}: {target.module} has no function {target.function}")


def _arguments(function: ast.FunctionDef) -> list[tuple[ast.arg, ast.expr | None]]:
    """Arguments with their defaults."""
    positional = function.args.args
    defaults = [None] * (len(positional) - len(function.args.defaults)) + function.args.defaults
    keywords = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    return [*zip(positional, defaults, strict=True), *keywords]


def _class(module: ast.Module, name: str) -> ast.ClassDef | None:
    """The class of a name that a module defines or imports from this package."""
    for node in module.body:
        match node:
            case ast.ClassDef(name=found) if found == name:
                return node
            case ast.ImportFrom(module=str(source)) if source.startswith("tsae."):
                if any(alias.name == name for alias in node.names) and path_of(source).is_file():
                    return _class(_parse(path_of(source)), name)
    return None


@functools.cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes())
