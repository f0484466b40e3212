"""Evaluation of one SAE on held-out tokens.

The held-out tokens are encoded once: errors, sparsity, firings, feature statistics and the loss follow from that pass.
The offset of the encoder's input reads the residuals again: it needs no product with W_enc, and sums over batches of
another size.
"""

from pathlib import Path

import torch
from torch import Tensor

from tsae.compute.devices import Float32Device
from tsae.measure.ablations import load_ablations
from tsae.measure.comparisons import References, compare_features, compare_table
from tsae.measure.dead import measure_dead_in_training, measure_dead_on_heldout, measure_offset, measure_start
from tsae.measure.definitions import THRESHOLDS
from tsae.measure.features import Firings, feature_statistics, simple_shares, write_features
from tsae.measure.first_letters import measure_first_letters
from tsae.measure.loss import measure_loss, patched_losses
from tsae.measure.measurement import Measurement, failure
from tsae.measure.rates import measure_by_rate
from tsae.measure.reconstruction import break_down_nmse, measure_reconstruction, reconstruct
from tsae.measure.sequences import load_sequences, spread
from tsae.measure.similarity import Similar, measure_feature_similarity, most_similar_rows
from tsae.measure.sizes import measure_size
from tsae.measure.sums import DocumentSums
from tsae.measure.table import write_measurements
from tsae.measure.token_tables import last_token_detection, table_fvu
from tsae.model.language_model import load_model
from tsae.profile.evaluation import Evaluation, Features
from tsae.profile.sweep import Job
from tsae.residuals.conditional_means import fit_table
from tsae.residuals.read import ResidualCache, open_residuals
from tsae.residuals.shards import evenly_spaced
from tsae.sae.checkpoint import check_fits, load, load_last_fired
from tsae.store.arguments import Folder
from tsae.text.tokens import load_tokens

SEEN = 1  # min_count of feature statistics: the most similar row among tokens seen in training


def evaluate(
    job: Job,
    sae: Folder,
    model: Folder,
    residuals: Path,
    heldout: Path,
    references: References,
    ablations: Path,
    settings: Evaluation,
    features: Features,
    min_firings: int,
    compatibility_mode: bool,
    metrics: Path,
    feature_table: Path,
    sums: Path,
    token_biases: Folder | None = None,
    device: Float32Device = "cpu",
) -> list[Measurement]:
    """Evaluate one SAE on held-out tokens.

    Args:
        job: layer, point of the sweep and seed.
        sae: checkpoint.
        model: the language model.
        residuals: index of the residual cache.
        heldout: the held-out split, for its documents.
        references: files that the SAE is compared with.
        ablations: losses of the layer without an SAE.
        settings: how to evaluate.
        features: number and size of the contexts of features.
        min_firings: firings that a feature needs to count as simple or not.
        compatibility_mode: fold layer norms and centre residual-writing weights.
        metrics: file of the measurements.
        feature_table: file of the statistics of features.
        sums: file of the sums over documents; empty if the training failed.
        token_biases: checkpoint of the tokenized SAE whose table the features are compared with, if there is one.
        device: where to compute.

    Returns:
        The measurements.

    Raises:
        ValueError: `token_biases` is a baseline, or an SAE is of another model than the residuals.
    """
    trained = load(sae).to(device)
    layer = trained.metadata["layer"]
    cache = open_residuals(residuals, "heldout", layer)
    check_fits(trained, sae, cache.d_model, cache.vocab_size)
    sequences = load_sequences(cache, heldout)
    known = references.load(sequences)
    scored = spread(sequences, settings.ce_sequences)
    without_sae = load_ablations(ablations, scored)
    by_document, firings = DocumentSums(sequences.documents), list[Firings]()
    counts = open_residuals(residuals, "train", layer).token_counts(len(known.unigrams))
    in_loss = evenly_spaced(len(sequences.tokens), settings.ce_sequences)
    found, x_hat = reconstruct(trained, sequences, settings, in_loss, firings)
    measure_reconstruction(found, sequences, by_document)
    break_down_nmse(found, sequences, counts, load_tokens(heldout).document_sources, by_document)
    alive = found.fired > 0
    token_bias_table = None if token_biases is None else _trained_table(token_biases, cache)
    tables = {} if token_bias_table is None else {"token_bias": token_bias_table}
    tables["unigram"] = known.unigrams
    similar = {
        name: most_similar_rows(trained.W_dec, table, counts, {*settings.min_counts, SEEN})
        for name, table in tables.items()
    }
    not_compared = Similar(
        torch.full((trained.n_features,), torch.nan), torch.zeros(trained.n_features, dtype=torch.int64)
    )
    statistics = feature_statistics(
        trained.n_features,
        firings,
        sequences,
        nearest_unigrams=similar["unigram"][SEEN],
        nearest_token_biases=similar.get("token_bias", {SEEN: not_compared})[SEEN],
        settings=features,
    )
    write_features(feature_table, statistics)
    if stopped := failure(trained.metadata):
        DocumentSums(sequences.documents).save(sums)
        write_measurements(metrics, job.labels, {job.subject: stopped})
        return stopped
    of_letters = measure_first_letters(trained, known.letter_tokens, sequences, firings, settings)
    del firings
    language_model = load_model(model, compatibility_mode, device)
    with torch.inference_mode():
        losses = patched_losses(x_hat, language_model, scored, layer, settings, by_document)
    del language_model, x_hat
    # When features of an SAE trained elsewhere last fired is unknown.
    trained_here = "tokens_trained" in trained.metadata
    rows = [
        measure_dead_on_heldout(found.fired, settings),
        *measure_start(trained),
        *measure_offset(trained, sae, sequences),
        *(measure_dead_in_training(trained, load_last_fired(sae), settings) if trained_here else ()),
        *(m for name in similar for m in measure_feature_similarity(name, similar[name], alive, settings)),
        *simple_shares(statistics, min_firings, THRESHOLDS, settings.bootstrap, settings.seed),
        *measure_by_rate(statistics, min_firings, settings.bootstrap, settings.seed),
        *of_letters,
        *compare_features(trained.W_dec, alive, known, counts, settings),
        *compare_table(trained, known, counts, sequences, settings, by_document),
        *measure_size(trained, by_document.ratio("l0").value, known.embedding.shape[1]),
    ]
    if trained.token_table is not None:
        last_token_detection(sequences, trained.token_table, settings, by_document)
        scale, fitted = fit_table(trained.token_table.cpu(), known.means, counts)
        table_fvu(sequences, fitted, known.means.mean, by_document, "table_fvu_fitted")
        rows.append(Measurement("table_scale", scale))
    measure_loss(losses, scored, without_sae, by_document)
    by_document.save(sums)
    measured = [*by_document.measure(settings.bootstrap, settings.seed), *rows]
    write_measurements(metrics, job.labels, {job.subject: measured})
    return measured


def _trained_table(folder: Folder, cache: ResidualCache) -> Tensor | None:
    """The token-biases of a tokenized SAE of the same model; None if its training failed.

    Raises:
        ValueError: it is a baseline, or an SAE of another model.
    """
    reference = load(folder)
    if reference.token_table is None:
        raise ValueError(f"{folder}: evaluation.token_biases names a baseline; it has no token-biases")
    check_fits(reference, folder, cache.d_model, cache.vocab_size)
    return None if failure(reference.metadata) else reference.token_table
