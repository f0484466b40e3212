"""How rules call the commands of stages, and which code a stage depends on."""

import inspect
import os

from snakemake.exceptions import WorkflowError

from tsae.commands.signature import command_line, parameters_of
from tsae.store.code import modules_of, path_of


def code(*names):
    """The source files of modules and of everything they import. Snakemake compares their contents, so an edit re-runs a stage.

    A script outside the package is named by its path; it stands for its imports alone.
    """
    return [os.path.relpath(path) for path in modules_of(*names)]


def assets_of(name):
    """The files beside a module in `assets`, which a stage writes into its output."""
    return sorted(os.path.relpath(path) for path in (path_of(name).parent / "assets").iterdir())


def options(command, **settings):
    """The params of a call: the settings of the command, and `call`, its command line.

    A parameter of the command takes the setting, input, output, wildcard or resource of its name, in this order. `output` is the
    rule's first. A folder is named by a file in it. Snakemake re-runs a job if settings change, not if resources do.
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
    """The folder of a rule's first output."""
    return os.path.dirname(output[0])
