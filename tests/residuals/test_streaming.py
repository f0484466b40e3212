"""Stages that read training residuals give the same bytes from disk and from the model."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from fixtures.training import LAYER, POINTS, SETTINGS, Prepared

from tsae.measure.letter_tokens import write_letter_tokens
from tsae.phrases.find_phrases import find_phrases_of
from tsae.phrases.measure_phrases import measure_phrases_of
from tsae.profile.evaluation import Phrases
from tsae.profile.inputs import Residuals
from tsae.profile.sweep import Job
from tsae.residuals.index_residuals import index_residuals
from tsae.residuals.read import open_residuals
from tsae.residuals.write_conditional_means import write_conditional_means
from tsae.residuals.write_residuals import cache_residuals
from tsae.training.train import train

RESIDUALS = Residuals(layers=(1, LAYER), shard_sequences=20, batch_sequences=6, max_norm=1.3, mean_tokens=1500)
PHRASES = Phrases(min_count=4, min_scored=1, n_common=5, n_phrases=12, base_tokens=50, bootstrap=20)


class Caches(NamedTuple):
    """The same residuals cached and streamed, and the model."""

    on_disk: Path
    streamed: Path
    model: Path


@pytest.fixture(scope="module")
def caches(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Caches:
    indices = {}
    for streams in (False, True):
        folder = tmp_path_factory.mktemp("caches") / "residuals"
        tokens = (prepared.train_tokens, prepared.heldout_tokens)
        cache_residuals(prepared.model, *tokens, RESIDUALS, False, folder, streams=streams)
        index_residuals(RESIDUALS, [folder / "parts/0.json"], folder / "index.json")
        indices[streams] = folder / "index.json"
    streamed = open_residuals(indices[True], "train", LAYER).streamed
    assert 3 < len(streamed) < 7
    return Caches(indices[False], indices[True], prepared.model)


@pytest.mark.parametrize("name", ["learned", "relu-none"])
def test_training_gives_the_same_sae(caches: Caches, prepared: Prepared, tmp_path: Path, name: str) -> None:
    job = Job(layer=LAYER, point=POINTS[name], seed=3)
    # Two epochs, with a buffer smaller than one.
    settings = SETTINGS.model_copy(update={"tokens": 7680, "buffer_tokens": 900})
    train(job, settings, caches.on_disk, prepared.unigrams, tmp_path / "on_disk", [20])
    train(job, settings, caches.streamed, prepared.unigrams, tmp_path / "streamed", [20], model=caches.model)
    files = sorted(path.relative_to(tmp_path / "on_disk") for path in (tmp_path / "on_disk").rglob("*.*"))
    assert {"sae.safetensors", "history.csv", "config.json"} <= {str(path) for path in files}
    for path in files:
        assert (tmp_path / "on_disk" / path).read_bytes() == (tmp_path / "streamed" / path).read_bytes()


def test_conditional_means_are_the_same(caches: Caches, tmp_path: Path) -> None:
    write_conditional_means(caches.on_disk, LAYER, tmp_path / "on_disk")
    write_conditional_means(caches.streamed, LAYER, tmp_path / "streamed", caches.model)
    assert (tmp_path / "on_disk").read_bytes() == (tmp_path / "streamed").read_bytes()


def test_letter_tokens_are_the_same(caches: Caches, prepared: Prepared, tmp_path: Path) -> None:
    for name, index in (("on_disk", caches.on_disk), ("streamed", caches.streamed)):
        write_letter_tokens(prepared.model, index, prepared.heldout_tokens, LAYER, 500, 0, tmp_path / name)
    assert (tmp_path / "on_disk").read_bytes() == (tmp_path / "streamed").read_bytes()


def test_phrases_are_the_same(caches: Caches, prepared: Prepared, tmp_path: Path) -> None:
    sae, phrases = tmp_path / "sae", tmp_path / "phrases.json"
    job = Job(layer=LAYER, point=POINTS["none"], seed=0)
    train(job, SETTINGS.model_copy(update={"tokens": 1280}), caches.on_disk, prepared.unigrams, sae)
    find_phrases_of(prepared.model, prepared.train_tokens, PHRASES, phrases)
    measured = {}
    for name, index, model in (("on_disk", caches.on_disk, None), ("streamed", caches.streamed, caches.model)):
        outputs = (tmp_path / f"{name}.json", tmp_path / f"{name}.csv", tmp_path / f"{name}.examples.csv")
        measured[name] = measure_phrases_of(job, sae, index, prepared.unigrams, phrases, PHRASES, *outputs, model=model)
    assert measured["on_disk"] == measured["streamed"]
    assert np.isfinite([row.value for row in measured["on_disk"]]).all()
    for ending in ("csv", "examples.csv"):
        assert (tmp_path / f"on_disk.{ending}").read_bytes() == (tmp_path / f"streamed.{ending}").read_bytes()


def test_training_without_the_model_is_refused_at_once(caches: Caches, prepared: Prepared, tmp_path: Path) -> None:
    job = Job(layer=LAYER, point=POINTS["none"], seed=0)
    with pytest.raises(ValueError, match=r"residuals\.disk_gb"):
        train(job, SETTINGS, caches.streamed, prepared.unigrams, tmp_path)
    assert not (tmp_path / "sae.safetensors").exists()
