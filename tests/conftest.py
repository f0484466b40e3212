"""Inputs that many tests share, made once per run."""

import os
from pathlib import Path

# Tiny tensors: a second thread costs more than it brings, many times more beside other work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import tiny


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
