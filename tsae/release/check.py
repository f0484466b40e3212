"""The command that checks a release without the run: sums of its files, its claims computed again, its SAEs."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from tsae.claims.ledger import load_ledger
from tsae.claims.replicates import load_sums_of_run
from tsae.claims.report import measure_claims, print_claims, read_claims
from tsae.claims.selection import Run
from tsae.measure.table import read_table
from tsae.profile import config
from tsae.release.contents import CONFIG, LEDGER, PUBLISHED, SAES, SUMS_FILE
from tsae.sae.checkpoint import load
from tsae.sae.exchange.repository import check_records
from tsae.store import layout
from tsae.store.files import sha256

NOT_IN_METRICS = ("curves", "phrases")
# Bootstraps on another processor may round the sixth digit of claims.csv otherwise.
TOLERANCE = 1e-5


def check_release(folder: Path) -> str:
    """Check a release without the run, and print its claims.

    Every file has the sha256 of SHA256SUMS, metrics.csv has the rows of the tables, every check of every claim is computed again
    from the tables and sums, and every SAE loads.

    Args:
        folder: the unpacked release.

    Raises:
        ValueError: something is missing or does not fit; the message names it.
    """
    n_files = check_sums(folder)
    n_rows = _check_metrics(folder)
    claims = folder / layout.CLAIMS
    _compare(claims, read_claims(claims), measure_again(folder))
    saes = sorted(path.parent for path in (folder / SAES).glob("*/*/config.json"))
    for sae in saes:
        check_records(sae)
        load(sae)
    return "\n".join(
        [
            print_claims(claims),
            f"{n_files} files have the sha256 of {SUMS_FILE}",
            f"{layout.METRICS} has the {n_rows} rows of the tables",
            f"computed again from the tables and sums, every check is as {layout.CLAIMS} has it",
            f"{len(saes)} SAEs load",
        ]
    )


def check_sums(folder: Path) -> int:
    """Compare every file with SHA256SUMS, and return how many there are.

    Raises:
        ValueError: there is no such list, or a file is missing, is not in the list or differs from it.
    """
    path = folder / SUMS_FILE
    if not path.is_file():
        raise ValueError(f"{path}: no such file; name the folder of an unpacked release")
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in _lines(path))}
    there = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()} - {SUMS_FILE}
    problems = [f"{name} is missing" for name in sorted(listed.keys() - there)]
    problems += [f"{name} is not in {SUMS_FILE}" for name in sorted(there - listed.keys())]
    problems += [
        f"{name} is damaged" for name in sorted(there & listed.keys()) if sha256(folder / name) != listed[name]
    ]
    if problems:
        raise ValueError(f"{folder}: {'; '.join(problems)}; get the release again")
    return len(listed)


def measure_again(folder: Path) -> pd.DataFrame:
    """The rows of claims.csv, computed from the tables and sums in a release."""
    profile = config.parse(yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")), str(folder / CONFIG))
    tables = {path.stem: read_table(path) for path in sorted(folder.glob(layout.TABLE.format(table="*")))}
    sums = load_sums_of_run(sorted(folder.glob(layout.SUMS.format(job="**/*"))))
    settings = profile.evaluation
    run = Run(tables, profile.headline().roles, profile.simple.threshold, sums, settings.bootstrap, settings.seed)
    return measure_claims(load_ledger(folder / LEDGER, folder / PUBLISHED), run)


def _compare(path: Path, stated: pd.DataFrame, computed: pd.DataFrame) -> None:
    named = [
        "id",
        "claim",
        "check",
        "decides",
        "layer",
        "source",
        "published",
        "verdict",
        "check_verdict",
        "claim_verdict",
    ]
    numbers = ["measured", "low", "high"]
    ours, theirs = (table[named].to_numpy().tolist() for table in (computed, stated))
    if differing := [row for row in itertools.zip_longest(theirs, ours) if row[0] != row[1]]:
        raise ValueError(f"{path}: says {differing[0][0]}, and the tables and sums give {differing[0][1]}")
    first, second = (table[numbers].to_numpy(dtype=float) for table in (stated, computed))
    close = np.isclose(first, second, rtol=TOLERANCE, atol=0, equal_nan=True).all(axis=1)
    if not close.all():
        row = stated.iloc[int(np.flatnonzero(~close)[0])]
        raise ValueError(
            f"{path}: {row['id']}, {row['check']}, layer {row['layer']}: the tables and sums give another number"
        )


def _check_metrics(folder: Path) -> int:
    metrics = set(_lines(folder / layout.METRICS))
    tables = [path for path in folder.glob(layout.TABLE.format(table="*")) if path.stem not in NOT_IN_METRICS]
    rows = {line for path in tables for line in _lines(path)}
    if metrics != rows:
        raise ValueError(f"{folder / layout.METRICS}: {len(metrics ^ rows)} of its rows are not those of the tables")
    return len(metrics) - 1


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()
