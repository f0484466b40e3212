"""Replicates and intervals, against cases worked by hand."""

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.measured import BASELINE, TOKENIZED, row, run_of, sums, table

from tsae.claims.criteria import NotMeasuredError
from tsae.claims.replicates import (
    Sample,
    common_seeds,
    estimate,
    load_sums_of_run,
    sample,
    seed_weights,
    t_quantile,
)
from tsae.measure.intervals import Bootstrap
from tsae.measure.sums import save_curve

MANY = 20_000


def of(values: list[float], replicates: list[list[float]] | None = None, seeds: tuple[int | None, ...] = ()) -> Sample:
    found = np.array(replicates) if replicates else np.repeat(np.array(values)[:, None], 1000, 1)
    return Sample(seeds or tuple(range(len(values))), np.array(values), found, ())


@pytest.mark.parametrize("values", [[1.0, 4.0], [1.0, 2.0, 6.0], [0.0, 1.0, 1.0, 5.0]])
def test_drawing_one_seed_fewer_makes_the_variance_unbiased(values: list[float]) -> None:
    # Every draw of n - 1 of n, with replacement: its mean has the variance s^2 / n exactly.
    n = len(values)
    means = [np.mean(draw) for draw in itertools.product(values, repeat=n - 1)]
    assert np.var(means) == pytest.approx(np.var(values, ddof=1) / n)
    # With n draws it would be too small by (n - 1) / n.
    assert np.var([np.mean(d) for d in itertools.product(values, repeat=n)]) == pytest.approx(np.var(values) / n)
    # The weights are such draws.
    weights = seed_weights(n, MANY, 0)
    assert weights.sum(1) == pytest.approx(np.ones(MANY))
    assert set((weights * (n - 1)).round(9).ravel()) <= set(map(float, range(n)))
    assert np.var(weights @ values) == pytest.approx(np.var(values, ddof=1) / n, rel=0.05)


def test_two_seeds_are_drawn_one_at_a_time() -> None:
    assert Counter(map(tuple, seed_weights(2, MANY, 1).tolist())).keys() == {(1.0, 0.0), (0.0, 1.0)}
    assert seed_weights(1, 3, 0).tolist() == [[1.0]] * 3


@pytest.mark.parametrize(("freedom", "t"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (10, 2.22814), (1e9, 1.95996)])
def test_t_quantiles_are_those_of_the_tables(freedom: float, t: float) -> None:
    assert t_quantile(freedom) == pytest.approx(t, rel=2e-4)


def test_an_interval_of_seeds_alone_is_that_of_students_t() -> None:
    run = run_of(bootstrap=MANY)
    # With two seeds one is drawn: 1 or 3, so the bootstrap's interval is 1 to 3, and t with one degree of freedom stretches it.
    measured = estimate(
        run, lambda x: x, [of([1.0, 3.0])._replace(replicates=np.array([[1.0], [3.0]]).repeat(MANY, 1))]
    )
    factor = 12.7062 / 1.95996
    assert measured[:3] == pytest.approx((2.0, 2 - factor, 2 + factor), rel=1e-3)
    assert (measured.over, measured.of_seeds) == ("2 seeds", 1.0)


def test_seeds_that_agree_add_nothing_and_widen_nothing() -> None:
    replicates = np.random.default_rng(0).normal(2, 1, (1, MANY))
    alone, three = (
        estimate(
            run_of(bootstrap=MANY),
            lambda x: x,
            [Sample(s, np.full(len(s), 2.0), replicates.repeat(len(s), 0), ("documents",))],
        )
        for s in ((0,), (0, 1, 2))
    )
    assert alone[:3] == pytest.approx(three[:3])
    assert alone[1:3] == pytest.approx((2 - 1.96, 2 + 1.96), abs=0.05)
    assert (alone.over, three.over) == ("documents", "documents and 3 seeds")


def test_documents_and_seeds_add_up() -> None:
    # Three seeds with the unbiased variance 1 of their mean, and documents with the variance 1 too.
    rng = np.random.default_rng(0)
    values = np.array([0.0, 3.0, 3.0])  # s^2 / 3 = 1
    documents = rng.normal(0, 1, MANY)
    replicates = values[:, None] + documents
    measured = estimate(run_of(bootstrap=MANY), lambda x: x, [Sample((0, 1, 2), values, replicates, ("documents",))])
    assert measured.of_seeds == pytest.approx(0.5, abs=0.02)
    # Satterthwaite: (1 + 1)^2 / (1 / 2) = 8 degrees of freedom, t = 2.306.
    assert (measured.high - measured.low) / 2 == pytest.approx(math.sqrt(2) * 2.306, rel=0.05)


def test_seeds_are_drawn_alike_for_whatever_is_compared() -> None:
    # The seeds differ much and the arms by 1 at each: paired, nothing is left of the spread.
    a, b = of([1.0, 5.0, 9.0]), of([0.0, 4.0, 8.0])
    assert estimate(run_of(), lambda x, y: x - y, [a, b])[:3] == pytest.approx((1, 1, 1))


def test_seeds_that_one_arm_lacks_are_left_out_and_what_has_none_pairs_with_all() -> None:
    a, b, alone = of([1.0, 5.0, 9.0]), of([4.0, 7.0], seeds=(1, 2)), of([0.5], seeds=(None,))
    measured = estimate(run_of(), lambda x, y, z: x - y - z, [a, b, alone])
    assert (measured.value, measured.over) == (1.0, "2 seeds")  # (5 + 9) / 2 - (4 + 7) / 2 - 0.5
    assert common_seeds([alone]) == [None]
    with pytest.raises(NotMeasuredError, match="no seed in common"):
        common_seeds([a, of([1.0], seeds=(7,))])


def test_metrics_over_tokens_share_the_draws_of_documents() -> None:
    # Documents differ a hundredfold, and the ratio is 1/2 in each of them.
    errors = [(1.0, 1.0), (100.0, 1.0), (10.0, 2.0), (1000.0, 5.0)]
    found = {
        (1, BASELINE, 0, None): sums(nmse=errors),
        (1, TOKENIZED, 0, None): sums(nmse=[(e / 2, n) for e, n in errors]),
    }
    rows = table(row(BASELINE, "nmse", 1111 / 9, 50.0), row(TOKENIZED, "nmse", 1111 / 18, 25.0))
    run = run_of(found, headline=rows)
    base, tokenized = (sample(run, rows[rows["subject"] == s]) for s in (BASELINE, TOKENIZED))
    assert base.values.tolist() == [pytest.approx(1111 / 9)]
    assert tokenized.replicates == pytest.approx(base.replicates / 2)
    assert np.ptp(base.replicates) > 50
    assert estimate(run, lambda a, b: a / b, [tokenized, base])[:4] == (0.5, 0.5, 0.5, ("documents",))
    # They are the draws that the table's own intervals are made with.
    weights = Bootstrap(4, run.bootstrap, run.seed)
    assert base.replicates[0].tolist() == weights.ratios(*torch.tensor(errors, dtype=torch.float64).T).tolist()


def test_metrics_over_other_things_are_independent() -> None:
    shares = {"n": 400, "over": "features"}
    rows = table(
        row(BASELINE, "dead_heldout", 0.1, 0.03, **shares),
        row(TOKENIZED, "dead_heldout", 0.1, 0.03, **shares),
        row(BASELINE, "token_bias_unigram_cosine", 0.9, 0.0196, n=400, over="tokens"),
    )
    run = run_of(bootstrap=MANY, headline=rows)
    a, b, median = (sample(run, rows.iloc[[place]]) for place in range(3))
    assert np.std(a.replicates) == pytest.approx(math.sqrt(0.1 * 0.9 / 400), rel=0.03)  # as binomial counts
    assert abs(np.corrcoef(a.replicates[0], b.replicates[0])[0, 1]) < 0.03
    assert np.std(median.replicates) == pytest.approx(0.01, rel=0.03)  # normal, from the interval
    assert (a.over, median.over) == (("features",), ("tokens",))
    assert sample(run, rows.iloc[[0]]).replicates.tolist() == a.replicates.tolist()


def test_what_has_no_interval_is_a_constant() -> None:
    rows = table(row(TOKENIZED, "scale", 2.0, low=None, high=None))
    found = sample(run_of(headline=rows), rows)
    assert (np.ptp(found.replicates), found.values.tolist(), found.over) == (0.0, [2.0], ())


def test_a_metric_over_documents_needs_its_sums() -> None:
    rows = table(row(TOKENIZED, "nmse", 0.5, 0.1, over="documents"))
    message = rf"no sums over documents of nmse of {TOKENIZED} \(layer 1, seed 0\)"
    for found in ({}, {(1, TOKENIZED, 0, None): sums(fvu=[(1, 1), (2, 2)])}):
        with pytest.raises(ValueError, match=message):
            sample(run_of(found, headline=rows), rows)


def test_a_metric_of_one_document_has_no_interval() -> None:
    rows = table(row(TOKENIZED, "nmse", 0.5))
    found = sample(run_of({(1, TOKENIZED, 0, None): sums(nmse=[(1, 2), (0, 0), (0, 0)])}, headline=rows), rows)
    assert (found.values.tolist(), np.ptp(found.replicates), found.over) == ([0.5], 0.0, ())


def test_sums_are_found_by_layer_subject_seed_and_step(tmp_path: Path) -> None:
    one, other = sums(nmse=[(1, 2), (2, 2)]), sums(nmse=[(3, 2), (2, 2)])
    paths = [
        tmp_path / f"sums/{name}.safetensors"
        for name in ("layer6/topk-k4-x4-none-s2", "layer12/released-ot30", "curves/layer6/topk-k4-x4-none-s2")
    ]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    one.save(paths[0])
    other.save(paths[1])
    save_curve(paths[2], {10: one, 20: other}, one.documents)
    found = load_sums_of_run(paths)
    assert {key: ratios.ratio("nmse").value for key, ratios in found.items()} == {
        (6, BASELINE, 2, None): 0.75,
        (12, "released-ot30", None, None): 1.25,
        (6, BASELINE, 2, 10): 0.75,
        (6, BASELINE, 2, 20): 1.25,
    }
    sums(nmse=[(1, 2)] * 3).save(paths[1])
    with pytest.raises(
        ValueError, match=r"released-ot30\.safetensors: its documents are not those of .*none-s2\.safetensors"
    ):
        load_sums_of_run(paths)
