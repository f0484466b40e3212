"""The command that measures unigram prefixes of a profile's model, and recommends one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from tsae.compute.devices import Device
from tsae.measure.prefixes import advice, describe, measure_prefixes
from tsae.profile.config import load
from tsae.store.layout import results_of


def recommend_prefix(
    configfile: Path,
    prefix: Sequence[str] = (),
    rows: Annotated[int, Field(ge=2)] = 2500,
    device: Device = "cpu",
) -> str:
    r"""Measure unigram prefixes of a model, and recommend one.

    Args:
        configfile: the profile, whose residuals are cached.
        prefix: further prefix to try; write a line feed as $'\n' (bash).
        rows: number of tokens, the most frequent ones.
        device: where the model computes.

    Raises:
        ValueError: as `measure_prefixes`.
    """
    profile = load(configfile)
    found = measure_prefixes(profile, configfile, results_of(profile.profile), prefix, rows, device)
    return f"{describe(found)}\n\n{advice(found, profile.unigrams.prefix)}"
