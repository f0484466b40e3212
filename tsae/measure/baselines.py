"""Measurements of a layer without an SAE: tables alone, principal components, n-grams, outliers and training counts."""

from pathlib import Path

from tqdm import tqdm

from tsae.compute.devices import Device
from tsae.measure.comparisons import References, compare_unigrams
from tsae.measure.counts import EDGES, count_bins
from tsae.measure.first_letters import measure_residual_probe
from tsae.measure.measurement import Measurement
from tsae.measure.ngrams import measure_ngrams
from tsae.measure.orders import SuffixRows, table_fvu_by_order
from tsae.measure.principal_components import pca_fvu
from tsae.measure.sequences import load_sequences
from tsae.measure.sums import DocumentSums
from tsae.measure.table import write_measurements
from tsae.measure.token_tables import last_token_detection, table_fvu, token_subspaces
from tsae.profile.evaluation import Evaluation
from tsae.residuals.conditional_means import fit_table
from tsae.residuals.read import open_residuals
from tsae.store.arguments import Folder

METRICS = {
    "heldout_tokens_seen_in_training": "share of held-out tokens that occur in training",
    "heldout_share_by_count": "share of held-out tokens that are of one bin of training counts",
    "outlier_share_train": "share of training tokens left out for their norm",
    "outlier_share_heldout": "share of held-out tokens left out for their norm",
    "scale": "the number that residuals of the layer are divided by in training [units of raw residuals]",
}


def measure_baselines(
    residuals: Path,
    heldout: Path,
    references: References,
    layer: int,
    settings: Evaluation,
    metrics: Path,
    sums: Folder,
    model: Folder | None = None,
    device: Device = "cpu",
) -> dict[str, list[Measurement]]:
    """Measure the residuals of a layer without an SAE.

    The tables are the unigram residuals and the conditional means. A token that the table does not have gets the mean
    residual.

    Args:
        residuals: index of the residual cache.
        heldout: the held-out split, for its documents.
        references: files that residuals are compared with.
        layer: the layer.
        settings: how to evaluate.
        metrics: where the measurements go.
        sums: folder for the sums per document, `{subject}.safetensors`.
        model: the language model, for training residuals that are not on disk.
        device: where the model computes.

    Returns:
        The measurements by subject.
    """
    cache = open_residuals(residuals, "train", layer, model, device)
    sequences = load_sequences(open_residuals(residuals, "heldout", layer), heldout)
    known = references.load(sequences)
    counts = cache.token_counts(len(known.unigrams))
    tables = {"unigram-residuals": known.unigrams, "conditional-means": known.means.table(len(counts))}
    by_subject = {subject: DocumentSums(sequences.documents) for subject in (*tables, "residuals")}
    rows: dict[str, list[Measurement]] = {}
    for subject, table in tables.items():
        table_fvu(sequences, table, known.means.mean, by_subject[subject])
        scale, fitted = fit_table(table, known.means, counts)
        table_fvu(sequences, fitted, known.means.mean, by_subject[subject], "table_fvu_fitted")
        rows[subject] = [Measurement("table_scale", scale)]
        last_token_detection(sequences, table, settings, by_subject[subject])
    lookups = SuffixRows(sequences, known.means.mean, len(counts))
    for index in tqdm(range(len(cache.shards)), desc="suffixes", unit="shard", disable=None):
        lookups.add(cache.shard(index), cache.n_ctx)
    rows["conditional-means"] += table_fvu_by_order(sequences, lookups, by_subject["conditional-means"])
    del lookups
    rows["unigram-residuals"] += compare_unigrams(known, counts, sequences, settings, by_subject["unigram-residuals"])
    about, kept, in_text = by_subject["residuals"], sequences.kept, sequences.kept.clone()
    in_text[:, 1:] = True  # without BOS where it is not kept
    token_subspaces(sequences, known.unigrams, settings.seed, about)
    pca_fvu(sequences, known.means, about)
    seen = counts[sequences.tokens[kept]]
    about.add("heldout_tokens_seen_in_training", seen > 0, 1, sequences.documents[kept])
    for edge in EDGES:
        about.add("heldout_share_by_count", count_bins(seen) == edge, 1, sequences.documents[kept], at=float(edge))
    about.add("outlier_share_heldout", ~kept[in_text], 1, sequences.documents[in_text])
    for subject, of_documents in by_subject.items():
        of_documents.save(sums / f"{subject}.safetensors")
    rows["residuals"] = [
        *measure_ngrams(known.ngrams, known.unigrams, settings.seed),
        *measure_residual_probe(known.letter_tokens, sequences, settings),
        Measurement("outlier_share_train", cache.n_outliers / (cache.n_kept + cache.n_outliers), n=cache.n_rows),
        Measurement("scale", cache.scale, n=cache.n_kept),
    ]
    measured = {
        subject: [*of_documents.measure(settings.bootstrap, settings.seed), *rows[subject]]
        for subject, of_documents in by_subject.items()
    }
    write_measurements(metrics, {"layer": layer}, measured)
    return measured
