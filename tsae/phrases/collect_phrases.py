"""The stage that gathers the phrase tables of several SAEs."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from tsae.store.arguments import Files
from tsae.store.files import check, write_text


def write_phrase_tables(output: Path, tables: Files) -> None:
    """Gather the phrase tables of several SAEs in one.

    `mean_recall` is the mean over each phrase's tokens.

    Args:
        output: the table of all SAEs.
        tables: a table per SAE.
    """
    for table in tables:
        check(table)
    rows = pd.concat([pd.read_csv(table, keep_default_na=False) for table in tables])
    mean_recall = [float(np.mean(json.loads(recall))) for recall in rows["recall"]]
    write_text(
        output, rows.assign(mean_recall=mean_recall).to_csv(index=False, float_format="%.6g", lineterminator="\n")
    )
