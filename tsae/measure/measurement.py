"""A row of the metrics table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

METRICS = {
    "failed": "where training stopped because its numbers were not finite [step]; such an SAE has no other row",
}


@dataclass(frozen=True)
class Measurement:
    """One row of the metrics table."""

    metric: str
    value: float
    low: float | None = None  # ends of the 95% interval
    high: float | None = None
    n: int | None = None  # how many things it was measured on
    at: float | None = None  # the threshold at which it was measured, for a metric that has one
    min_count: int | None = None  # over table rows of tokens seen at least so often in training, for metrics of tables
    over: str | None = None  # what was resampled for the interval: documents, features, tokens or phrases


def failure(metadata: Mapping[str, Any]) -> list[Measurement]:
    """The one row of an SAE whose training was stopped, by its description; nothing of any other."""
    return [Measurement("failed", float(metadata["failed"]["step"]))] if "failed" in metadata else []
