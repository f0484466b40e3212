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
    n: int | None = None  # number of tokens, features, ... measured
    at: float | None = None  # threshold or bin, for a metric that has one
    min_count: int | None = None  # for metrics of tables, least training occurrences of the tokens
    over: str | None = None  # units of the interval: documents, features, tokens, phrases or n-grams


def failure(metadata: Mapping[str, Any]) -> list[Measurement]:
    """The one row of an SAE whose training failed, from its metadata; no row for others."""
    return [Measurement("failed", float(metadata["failed"]["step"]))] if "failed" in metadata else []
