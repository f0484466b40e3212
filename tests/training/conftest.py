"""Trained SAEs that the tests of this folder share."""

from pathlib import Path

import pytest
from fixtures.training import LAYER, POINTS, Prepared, train_point

from tsae.residuals.read import ResidualCache, open_residuals


@pytest.fixture(scope="session")
def cache(prepared: Prepared) -> ResidualCache:
    return open_residuals(prepared.residuals, "train", LAYER)


@pytest.fixture(scope="session")
def trained(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: train_point(prepared, tmp_path_factory.mktemp("saes") / name, name) for name in POINTS}


@pytest.fixture(scope="session")
def with_checkpoints(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: train_point(prepared, tmp_path_factory.mktemp("saes") / name, name, checkpoints=(1, 10, 37, 100))
        for name in ("learned", "nounigram", "gated-none")
    }
