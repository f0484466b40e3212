"""What notebooks, the feature explorer and a release show: the headline SAEs at the middle layer, of the lowest seed."""

from typing import NamedTuple

from tsae.profile.config import Config, Role
from tsae.profile.sweep import job_id


class Shown(NamedTuple):
    """The SAEs that are shown."""

    layer: int | None
    """The middle one of the headline's layers; None without a headline."""
    saes: dict[Role, str]
    """Their ids by role, as far as the profile trains them."""

    @property
    def explored(self) -> list[Role]:
        """The roles that are browsed feature by feature."""
        explored: tuple[Role, ...] = ("baseline", "tokenized")
        return [role for role in explored if role in self.saes]


def shown_of(config: Config) -> Shown:
    """The SAEs of a profile that are shown."""
    headline = config.jobs("headline")
    layers = sorted({job.layer for job in headline})
    if not layers:
        return Shown(None, {})
    layer, seed = layers[len(layers) // 2], min(job.seed for job in headline)
    trained = {job.id for job in config.jobs()}
    ids = {role: job_id(layer, point, seed) for role, point in config.headline().roles.items()}
    return Shown(layer, {role: name for role, name in ids.items() if name in trained})


def notebooks_of(config: Config) -> list[str]:
    """The notebooks whose SAEs and tables a profile has."""
    saes = shown_of(config).saes
    has_what_it_shows = {
        "01_token_subspaces": bool(config.headline().roles),
        "02_training_and_pareto": bool(config.curve_jobs()) and "pareto" in config.sweep,
        "03_token_biases": "tokenized" in saes,
        "04_features": bool(shown_of(config).explored),
    }
    return [notebook for notebook, has in has_what_it_shows.items() if has]
