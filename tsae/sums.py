"""Sums over held-out documents, from which a metric over tokens, its interval and every comparison of it follow.

A metric over tokens is a ratio of two sums, sum(numerator) / sum(denominator). Tokens of one document are not independent, so the
bootstrap resamples documents. The sums of every SAE are kept per document: SAEs are evaluated on the same documents, and two that
are compared are resampled together.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tsae.files import load_metadata, load_tensors, save_tensors
from tsae.metrics import Bootstrap, Measurement

PARTS = ("numerator", "denominator")


class Ratio(NamedTuple):
    """The sums of a metric over each document's tokens."""

    numerator: Tensor
    """(n_documents,) float64."""
    denominator: Tensor
    """(n_documents,) float64."""

    @property
    def value(self) -> float:
        """The metric over all documents."""
        return (self.numerator.sum() / self.denominator.sum()).item()


class DocumentSums:
    """The sums of several metrics over the same documents."""

    def __init__(self, documents: Tensor):
        """Name the documents: their lines in the documents file, of every token (...) or once each; -1 is none."""
        lines = documents.flatten().long().unique()
        self.documents = lines[lines >= 0]
        self._ratios: dict[str, Ratio] = {}
        self._n_tokens: dict[str, int] = {}

    def add(
        self, metric: str, numerator: Tensor, denominator: Tensor, documents: Tensor, at: float | None = None
    ) -> None:
        """Add tokens to the sums of a metric.

        Args:
            metric: its name in `METRICS`.
            numerator: (n,), a number per token.
            denominator: (n,), the same.
            documents: (n,) the document of each token.
            at: the threshold or place at which it is measured, for a metric that has one.

        Raises:
            ValueError: a token is of a document that was not named.
        """
        places = torch.searchsorted(self.documents, documents.long().cpu()).clamp(max=len(self.documents) - 1)
        if (self.documents[places] != documents.cpu()).any():
            raise ValueError("a token is of none of the documents that are summed over")
        key = _key(metric, at)
        found = self._ratios.setdefault(
            key, Ratio(*(torch.zeros(len(self.documents), dtype=torch.float64) for _ in PARTS))
        )
        for total, values in zip(found, (numerator, denominator), strict=True):
            total.index_add_(0, places, values.detach().cpu().double())
        self._n_tokens[key] = self._n_tokens.get(key, 0) + len(documents)

    def ratio(self, metric: str, at: float | None = None) -> Ratio:
        """The sums of a metric.

        Raises:
            KeyError: it was not measured.
        """
        return self._ratios[_key(metric, at)]

    def __contains__(self, metric: str) -> bool:
        return metric in self._ratios

    def __iter__(self) -> Iterator[tuple[str, float | None, Ratio]]:
        """Every metric, with where it is measured, in the order of their adding."""
        for key, ratio in self._ratios.items():
            metric, _, at = key.partition("@")
            yield metric, float(at) if at else None, ratio

    def measure(self, samples: int, seed: int) -> list[Measurement]:
        """Every metric with its 95% interval, a bootstrap over documents."""
        bootstrap = Bootstrap(len(self.documents), samples, seed)
        return [
            bootstrap.ratio(metric, *ratio, n=self._n_tokens[_key(metric, at)], at=at, over="documents")
            for metric, at, ratio in self
        ]

    def save(self, path: Path) -> None:
        """Write the sums: `documents`, and `{metric}/numerator`, `{metric}/denominator`; with `@{at}` behind the metric."""
        tensors = {
            f"{key}/{part}": tensor
            for key, ratio in self._ratios.items()
            for part, tensor in zip(PARTS, ratio, strict=True)
        }
        save_tensors(path, {"documents": self.documents, **tensors}, {"n_tokens": self._n_tokens})


def load_sums(path: Path) -> DocumentSums:
    """Read what `DocumentSums.save` wrote.

    Raises:
        ValueError: the file is missing, damaged, or holds something else.
    """
    tensors = load_tensors(path)
    n_tokens = load_metadata(path).get("n_tokens")
    documents = tensors.pop("documents", None)
    if documents is None or not isinstance(n_tokens, dict):
        raise ValueError(f"{path}: holds no sums over documents; delete it and run again")
    sums = DocumentSums(documents)
    for key, count in n_tokens.items():
        try:
            ratio = Ratio(*(tensors[f"{key}/{part}"] for part in PARTS))
        except KeyError:
            raise ValueError(f"{path}: lacks sums of {key}; delete it and run again") from None
        if any(part.shape != sums.documents.shape or part.dtype != torch.float64 for part in ratio):
            raise ValueError(f"{path}: the sums of {key} are not of {len(sums.documents)} documents")
        sums._ratios[key], sums._n_tokens[key] = ratio, int(count)
    return sums


def _key(metric: str, at: float | None) -> str:
    return metric if at is None else f"{metric}@{at:g}"
