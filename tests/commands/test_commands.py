"""Commands are what their functions say, and rules call them by the same names."""

import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from fixtures import ROOT

import tsae
from tsae.__main__ import app
from tsae.commands.options import command_of
from tsae.commands.signature import command_line, first_line, parameters_of
from tsae.commands.table import COMMANDS, GROUPS
from tsae.profile import config
from tsae.profile.config import to_json

SMOKE = config.load(ROOT / "config/smoke.yaml")


def command(name: str) -> click.Command:
    found = app.get_command(click.Context(app), name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_for_every_parameter(name: str) -> None:
    made = command(name)
    assert all(parameter.help for parameter in made.params), name
    # As it is written and as it is: what the workflow calls is what there is.
    assert list(parameters_of(name)) == [parameter.name for parameter in made.params]
    for parameter, written in zip(made.params, parameters_of(name).values(), strict=True):
        assert parameter.required == (written.required and written.kind != "Files"), (name, parameter.name)
    target = COMMANDS[name]
    function = getattr(importlib.import_module(target.module), target.function)
    assert first_line(name) == (inspect.getdoc(function) or "").splitlines()[0]


def test_the_list_is_grouped_one_line_each_and_imports_nothing_heavy() -> None:
    code = "import sys; from tsae.__main__ import app; app(['--help'], standalone_mode=False); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"torch", "pandas", "numpy", "pydantic", "transformers"} & set(done.stderr.split())
    for group, names in GROUPS.items():
        lines = done.stdout.partition(f"{group}:\n")[2].partition("\n\n")[0].splitlines()
        assert [line.split()[0] for line in lines] == list(names)


@pytest.mark.parametrize(
    "name", [name for name in COMMANDS if any(parameter.required for parameter in command(name).params)]
)
def test_a_call_without_a_required_option_says_which(name: str) -> None:
    done = CliRunner().invoke(app, [name])
    assert done.exit_code == 2
    assert "Error: Missing option '--" in done.output


def test_an_unknown_command_is_refused() -> None:
    done = CliRunner().invoke(app, ["trian"])
    assert done.exit_code == 2
    assert "No such command 'trian'" in done.output


def run(*arguments: str) -> tuple[int, list[str]]:
    done = subprocess.run([sys.executable, "-m", "tsae", *arguments], capture_output=True, text=True, cwd=ROOT)
    return done.returncode, done.stderr.splitlines()


def test_a_mistake_in_a_section_is_one_line(tmp_path: Path) -> None:
    paths = ["--documents", "d", "--model", "m", "--train", "t", "--heldout", "h"]
    settings = json.loads(to_json(SMOKE.tokens))
    log = tmp_path / "logs/a.log"
    code, said = run("--log", str(log), "tokenize", "--settings", json.dumps(settings | {"n_ctxx": 3}), *paths)
    assert code == 1
    (line,) = said
    assert line.endswith("error: --settings: n_ctxx: unknown key; did you mean 'n_ctx'?")
    assert log.read_text().splitlines() == said
    code, said = run("tokenize", "--settings", "{", *paths)
    assert code == 1
    (line,) = said
    assert "error: --settings: Invalid JSON" in line


def made(name: str, function: Any, *arguments: str) -> Any:
    return CliRunner().invoke(command_of(name, function), arguments, catch_exceptions=False)


def test_what_a_function_gets_is_what_the_command_line_says() -> None:
    got: dict[str, Any] = {}

    def function(layers: Sequence[int], name: str | None = None, share: float = 0.5, streams: bool = False) -> str:
        """Say something.

        Args:
            layers: layers.
            name: a name,
                in two lines.
            share: a share.
            streams: whether it streams.

        Returns:
            A text.
        """
        got.update(locals())
        return "said"

    done = made("say", function, "--layers", "1", "--layers", "3", "--streams")
    assert (done.exit_code, done.output) == (0, "said\n")
    assert (list(got["layers"]), got["name"], got["share"], got["streams"]) == ([1, 3], None, 0.5, True)
    shown = made("say", function, "--help").output
    assert "A name, in two lines." in shown and "A text" not in shown and "[default: 0.5]" in shown


def test_a_call_is_quoted_and_leaves_out_what_is_not_given() -> None:
    values = {"settings": '{"a": "it\'s"}', "documents": "a b", "model": "m", "train": "t", "heldout": "h"}
    words = shlex.split(command_line("tokenize", values))
    assert words[0] == "tokenize" and dict(zip(words[1::2], words[2::2], strict=True)) == {
        f"--{name}": value for name, value in values.items()
    }
    assert command_line("collect", {"output": "t.csv", "measurements": ["a", "b"]}) == "collect --output t.csv a b"
    means = {"residuals": "r", "layer": "2", "output": "o", "model": [], "gpus": 0, "tf32": False}
    assert command_line("conditional-means", means) == "conditional-means --residuals r --layer 2 --output o --gpus 0"
    with pytest.raises(ValueError, match="conditional-means: layer is missing"):
        command_line("conditional-means", means | {"layer": None})
    with pytest.raises(ValueError, match="has no parameter layr"):
        command_line("conditional-means", means | {"layr": 3})


def test_the_workflows_calls_are_commands(tmp_path: Path) -> None:
    configfile = ROOT / "config/config.yaml"
    arguments = ["--cores", "2", "--dry-run", "--forceall", "--printshellcmds", "--configfile", str(configfile)]
    done = subprocess.run([sys.executable, "-m", "snakemake", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    called = set()
    for line in re.findall(r"python -m tsae --log \S+ (.*?)(?: && touch .*)?$", done.stdout, re.MULTILINE):
        name, *words = shlex.split(line)
        if name not in called:
            command(name).make_context(name, words)  # which reads every option
            called.add(name)
    assert set(GROUPS["Stages"]) - {"record"} == called | {"fetch"}


def test_the_version_is_that_of_the_package() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tsae", "--version"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == f"tsae, version {tsae.__version__}\n"
