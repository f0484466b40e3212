"""Inputs that many tests share, made once per run."""

import os
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, cast

# Tiny tensors: a second thread costs more than it brings, many times more beside other work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

pytest.register_assert_rewrite("fixtures")

from fixtures import tiny  # noqa: E402

pytest_plugins = ["fixtures.configuration", "fixtures.corpora", "fixtures.residuals", "fixtures.training"]

if TYPE_CHECKING:
    from fixtures.evaluation import Evaluated
    from fixtures.faults import Fault, Run
    from fixtures.training import Prepared


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a text file, one document per line."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    tiny.write_corpus(path)
    return path


@pytest.fixture(scope="session")
def tiny_gpt2(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a folder with a GPT-2-shaped model and its tokenizer."""
    folder = tmp_path_factory.mktemp("gpt2")
    tiny.write_gpt2(folder, tiny_corpus)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a folder with a Llama-shaped model and its tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    tiny.write_llama(folder, tiny_corpus)
    return folder


@pytest.fixture(scope="session")
def prepared(tiny_corpus: Path, tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> "Prepared":
    """The stages up to training, run on the tiny corpus and model."""
    from fixtures.training import prepare

    return prepare(tiny_corpus, tiny_gpt2, tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="session")
def evaluated(prepared: "Prepared") -> "Evaluated":
    """A layer with its ablations and trained SAEs."""
    from fixtures.evaluation import open_evaluated

    return open_evaluated(prepared)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> "Run":
    """The smoke profile from nothing to its end, by `make reproduce`."""
    from fixtures.faults import Run

    run = Run(tmp_path_factory.mktemp("undisturbed"))
    code, output = run.reproduce()
    assert code == 0, output
    return run


@pytest.fixture
def faults() -> "list[Fault]":
    """Rows of the table of faults; a test appends its own once all of it holds."""
    return []


# The table says of every test of a fault what came of it; a part of the suite changes its own rows.

ENDED = pytest.StashKey[dict[str, bool]]()
REFUSED = pytest.StashKey[Counter[str]]()


def fills_table(item: pytest.Item) -> bool:
    """Whether a test has rows in the table: with the fixture `faults`, or, in a run of faults, the mark `refused`."""
    asked = item.config.option.markexpr
    refused = item.get_closest_marker("refused") is not None and "refused" in asked
    return refused or "faults" in getattr(item, "fixturenames", ())


def key_of(item: pytest.Item) -> str:
    """What rows are kept under; what is refused has one row, whatever the parameters."""
    return item.nodeid.partition("[")[0] if item.get_closest_marker("refused") else item.nodeid


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if fills_table(item) and (report.when == "call" or not report.passed):
        from fixtures.faults import Fault, keep, named

        assert isinstance(item, pytest.Function)
        refused, test = item.get_closest_marker("refused"), key_of(item)
        if refused is not None and report.passed:
            count = item.config.stash.setdefault(REFUSED, Counter())
            count[test] += 1
            rows = [Fault(refused.args[0], count[test], count[test], "none", None)]
        elif report.passed:
            rows = cast("list[Fault]", item.funcargs["faults"])
        elif isinstance(report.longrepr, tuple):
            rows = [named(item.nodeid, f"SKIPPED ({report.longrepr[2].removeprefix('Skipped: ')})")]
        else:
            rows = [named(item.nodeid, "FAILED")]
        ended = item.config.stash.setdefault(ENDED, {})
        # What one of the parameters of a test did is not covered up by the next.
        if ended.get(test, True):
            keep(test, rows)
        ended[test] = ended.get(test, True) and report.passed
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    options = session.config
    whole = options.args_source is not pytest.Config.ArgsSource.ARGS and not options.option.keyword
    whole = whole and options.option.markexpr == "faults or refused"  # as the Makefile has it
    ended = options.stash.get(ENDED, {})
    wanted = dict.fromkeys(key_of(item) for item in session.items if fills_table(item))
    if whole and wanted and ended.keys() == wanted.keys():
        from fixtures.faults import keep_only

        keep_only(list(wanted))
