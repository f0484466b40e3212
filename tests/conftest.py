"""Inputs that many tests share, made once per run."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Tiny tensors: a second thread costs more than it brings, many times more beside other work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import tiny

if TYPE_CHECKING:
    from evaluation import Evaluated
    from faults import Fault, Run
    from test_train import Prepared


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


# The helpers live beside the tests of their module, and are imported when those have been collected.


@pytest.fixture(scope="session")
def prepared(tiny_corpus: Path, tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> "Prepared":
    """The stages up to training, run on the tiny corpus and model."""
    from test_train import prepare

    return prepare(tiny_corpus, tiny_gpt2, tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="session")
def evaluated(prepared: "Prepared") -> "Evaluated":
    """A layer with its ablations and trained SAEs."""
    from evaluation import open_evaluated

    return open_evaluated(prepared)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> "Run":
    """The smoke profile from nothing to its end, by `make reproduce`."""
    from faults import Run

    run = Run(tmp_path_factory.mktemp("undisturbed"))
    code, output = run.reproduce()
    assert code == 0, output
    return run


@pytest.fixture(scope="session")
def faults() -> Iterator["list[Fault]"]:
    """Rows of the table of faults; a test appends its own once all of it holds."""
    from faults import write_table

    rows: list[Fault] = []
    yield rows
    write_table(rows)
