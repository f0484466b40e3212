"""The stage that measures how one SAE fires on phrases."""

import json
from pathlib import Path

import pandas as pd

from tsae.compute.devices import Device
from tsae.measure.measurement import Measurement, failure
from tsae.measure.table import write_measurements
from tsae.phrases.coverage import LABELS, LISTS, measure_phrases
from tsae.phrases.phrases import read_phrases
from tsae.profile.evaluation import Phrases
from tsae.profile.sweep import Job
from tsae.residuals.read import open_residuals
from tsae.residuals.unigrams import load_unigrams
from tsae.sae.checkpoint import check_fits, load
from tsae.store.arguments import Folder
from tsae.store.files import write_text


def measure_phrases_of(
    job: Job,
    sae: Folder,
    residuals: Path,
    unigrams: Path,
    phrases: Path,
    settings: Phrases,
    metrics: Path,
    table: Path,
    examples: Path,
    model: Folder | None = None,
    device: Device = "cpu",
) -> list[Measurement]:
    """Measure how one SAE fires on the tokens of phrases.

    Args:
        job: layer, point of the sweep and seed.
        sae: checkpoint.
        residuals: index of the residual cache.
        unigrams: unigram residuals of the layer.
        phrases: file of `find_phrases_of`.
        settings: how to measure.
        metrics: file of the measurements.
        table: file with a row per phrase.
        examples: file of contexts, token by token.
        model: the model, for residuals that are not on disk.
        device: where the model computes.

    Returns:
        The measurements.
    """
    trained = load(sae)
    cache = open_residuals(residuals, "train", trained.metadata["layer"], model, device)
    check_fits(trained, sae, cache.d_model, cache.vocab_size)
    rows = load_unigrams(unigrams)
    if rows.shape != (cache.vocab_size, cache.d_model):
        raise ValueError(
            f"{unigrams}: unigram residuals of shape {tuple(rows.shape)}, and residuals of width {cache.d_model} of a model of "
            f"{cache.vocab_size} tokens; is it of another model?"
        )
    measured = measure_phrases(trained, rows, cache, read_phrases(phrases), settings, job.seed)
    labels = {"subject": job.subject} | {key: value for key, value in job.labels.items() if key in LABELS}
    stopped = failure(trained.metadata)
    for path, frame in ((table, measured.table), (examples, measured.examples)):
        write_phrase_table(path, (frame.iloc[:0] if stopped else frame).assign(**labels))
    found = stopped or measured.measurements
    write_measurements(metrics, job.labels, {job.point.id: found})
    return found


def write_phrase_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a table of `measure_phrases` as CSV, lists as JSON."""
    lists = {
        name: frame[name].map(lambda values: json.dumps([round(value, 6) for value in values]))
        for name in LISTS
        if name in frame
    }
    write_text(path, frame.assign(**lists).to_csv(index=False, float_format="%.6g", lineterminator="\n"))
