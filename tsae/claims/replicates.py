"""Bootstrap replicates of metrics over documents, features and seeds, and the intervals that follow from them.

The whole run shares one set of draws of documents, so comparisons are paired. Metrics without sums over documents have independent
replicates, drawn from their own intervals. Seeds are resampled on top.
"""

import functools
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tsae.claims.criteria import NotMeasuredError
from tsae.claims.selection import Run, SumsOf
from tsae.measure.definitions import is_share
from tsae.profile.sweep import job_id, parse_job_id
from tsae.store.layout import CURVE_SUMS, SUMS

if TYPE_CHECKING:
    from tsae.measure.intervals import Bootstrap
    from tsae.measure.sums import DocumentSums, Ratio

Array = NDArray[np.float64]
LEVEL = 0.95
NORMAL = 1.959964  # standard deviations on either side of a normal mean that hold 95%
ANY = (-np.inf, np.inf)
COUNTED = ("features", "tokens")  # a share of these is binomial
TINY = 1e-300  # the least value whose logarithm is taken


class Sample(NamedTuple):
    """A metric at one layer, for S seeds, with B bootstrap replicates of each."""

    seeds: tuple[int | None, ...]
    """(None,) for a table without an SAE."""
    values: Array
    """(S,)."""
    replicates: Array
    """(S, B)."""
    over: tuple[str, ...]
    """What was resampled: documents, features, ...; empty for a number without an interval."""


class Measured(NamedTuple):
    """A measure at a layer, or why there is none."""

    value: float
    low: float
    high: float
    """Ends of the 95% interval."""
    units: tuple[str, ...] = ()
    """What the interval is over besides seeds: documents, features, ..."""
    n_seeds: int = 1
    layer: str = ""
    """`12`, or `18 - 6` where layers are compared; empty if all layers lack the measure."""
    log: bool = False
    """Whether the interval is symmetric in the logarithm."""
    of_seeds: float = 0.0
    """Share of the variance between seeds."""
    ends: tuple[float, float] = ANY
    """The measurable range; 0 and infinity stand for values below and above it."""
    missing: str = ""
    """Why nothing was measured."""
    failed: tuple[str, ...] = ()
    """The SAEs whose failed training is the reason."""

    @property
    def over(self) -> str:
        """What the interval is over, for example `documents and 3 seeds`."""
        seeds = [f"{self.n_seeds} seeds"] * (self.n_seeds > 1)
        return " and ".join([", ".join(self.units)] * bool(self.units) + seeds)


def paths_of_sums(results: Path, rows: pd.DataFrame, sums: str = SUMS) -> list[Path]:
    """The files of sums of the SAEs and layers in a table; `sums` is `SUMS` or `CURVE_SUMS` of the layout."""
    named = rows[["layer", "subject", "seed"]].drop_duplicates().itertuples(index=False, name=None)
    return [
        results / sums.format(job=job_id(layer, subject, None if pd.isna(seed) else seed))
        for layer, subject, seed in named
    ]


def load_sums_of_run(paths: Iterable[Path]) -> "dict[SumsOf, DocumentSums]":
    """Read the sums of a run.

    Raises:
        ValueError: a file is missing or damaged, or two are of different documents, which cannot be resampled together.
    """
    # Every start of the workflow reads the ledger; importing torch takes a second.
    from tsae.measure.sums import load_curve, load_sums

    found: dict[SumsOf, DocumentSums] = {}
    first: tuple[Path, DocumentSums] | None = None
    for path in paths:
        layer, subject, seed = parse_job_id(f"{path.parent.name}/{path.stem}")
        by_step = load_curve(path) if path.match(CURVE_SUMS.format(job="*/*")) else {None: load_sums(path)}
        for step, sums in by_step.items():
            first = first or (path, sums)
            if not sums.documents.equal(first[1].documents):
                raise ValueError(f"{path}: its documents are not those of {first[0]}; evaluate both again")
            found[layer, subject, seed, step] = sums
    return found


@functools.lru_cache(maxsize=1)
def _documents(run: Run) -> "Bootstrap":
    """The draws of documents that the whole run shares."""
    from tsae.measure.intervals import Bootstrap

    return Bootstrap(len(next(iter(run.sums.values())).documents), run.bootstrap, run.seed)


@functools.cache
def seed_weights(n: int, samples: int, seed: int) -> Array:
    """Weights of n seeds in each resample (samples, n); each row sums to 1.

    A resample draws n - 1 of n seeds with replacement, so its mean has the variance s^2 / n, with s^2 the unbiased variance of the
    seeds. With n draws the variance would be (n - 1) / n of that (Rao and Wu, 1988).
    """
    if n == 1:
        return np.ones((samples, 1))
    draws = np.random.default_rng([seed, n]).integers(n, size=(samples, n - 1))
    counts = (draws[:, :, None] == np.arange(n)).sum(1)
    return np.asarray(counts / (n - 1), dtype=np.float64)


def t_quantile(freedom: float) -> float:
    """Standard errors on either side of a mean that hold 95%, by Student's t with these degrees of freedom."""
    # With t = sqrt(freedom) tan(angle) the density is proportional to cos(angle)^(freedom - 1).
    freedom = min(freedom, 1e4)
    angles = np.linspace(0, np.pi / 2, 100_001)
    density = np.cos((angles[1:] + angles[:-1]) / 2) ** (freedom - 1)
    cumulative = np.concatenate([[0], np.cumsum(density)])
    return float(np.sqrt(freedom) * np.tan(np.interp(LEVEL, cumulative / cumulative[-1], angles)))


def sample(run: Run, rows: pd.DataFrame) -> Sample:
    """The replicates of one metric at one layer, from its rows, one per seed.

    Raises:
        ValueError: a metric over documents has no sums.
    """
    resampled = [_resample(run, row) for row in rows.to_dict("records")]
    seeds = tuple(None if pd.isna(seed) else int(seed) for seed in rows["seed"])
    over = tuple(dict.fromkeys(unit for _, _, unit in resampled if unit))
    values, replicates = (np.stack([np.asarray(r[place], dtype=np.float64) for r in resampled]) for place in (0, 1))
    return Sample(seeds, values, replicates, over)


def _resample(run: Run, row: dict[Any, Any]) -> tuple[float, Array, str]:
    """The value of a row of a table, its replicates (B,), and what was resampled."""
    layer, seed, step, at, n = (
        None if pd.isna(row.get(name)) else row[name] for name in ("layer", "seed", "step", "at", "n")
    )
    key: SumsOf = (int(row["layer"]), row["subject"], seed and int(seed), step and int(step))
    sums, metric, value = run.sums.get(key), row["metric"], float(row["value"])
    over = "" if pd.isna(row.get("over")) else str(row["over"])
    ratio = None if sums is None or not pd.isna(row.get("min_count")) else _sums_of(sums, metric, at)
    if ratio is not None:
        if (ratio.denominator != 0).sum() < 2:
            return ratio.value, np.full(run.bootstrap, ratio.value), ""  # too few documents to resample
        return ratio.value, _documents(run).ratios(*ratio).numpy(), "documents"
    if over == "documents":
        raise ValueError(
            f"there are no sums over documents of {metric} of {row['subject']} (layer {layer}, seed {seed})"
        )
    if pd.isna(row["low"]) or pd.isna(row["high"]):
        return value, np.full(run.bootstrap, value), ""
    name = "/".join(str(row.get(c)) for c in ("layer", "subject", "seed", "step", "metric", "at", "min_count"))
    rng = np.random.default_rng([run.seed, zlib.crc32(name.encode())])
    if n is not None and over in COUNTED and is_share(metric):
        # Every resample of a share of 0 or 1 is 0 or 1; the posterior under Jeffreys' prior has a width.
        hits = value * n
        return value, rng.beta(hits + 0.5, n - hits + 0.5, run.bootstrap), over
    return value, value + (row["high"] - row["low"]) / (2 * NORMAL) * rng.standard_normal(run.bootstrap), over


def _sums_of(sums: "DocumentSums", metric: str, at: float | None) -> "Ratio | None":
    try:
        return sums.ratio(metric, at)
    except KeyError:
        return None


def estimate(
    run: Run,
    statistic: Callable[..., Any],
    samples: Sequence[Sample],
    log: bool = False,
    ends: tuple[float, float] = ANY,
) -> Measured:
    """A number computed from means over seeds of metrics, with its 95% interval.

    The interval is a percentile bootstrap over the samples' units and the seeds they share, paired. Few seeds underestimate
    their own spread, so the interval is widened by the ratio of Student's t to the normal quantile, with Satterthwaite's degrees
    of freedom for a sum of two variances.

    Args:
        run: the run.
        statistic: takes an array per sample, each a number or (B,), and returns an array of the same shape.
        samples: metrics at one layer.
        log: widen the interval in the logarithm; for ratios.
        ends: see `Measured`.

    Raises:
        NotMeasuredError: the samples share no seed, or give no number.
    """
    seeds = common_seeds(samples)
    n = len(seeds)
    chosen = [s if s.seeds == (None,) else _at_seeds(s, seeds) for s in samples]
    weights = seed_weights(n, run.bootstrap, run.seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(*(s.values.mean() for s in chosen)))
        units_alone = _as_replicates(run, statistic(*(s.replicates.mean(0) for s in chosen)))
        both = _as_replicates(run, statistic(*(_weighted(weights, s.replicates) for s in chosen)))
        seeds_alone = _as_replicates(run, statistic(*(_weighted(weights, s.values[:, None]) for s in chosen)))
        scale = np.log if log else np.asarray
        of_units, of_seeds = (_variance(scale(r)) for r in (units_alone, seeds_alone))
    share = of_seeds / (of_units + of_seeds) if 0 < of_units + of_seeds < np.inf else 0.0
    low, high = _quantiles(both)
    # The lower quantile of a share of 0 is a little above 0.
    low, high = min(low, value), max(high, value)
    if np.isnan([value, low, high]).any():
        raise NotMeasuredError("too little was measured for a number with an interval")
    if n > 1 and share > 0 and np.isfinite(value):
        # (V_units + V_seeds)^2 / (V_seeds^2 / (n - 1)), because there are many units
        factor = t_quantile((n - 1) / share**2) / NORMAL
        low, high = (_stretch(value, end, factor, log) for end in (low, high))
    units = tuple(dict.fromkeys(unit for s in chosen for unit in s.over))
    return Measured(value, low, high, units, n, log=log, of_seeds=share, ends=ends)


def common_seeds(samples: Sequence[Sample]) -> list[int | None]:
    """The seeds that all samples with seeds share; [None] if no sample has seeds.

    Raises:
        NotMeasuredError: they share none.
    """
    sets = [set(s.seeds) for s in samples if s.seeds != (None,)]
    if not sets:
        return [None]
    if not (common := set.intersection(*sets)):
        raise NotMeasuredError("what is compared has no seed in common")
    return sorted(common, key=lambda seed: -1 if seed is None else seed)


def _at_seeds(s: Sample, seeds: Sequence[int | None]) -> Sample:
    places = [s.seeds.index(seed) for seed in seeds]
    return s._replace(seeds=tuple(seeds), values=s.values[places], replicates=s.replicates[places])


def _weighted(weights: Array, of_seeds: Array) -> Array:
    """Mean over seeds in each resample (B,), of (S, B) or (S, 1); S is 1 without seeds."""
    if len(of_seeds) < weights.shape[1]:
        weights = np.ones((len(weights), 1))
    return np.asarray((weights.T * of_seeds).sum(0))


def _as_replicates(run: Run, values: Any) -> Array:
    replicates: Array = np.broadcast_to(np.asarray(values, dtype=np.float64), (run.bootstrap,))
    return replicates


def _variance(replicates: Array) -> float:
    """Variance of the finite replicates; a speed-up beyond its bound is infinite."""
    finite = replicates[np.isfinite(replicates)]
    return float(np.var(finite)) if len(finite) else 0.0


def _quantiles(replicates: Array) -> tuple[float, float]:
    """2.5% and 97.5% quantiles of the replicates that are numbers."""
    drawn = replicates[~np.isnan(replicates)]
    if not len(drawn):
        return np.nan, np.nan
    # Infinite replicates cannot be interpolated.
    method: Any = "linear" if np.isfinite(drawn).all() else "inverted_cdf"
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method=method)
    return float(low), float(high)


def _stretch(value: float, end: float, factor: float, log: bool) -> float:
    if not log:
        return value + factor * (end - value)
    if value <= 0 or end <= 0:
        return end
    return float(value * (end / value) ** factor)
