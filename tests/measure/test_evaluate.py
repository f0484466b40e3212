"""The evaluation of one SAE: its features, its table, and everything together."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.evaluation import FEATURES, MIN_FIRINGS, SETTINGS, Evaluated
from fixtures.training import LAYER, Prepared, write_letters
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tsae.measure.baselines import measure_baselines
from tsae.measure.curves import measure_curve
from tsae.measure.definitions import DEFINITIONS
from tsae.measure.evaluate import evaluate
from tsae.measure.features import read_features
from tsae.measure.measurement import Measurement
from tsae.measure.sums import load_curve, load_sums
from tsae.measure.table import read_table
from tsae.phrases.collect_phrases import write_phrase_tables
from tsae.phrases.find_phrases import find_phrases_of
from tsae.phrases.measure_phrases import measure_phrases_of
from tsae.profile.evaluation import Phrases
from tsae.profile.point import Point
from tsae.profile.sweep import Job
from tsae.profile.training import Curves
from tsae.residuals.unigrams import load_unigrams
from tsae.sae.architectures.base import Active
from tsae.sae.checkpoint import load, save
from tsae.sae.sae import SAE
from tsae.text.tokens import load_tokens

JOB = Job(layer=LAYER, point=Point(k=4, expansion=2, table="learned"), seed=0)


def run(
    prepared: Prepared,
    evaluated: Evaluated,
    features: Path,
    sae: Path,
    token_biases: Path | None = None,
) -> list[Measurement]:
    return evaluate(
        JOB,
        sae,
        prepared.model,
        prepared.residuals,
        prepared.heldout_tokens,
        prepared.references,
        evaluated.ablations,
        SETTINGS,
        FEATURES,
        MIN_FIRINGS,
        False,
        features.with_suffix(".json"),
        features,
        features.with_suffix(".safetensors"),
        token_biases or evaluated.saes["learned"],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluations")


@pytest.fixture(scope="module")
def measured(prepared: Prepared, evaluated: Evaluated, folder: Path) -> dict[str, list[Measurement]]:
    """Measurements of a baseline and a tokenized SAE, whose features are in `folder`, by their table."""
    return {table: run(prepared, evaluated, folder / f"{table}.parquet", sae) for table, sae in evaluated.saes.items()}


@pytest.mark.parametrize("table", ["none", "learned"])
def test_evaluation_of_a_trained_sae(
    prepared: Prepared,
    evaluated: Evaluated,
    measured: dict[str, list[Measurement]],
    folder: Path,
    tmp_path: Path,
    table: str,
) -> None:
    rows = measured[table]
    assert len({(m.metric, m.at, m.min_count) for m in rows}) == len(rows)
    assert run(prepared, evaluated, tmp_path / "again.parquet", evaluated.saes[table]) == rows
    for ending in ("parquet", "safetensors"):
        assert (tmp_path / f"again.{ending}").read_bytes() == (folder / f"{table}.{ending}").read_bytes()
    # What is counted, or of training tokens, has no interval.
    exact = {"n_parameters", "flops_per_token", "table_scale", "encoder_offset_at_start", "encoder_offset"}
    for m in rows:
        if m.metric in exact:
            continue
        assert m.low is not None
        assert m.high is not None
        assert m.low <= m.value <= m.high, m
    first = {m.metric: m for m in rows}
    of_tables = {
        "token_bias_unigram_cosine",
        "token_bias_neighbour_cosine",
        "last_token_detection",
        "first_letter_accuracy_table",
    }
    assert of_tables & set(first) == (of_tables if table == "learned" else set())
    assert {"nmse", "fvu", "l0", "dead_heldout", "dead_training", "feature_unigram_similar", "ce_added"} <= set(first)

    heldout = evaluated.heldout.kept_rows()
    x_hat = load(evaluated.saes[table])(heldout.residuals, heldout.tokens)
    nmse = ((heldout.residuals - x_hat).square().sum(1) / heldout.residuals.square().sum(1)).mean().item()
    assert first["nmse"].value == pytest.approx(nmse, rel=1e-5)
    assert first["nmse"].n == len(heldout.tokens)
    assert first["l0"].value <= 4


@pytest.mark.parametrize("table", ["none", "learned"])
def test_everything_says_what_its_interval_is_over(
    measured: dict[str, list[Measurement]], folder: Path, evaluated: Evaluated, table: str
) -> None:
    rows = measured[table]
    # Of metrics over held-out tokens the sums are kept.
    sums = load_sums(folder / f"{table}.safetensors")
    assert sums.measure(SETTINGS.bootstrap, SETTINGS.seed) == [m for m in rows if m.over == "documents"]
    assert torch.equal(sums.documents, evaluated.whole.documents.unique())
    over = {m.metric: m.over for m in rows}
    for metric in ("nmse", "fvu", "mse", "l0", "ce", "ce_added", "ce_recovered_zero"):
        assert over[metric] == "documents"
    for metric in ("dead_heldout", "dead_training", "feature_unigram_similar", "simple_unigram", "density"):
        assert over[metric] == "features"
    if table == "learned":
        assert over["last_token_detection"] == "documents"
        assert over["token_bias_unigram_cosine"] == over["token_bias_neighbour_cosine_share"] == "tokens"


@pytest.mark.parametrize("table", ["none", "learned"])
def test_features_agree_with_the_metrics(
    prepared: Prepared, evaluated: Evaluated, measured: dict[str, list[Measurement]], folder: Path, table: str
) -> None:
    frame = read_features(folder / f"{table}.parquet")
    value = {(m.metric, m.at, m.min_count): m.value for m in measured[table]}
    n_tokens = evaluated.heldout.n_kept
    assert frame["feature"].tolist() == list(range(64))
    assert frame["firings"].sum() / n_tokens == pytest.approx(value["l0", None, None])
    assert (frame["firings"] == 0).mean() == value["dead_heldout", None, None]
    assert frame["firing_rate"].tolist() == (frame["firings"] / n_tokens).tolist()

    judged = frame[frame["firings"] >= MIN_FIRINGS]
    assert 0 < len(judged) < (frame["firings"] > 0).sum()
    n_judged = {m.n for m in measured[table] if m.metric in ("simple_unigram", "simple_bigram")}
    assert n_judged == {len(judged)}
    for at in (0.05, 0.5, 1.0):
        assert value["simple_unigram", at, None] == (judged["top_token_share"] >= at).mean()
        assert value["simple_bigram", at, None] == (judged["top_bigram_share"] >= at).mean()

    # The rows named are those of tokens seen in training.
    counts = evaluated.train.token_counts(512)
    for name, rows in (
        ("unigram", load_unigrams(prepared.unigrams)),
        ("token_bias", load(evaluated.saes["learned"]).W_lookup),
    ):
        assert rows is not None
        tokens = torch.tensor(frame[f"{name}_token"].tolist())
        assert (counts[tokens] > 0).all()
        own = cosine_similarity(load(evaluated.saes[table]).W_dec, rows[tokens])
        assert frame[f"{name}_cosine"].to_numpy() == pytest.approx(own.numpy(), abs=1e-5)
        for at in (0.3, 0.6):
            assert value[f"feature_{name}_similarity", at, 1] == (frame[f"{name}_cosine"] >= at).mean()


def test_heldout_tokens_are_encoded_once(
    prepared: Prepared, evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    active = SAE.active

    def count(self: SAE, x: Tensor, *args: Any) -> Active:
        encoded.append(len(x))
        return active(self, x, *args)

    monkeypatch.setattr(SAE, "active", count)
    write_letters(prepared, tmp_path / "none.safetensors", 0)
    references = prepared.references._replace(letter_tokens=tmp_path / "none.safetensors")
    rows = run(prepared._replace(references=references), evaluated, tmp_path / "f.parquet", evaluated.saes["learned"])
    assert sum(encoded) == evaluated.heldout.n_kept
    assert not [m for m in rows if m.metric.startswith("first_letter")]


def test_contexts_come_from_the_heldout_documents(
    prepared: Prepared, measured: dict[str, list[Measurement]], folder: Path
) -> None:
    split = load_tokens(prepared.heldout_tokens)
    frame = read_features(folder / "learned.parquet")
    assert frame["context_tokens"].map(len).max() == FEATURES.n_contexts
    n_compared = 0
    for _, feature in frame.iterrows():
        for document, sequence, position, active, tokens in zip(
            *(feature[f"context_{name}"] for name in ("documents", "sequences", "positions", "active", "tokens")),
            strict=True,
        ):
            assert document == split.documents[sequence, position]
            assert tokens[active] == split.ids[sequence, position]
            n_compared += 1
    assert n_compared > 50


def test_the_table_compared_with_must_be_one(prepared: Prepared, evaluated: Evaluated, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none: evaluation\.token_biases names a baseline"):
        run(prepared, evaluated, tmp_path / "f.parquet", evaluated.saes["learned"], evaluated.saes["none"])
    assert not (tmp_path / "f.parquet").exists()


def test_a_table_whose_training_failed_is_not_compared_with(
    prepared: Prepared, evaluated: Evaluated, measured: dict[str, list[Measurement]], tmp_path: Path
) -> None:
    ours = load(evaluated.saes["learned"])
    failed = {"scale": 1.0, "failed": {"step": 7, "why": "it diverged"}}
    save(tmp_path / "failed", ours, ours.metadata | failed, torch.zeros(len(ours.b_enc), dtype=torch.int64))
    rows = run(prepared, evaluated, tmp_path / "f.parquet", evaluated.saes["none"], tmp_path / "failed")
    assert rows == [m for m in measured["none"] if not m.metric.startswith("feature_token_bias")]
    features = read_features(tmp_path / "f.parquet")
    assert features["token_bias_cosine"].isna().all() and features["unigram_cosine"].notna().all()


def test_of_an_sae_that_failed_in_training_nothing_is_summed(
    prepared: Prepared, evaluated: Evaluated, tmp_path: Path
) -> None:
    ours = load(evaluated.saes["learned"])
    failed = {"scale": 1.0, "failed": {"step": 7, "why": "it diverged"}}
    save(tmp_path / "failed", ours, ours.metadata | failed, torch.zeros(len(ours.b_enc), dtype=torch.int64))
    assert run(prepared, evaluated, tmp_path / "f.parquet", tmp_path / "failed") == [Measurement("failed", 7.0)]
    sums = load_sums(tmp_path / "f.safetensors")
    assert torch.equal(sums.documents, evaluated.whole.documents.unique()) and list(sums) == []
    files = (prepared.model, prepared.residuals, prepared.heldout_tokens, evaluated.ablations, evaluated.trained_ones)
    outputs = (tmp_path / "curve.json", tmp_path / "curve.safetensors")
    measure_curve(JOB, tmp_path / "failed", [2], *files, SETTINGS, Curves(), False, *outputs)
    assert load_curve(tmp_path / "curve.safetensors") == {}


@pytest.mark.parametrize(
    "size, message",
    [
        ("width", "an SAE of width 16, and residuals of width 32"),
        ("vocabulary", "a table of 500 tokens, and a model of 512"),
    ],
)
def test_an_sae_of_another_model_is_one_clear_error(
    prepared: Prepared, evaluated: Evaluated, tmp_path: Path, size: str, message: str
) -> None:
    ours = load(evaluated.saes["learned"])
    assert ours.W_lookup is not None
    d, v = (16, 512) if size == "width" else (32, 500)
    parts = [ours.W_enc[:, :d], ours.W_dec[:, :d], ours.b_enc, ours.b_dec[:d], ours.W_lookup[:v, :d]]
    other = SAE(ours.point, *(part.detach().clone() for part in parts))
    save(tmp_path / "other", other, ours.metadata | {"scale": 1.0}, torch.zeros(len(ours.b_enc), dtype=torch.int64))
    for sae, table in (("other", "ours"), ("ours", "other")):
        folders = {"ours": evaluated.saes["learned"], "other": tmp_path / "other"}
        with pytest.raises(ValueError, match=rf"other: {message}; is it of another model\?"):
            run(prepared, evaluated, tmp_path / "f.parquet", folders[sae], folders[table])
    files = (prepared.model, prepared.residuals, prepared.heldout_tokens, evaluated.ablations, evaluated.trained_ones)
    with pytest.raises(ValueError, match=message):
        measure_curve(
            JOB, tmp_path / "other", [], *files, SETTINGS, Curves(), False, tmp_path / "c.json", tmp_path / "s"
        )


def test_every_metric_that_is_measured_is_described_and_no_other(
    prepared: Prepared, evaluated: Evaluated, measured: dict[str, list[Measurement]], tmp_path: Path
) -> None:
    sae = evaluated.saes["learned"]
    settings = Phrases(min_count=4, min_scored=1, n_common=5, n_phrases=10, bootstrap=10)
    find_phrases_of(prepared.model, prepared.train_tokens, settings, tmp_path / "phrases.json")
    phrases = measure_phrases_of(
        JOB,
        sae,
        prepared.residuals,
        prepared.unigrams,
        tmp_path / "phrases.json",
        settings,
        tmp_path / "one.json",
        tmp_path / "one.csv",
        tmp_path / "examples.csv",
    )
    write_phrase_tables(tmp_path / "phrases.csv", [tmp_path / "one.csv"] * 2)
    written = read_table(tmp_path / "phrases.csv")
    assert written[["layer", "seed", "table", "encoder_input"]].drop_duplicates().values.tolist() == [
        [LAYER, 0, "learned", "residual"]
    ]
    (recall,) = (row.value for row in phrases if row.metric == "phrase_token_recall")
    lengths = written["ids"].map(lambda ids: len(json.loads(ids)))
    assert (written["mean_recall"] * lengths).sum() / lengths.sum() == pytest.approx(recall, abs=1e-4)
    files = (prepared.model, prepared.residuals, prepared.heldout_tokens, evaluated.ablations, evaluated.trained_ones)
    outputs = (tmp_path / "c.json", tmp_path / "s.safetensors")
    curve = measure_curve(JOB, sae, (), *files, SETTINGS, Curves(ce_sequences=2), False, *outputs)
    shared = (prepared.residuals, prepared.heldout_tokens, prepared.references, LAYER, SETTINGS)
    baselines = measure_baselines(*shared, tmp_path / "b.json", tmp_path, prepared.model)
    groups = [*measured.values(), phrases, *baselines.values()]
    names = {m.metric for group in groups for m in group} | {row["metric"] for row in curve}
    assert names | {"failed"} == set(DEFINITIONS)
    assert all(len(meaning.splitlines()) == 1 for meaning in DEFINITIONS.values())
