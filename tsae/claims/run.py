"""The commands that check a run against the ledger, and show the verdicts."""

from collections.abc import Sequence
from pathlib import Path

from tsae.claims.ledger import load_ledger
from tsae.claims.replicates import load_sums_of_run
from tsae.claims.report import print_claims, write_claims
from tsae.claims.selection import Run
from tsae.measure.table import read_table
from tsae.profile import config
from tsae.profile.config import Headline
from tsae.store.layout import CLAIMS, results_of


def measure_run(
    ledger: Path,
    published: Path,
    tables: Sequence[Path],
    sums: Sequence[Path],
    headline: Headline,
    simple_threshold: float,
    bootstrap: int,
    seed: int,
    csv: Path,
    markdown: Path,
    html: Path,
) -> None:
    """Measure and judge every claim of the ledger.

    Args:
        ledger: the claims.
        published: the authors' numbers that the ledger refers to.
        tables: tables of the run, each named after its block.
        sums: sums over held-out documents.
        headline: ids of the headline SAEs, as far as the profile has them.
        simple_threshold: share of activation mass on one token from which a feature is simple.
        bootstrap: bootstrap samples.
        seed: seed of the bootstrap.
        csv: output, a row per check and layer.
        markdown: output, the same as text.
        html: output, the same as a page.

    Raises:
        ValueError: the ledger has a mistake, or a file is missing or damaged.
    """
    by_block = {path.stem: read_table(path) for path in tables}
    run = Run(by_block, headline.roles, simple_threshold, load_sums_of_run(sums), bootstrap, seed)
    write_claims(load_ledger(ledger, published), run, csv, markdown, html)


def show_claims(configfile: Path) -> str:
    """Print the verdicts of a finished run.

    Args:
        configfile: the profile.

    Raises:
        ValueError: its claims have not been measured.
    """
    return print_claims(results_of(config.load(configfile).profile) / CLAIMS)
