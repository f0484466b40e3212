"""Sums over held-out documents, which give metrics over tokens, their intervals and paired comparisons.

A metric over tokens is sum(numerator) / sum(denominator). Tokens of one document are not independent, so the bootstrap
resamples documents. All SAEs are evaluated on the same documents, so two SAEs are resampled together.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tsae.measure.intervals import Bootstrap
from tsae.measure.measurement import Measurement
from tsae.store.files import REMEDY
from tsae.store.tensors import load_as, load_metadata, save_tensors

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
        """Take the documents, as lines of the documents file, of every token (...) or once each; -1 is no document."""
        lines = documents.flatten().long().unique()
        self.documents = lines[lines >= 0]
        self._ratios: dict[str, Ratio] = {}
        self._n_tokens: dict[str, int] = {}

    def add(
        self, metric: str, numerator: Tensor, denominator: Tensor | float, documents: Tensor, at: float | None = None
    ) -> None:
        """Add tokens to the sums of a metric.

        Args:
            metric: its name in `METRICS`.
            numerator: (n,), a number per token.
            denominator: (n,), or one number for all; with 1 the metric is a mean.
            documents: (n,) the document of each token.
            at: the threshold or place at which it is measured, for a metric that has one.

        Raises:
            ValueError: a document is not one of `documents`.
        """
        documents = documents.long().cpu()
        if not torch.isin(documents, self.documents).all():
            raise ValueError("a token is of none of the documents that are summed over")
        places = torch.searchsorted(self.documents, documents)
        key = _key(metric, at)
        found = self._ratios.setdefault(
            key, Ratio(*(torch.zeros(len(self.documents), dtype=torch.float64) for _ in PARTS))
        )
        for total, values in zip(found, (numerator, denominator), strict=True):
            values = torch.as_tensor(values).detach().cpu().double()
            total.index_add_(0, places, values.expand(places.shape))
        self._n_tokens[key] = self._n_tokens.get(key, 0) + len(documents)

    def ratio(self, metric: str, at: float | None = None) -> Ratio:
        """The sums of a metric.

        Raises:
            KeyError: it was not measured.
        """
        return self._ratios[_key(metric, at)]

    def __contains__(self, metric: str) -> bool:
        return any(metric == name for name, _, _ in self)

    def __iter__(self) -> Iterator[tuple[str, float | None, Ratio]]:
        """Every metric, its `at` and its sums, in the order of addition."""
        for key, ratio in self._ratios.items():
            metric, _, at = key.partition("@")
            yield metric, float(at) if at else None, ratio

    def measure(self, samples: int, seed: int) -> list[Measurement]:
        """Every metric with its 95% interval by a bootstrap over documents."""
        bootstrap = Bootstrap(len(self.documents), samples, seed)
        return [
            bootstrap.ratio(metric, *ratio, n=self._n_tokens[_key(metric, at)], at=at, over="documents")
            for metric, at, ratio in self
        ]

    def save(self, path: Path) -> None:
        """Write the sums: `documents`, and `{metric}/numerator`, `{metric}/denominator`; with `@{at}` behind the metric."""
        _save(path, self.documents, self._ratios, self._n_tokens)


def load_sums(path: Path) -> DocumentSums:
    """Read what `DocumentSums.save` wrote.

    Raises:
        ValueError: the file is missing, damaged, or holds something else.
    """
    sums = _load(path)
    if any("/" in metric for metric, _, _ in sums):
        raise ValueError(f"{path}: holds the sums of a training curve, and not of one SAE; {REMEDY}")
    return sums


def save_curve(path: Path, curve: Mapping[int, DocumentSums], documents: Tensor) -> None:
    """Write the sums of an SAE's checkpoints as one file, by step: `{step}/{metric}/numerator` and so on.

    Args:
        path: the file.
        curve: step -> sums over these documents; none if nothing was measured.
        documents: as `DocumentSums` takes them.
    """
    _save(
        path,
        DocumentSums(documents).documents,
        {f"{step}/{key}": ratio for step, sums in curve.items() for key, ratio in sums._ratios.items()},
        {f"{step}/{key}": n for step, sums in curve.items() for key, n in sums._n_tokens.items()},
    )


def load_curve(path: Path) -> dict[int, DocumentSums]:
    """Read what `save_curve` wrote: step -> sums, in the order of steps.

    Raises:
        ValueError: the file is missing, damaged, or holds something else.
    """
    whole = _load(path)
    curve: dict[int, DocumentSums] = {}
    for key, ratio in whole._ratios.items():
        step, _, metric = key.partition("/")
        if not (step.isdecimal() and metric):
            raise ValueError(f"{path}: holds the sums of one SAE, and not of a training curve; {REMEDY}")
        sums = curve.setdefault(int(step), DocumentSums(whole.documents))
        sums._ratios[metric], sums._n_tokens[metric] = ratio, whole._n_tokens[key]
    return dict(sorted(curve.items()))


def _save(path: Path, documents: Tensor, ratios: Mapping[str, Ratio], n_tokens: Mapping[str, int]) -> None:
    parts = {
        f"{key}/{part}": tensor for key, ratio in ratios.items() for part, tensor in zip(PARTS, ratio, strict=True)
    }
    save_tensors(path, {"documents": documents, **parts}, {"n_tokens": dict(n_tokens)})


def _load(path: Path) -> DocumentSums:
    n_tokens = load_metadata(path).get("n_tokens")
    if not isinstance(n_tokens, dict) or not all(type(n) is int for n in n_tokens.values()):
        raise ValueError(f"{path}: holds no sums over documents; {REMEDY}")
    expected: dict[str, tuple[tuple[int | None, ...], torch.dtype]] = {
        f"{key}/{part}": ((None,), torch.float64) for key in n_tokens for part in PARTS
    }
    tensors = load_as(path, {"documents": ((None,), torch.int64), **expected})
    sums = DocumentSums(tensors["documents"])
    if not torch.equal(sums.documents, tensors["documents"]):
        raise ValueError(f"{path}: its documents are not numbers of lines in ascending order; {REMEDY}")
    for key, count in n_tokens.items():
        # Copied: the last bits of a product depend on alignment, which varies in a memory-mapped file.
        ratio = Ratio(*(tensors[f"{key}/{part}"].clone() for part in PARTS))
        if any(len(part) != len(sums.documents) for part in ratio):
            raise ValueError(f"{path}: the sums of {key} are not of its {len(sums.documents)} documents; {REMEDY}")
        sums._ratios[key], sums._n_tokens[key] = ratio, count
    return sums


def _key(metric: str, at: float | None) -> str:
    return metric if at is None else f"{metric}@{float(at)!r}"
