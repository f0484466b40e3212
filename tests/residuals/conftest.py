"""Residual caches that the tests of this folder share."""

import shutil
from pathlib import Path

import pytest
from fixtures.residuals import SEQUENCES, STREAMED, run
from fixtures.tokens import write_tokens

from tsae.model.write_model import prepare_model
from tsae.profile.sources import FolderModel


@pytest.fixture(scope="session")
def inputs(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a prepared model and both splits of tokens."""
    folder = tmp_path_factory.mktemp("inputs")
    prepare_model(FolderModel(kind="folder", path=tiny_llama), folder, folder / "model")
    for seed, (split, n_sequences) in enumerate(SEQUENCES.items()):
        write_tokens(folder / f"{split}.safetensors", n_sequences, seed)
    return folder


@pytest.fixture(scope="session")
def index(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("cache") / "residuals" / "index.json"
    run(inputs, output)
    return output


@pytest.fixture
def copied(index: Path, tmp_path: Path) -> Path:
    """A cache of the test's own."""
    shutil.copytree(index.parent, tmp_path / "residuals")
    return tmp_path / "residuals" / "index.json"


@pytest.fixture(scope="session")
def streamed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("streamed") / "residuals" / "index.json"
    run(inputs, output, STREAMED, streams=True)
    return output
