"""The inputs of figures, and what they return."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from tsae.measure.table import COLUMNS, read_table
from tsae.profile.config import Role


class Drawing(NamedTuple):
    """A figure, and the tables whose SAEs it shows; the figure names those that failed in training."""

    figure: Figure
    shown: tuple[pd.DataFrame, ...] = ()


@dataclass(frozen=True)
class Inputs:
    """The results in a figure's `NEEDS`, as far as the profile has them, and settings of the run."""

    tables: Mapping[str, pd.DataFrame]
    """By name: blocks of the sweep, `baselines`, `curves`, `phrases`, `released`."""
    files: Mapping[str, Path]
    """`claims`: the ledger; `published`: the authors' numbers."""
    sums: tuple[Path, ...]
    """Sums over held-out documents, as `load_sums_of_run` takes them."""
    roles: Mapping[Role, str]
    """Ids of the headline SAEs: `baseline`, `tokenized` and, if the profile has one, `remainder`."""
    simple_threshold: float
    """Share of activation mass on one token from which a feature is simple."""
    bootstrap: int
    """Bootstrap samples."""
    seed: int
    """Seed of the bootstrap."""

    @classmethod
    def read(
        cls, paths: Iterable[Path], roles: Mapping[Role, str], simple_threshold: float, bootstrap: int, seed: int
    ) -> "Inputs":
        """Read tables, and sort the other files by their names.

        Raises:
            ValueError: a file is damaged, or of a kind that no figure needs.
        """
        tables: dict[str, pd.DataFrame] = {}
        files: dict[str, Path] = {}
        sums: list[Path] = []
        for path in paths:
            if path.suffix == ".csv":
                tables[path.stem] = read_table(path)
            elif path.suffix == ".yaml":
                files[path.stem] = path
            elif path.suffix == ".safetensors":
                sums.append(path)
            else:
                raise ValueError(f"{path}: a figure is drawn from .csv, .yaml and .safetensors files")
        return cls(tables, files, tuple(sums), roles, simple_threshold, bootstrap, seed)

    def table(self, name: str) -> pd.DataFrame:
        """A table.

        Raises:
            ValueError: the figure was not given it.
        """
        if name not in self.tables:
            raise ValueError(f"the figure reads {name}.csv, which it was not given; name it in NEEDS of the figure")
        return self.tables[name]

    def together(self, *names: str) -> pd.DataFrame:
        """The rows of all of these tables that the profile has."""
        found = [self.tables[name] for name in names if name in self.tables]
        return pd.concat(found) if found else pd.DataFrame(columns=COLUMNS)

    def file(self, name: str) -> Path:
        """The path of `claims` or `published`.

        Raises:
            ValueError: the figure was not given it.
        """
        if name not in self.files:
            raise ValueError(f"the figure reads {name}.yaml, which it was not given; name it in NEEDS of the figure")
        return self.files[name]
