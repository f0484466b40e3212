"""How rules call stages: with what they have by name, and again when the code that a stage runs is edited."""

import inspect
import os

from snakemake.exceptions import WorkflowError

from tsae.commands.signature import command_line, parameters_of
from tsae.store.code import modules_of


def code(*names):
    """The code of modules, and of all that they import: Snakemake compares files by content, so an edit re-runs a stage.

    Of a script outside the package, named by its path, only what it imports is meant.
    """
    return [os.path.relpath(path) for path in modules_of(*names)]


def options(command, **settings):
    """The settings of a rule that calls a command, and the whole `call`.

    Every parameter of the command has the name of a setting, or of an input, an output, a wildcard or a resource of the rule,
    in this order. `output` is the rule's first. A folder is named by a file in it. What else the rule has only decides when it
    runs. Neither files nor resources are compared with those of an earlier run.
    """
    if unknown := sorted(settings.keys() - parameters_of(command).keys()):
        raise WorkflowError(f"{command} has no parameter {', '.join(unknown)}")

    def call(wildcards, input, output, resources):
        about = {"wildcards": wildcards, "input": input, "output": output}
        values = {}
        for name, parameter in parameters_of(command).items():
            if name in settings:
                value = settings[name]
                if callable(value):
                    value = value(**{key: about[key] for key in inspect.signature(value).parameters})
            elif name in input.keys() or name in output.keys():
                value = input.get(name) if name in input.keys() else output.get(name)
                files = [value] if isinstance(value, str) else list(value)
                value = os.path.dirname(files[0]) if files and parameter.kind.startswith("Folder") else files
            elif name == "output":
                value = output[0]
            elif name == "gpus":
                value = resources.gpu
            elif name in wildcards.keys():
                value = wildcards.get(name)
            else:
                value = resources.get(name)
            values[name] = value
        return command_line(command, values)

    return settings | {"call": call}


def folder_of_output(wildcards, output):
    """The folder of what a rule makes."""
    return os.path.dirname(output[0])
