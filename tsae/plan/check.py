"""Whether a profile can run here, and in short what it makes."""

from pathlib import Path

from tsae.plan.plan import Machine, in_bytes, plan, read_rates
from tsae.plan.progress import in_time
from tsae.plan.sizes import disk, download, of_unknown_size
from tsae.profile.config import Config, load
from tsae.text.local import check_local_sources


def check_config(configfile: Path, quiet: bool = False) -> str | None:
    """Check a configuration file, and print what it makes.

    Args:
        configfile: the file.
        quiet: print only mistakes.

    Raises:
        ValueError: not YAML, one line per mistake with the file and the key, or a local file is missing.
    """
    config = load(configfile)
    try:
        check_local_sources(config)
    except ValueError as error:
        raise ValueError(f"{configfile}: {error}") from None
    return None if quiet else "\n".join([f"{configfile}: ok", what_it_makes(config), *left_out(config)])


def what_it_makes(config: Config) -> str:
    """Two lines: SAEs and figures; time, disk and download."""
    n_saes, n_layers, n_figures = len(config.jobs()), len(config.residuals.layers), len(config.drawn())
    takes = [f"{in_bytes(sum(disk(config).values()))} of disk", _download(config)]
    try:
        rates = read_rates()
    except ValueError:  # the package alone, without the record of a run
        pass
    else:
        planned = plan(config, rates, Machine())
        one_gpu = f"{in_time(3600 * planned.gpu_hours)} with one GPU"
        takes.insert(0, one_gpu if config.compute.gpu else f"{in_time(3600 * planned.hours)} on {rates.cores} cores")
    return (
        f"  makes {n_saes} SAE{'s' * (n_saes != 1)} at {n_layers} layer{'s' * (n_layers != 1)}, and {n_figures} figures\n"
        f"  takes {', '.join(takes)}"
    )


def left_out(config: Config) -> list[str]:
    """One line with the figures that the sweep lacks the points of; none if it lacks nothing or figures are listed."""
    figures_of: dict[str, list[str]] = {}
    for figure, missing in config.undrawn().items():
        figures_of.setdefault(missing, []).append(figure)
    lacking = "; ".join(f"{', '.join(figures)} (needs {missing})" for missing, figures in figures_of.items())
    return [f"  leaves out {lacking}"] if lacking else []


def _download(config: Config) -> str:
    known, unknown = download(config), sorted(set(of_unknown_size(config)))
    unsaid = f"{', '.join(unknown)} to download (no size_mb is stated)"
    if not unknown:
        return f"{in_bytes(known)} to download" if known else "nothing to download"
    return f"{in_bytes(known)} and {unsaid}" if known else unsaid
