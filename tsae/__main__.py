"""Tokenized SAEs, stage by stage. The workflow calls these commands; so can you, or a debugger."""

import gc
import importlib
import logging
import re
import sys
from pathlib import Path

import click

from tsae import __version__
from tsae.commands.signature import first_line
from tsae.commands.table import COMMANDS, GROUPS

# Messages of Python, PyTorch and the loader of shared libraries, which raise different exceptions.
OUT_OF_MEMORY = re.compile(
    r"can(?:'|no)t allocate memory|out of memory|can't start new thread|not enough memory|failed to map segment",
    re.IGNORECASE,
)
LITTLE = 64 << 20  # [bytes]; if an allocation of this size fails, memory is short
RESERVE = [bytes(8 << 20)]  # freed when a stage fails, for the error message

# A start makes half a million lasting objects. Collecting garbage at Python's default rate takes a fifth of its time.
gc.set_threshold(20_000)


class Commands(click.Group):
    """The commands of the table; each is imported when it is called."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """Their names."""
        return list(COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        """The command of that name."""
        if name not in COMMANDS:
            return None
        from tsae.commands.options import command_of

        target = COMMANDS[name]
        return command_of(name, getattr(importlib.import_module(target.module), target.function))

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by group, with the first line of their help."""
        for group, commands in GROUPS.items():
            with formatter.section(group):
                formatter.write_dl([(name, first_line(name)) for name in commands], col_max=20)


@click.command(cls=Commands, help=__doc__, no_args_is_help=True, context_settings={"max_content_width": 120})
@click.version_option(__version__, prog_name="tsae")
@click.option("--log", type=click.Path(path_type=Path), help="Also write messages to this file")
def app(log: Path | None) -> None:
    """Log to the terminal, and to a file if one is named."""
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(log, mode="w", encoding="utf-8"))
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=handlers)
    logging.getLogger("tsae").setLevel(logging.INFO)


def describe(error: BaseException) -> str | None:
    """A message for the user if the input, the disk or the memory is at fault; None for a bug.

    Without memory the interpreter raises SystemError in place of lost exceptions, and libraries raise all kinds.
    """
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    short = [link for link in chain if isinstance(link, MemoryError) or OUT_OF_MEMORY.search(str(link))]
    if not short and isinstance(error, (ValueError, OSError, FloatingPointError)):
        return str(error)
    if not short and _can_allocate(LITTLE):
        return None
    said = str(short[0]).splitlines() if short else []
    return (
        f"out of memory ({said[0] if said else 'an allocation failed'}); give this job more, run fewer at a time (make CORES=1), "
        "or lower residuals.batch_sequences, training.buffer_tokens or evaluation.batch_sequences"
    )


def _can_allocate(size: int) -> bool:
    try:
        bytes(size)
    except MemoryError:
        return False
    return True


def run() -> None:
    """Run the command; log an error of the input, the disk or the memory as one line."""
    try:
        app()
        return
    except Exception as error:
        RESERVE.clear()
        message = describe(error)
        if message is None:
            raise
    # Outside the handler, so the memory that the exception's frames held is free.
    logging.getLogger("tsae").error("error: %s", message)
    sys.exit(1)


if __name__ == "__main__":
    run()
