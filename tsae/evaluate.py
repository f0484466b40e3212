"""Evaluation of one SAE on held-out tokens."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from tsae.baselines import (
    ABLATIONS,
    Sequences,
    last_token_detection,
    load_ablations,
    load_sequences,
    next_token_losses,
    spread,
    table_fvu,
)
from tsae.comparisons import References, compare_features, compare_table
from tsae.conditional_means import fit_table
from tsae.config import Evaluation, Features
from tsae.counts import add_by_count
from tsae.features import Firings, feature_statistics, firings_of, simple_shares, write_features
from tsae.metrics import (
    THRESHOLDS,
    Measurement,
    failure,
    reconstruction_errors,
    share,
)
from tsae.models import LanguageModel, load_model
from tsae.residuals import open_residuals
from tsae.sae import SAE, check_fits, load, load_centre, load_last_fired
from tsae.similarity import Similar, measure_feature_similarity, most_similar_rows
from tsae.sizes import measure_size
from tsae.start import offset_of
from tsae.sums import DocumentSums

SEEN = 1  # feature statistics name the most similar row among tokens seen in training
DEAD_WINDOW_ORIGINAL = 3 * 4096  # the authors' "dead": silent for three of their batches [tokens]


def measure_reconstruction(
    sae: SAE,
    sequences: Sequences,
    settings: Evaluation,
    sums: DocumentSums,
    firings: list[Firings] | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """Measure reconstruction and sparsity on kept tokens.

    Args:
        sae: the SAE, speaking raw residuals.
        sequences: held-out sequences.
        settings: how many of them are encoded together.
        sums: where the sums go.
        firings: where the non-zero activations go, in parts, if they are wanted.
        counts: (V,) how often each token was seen in training, if NMSE by count is wanted.

    Returns:
        (F,) int64, how many tokens each feature fired on.
    """
    n_sequences, n_ctx = sequences.tokens.shape
    mean = sequences.residuals[sequences.kept].double().mean(0).to(sae.device)
    parts: dict[str, list[Tensor]] = defaultdict(list)
    fired = torch.zeros(sae.n_features, dtype=torch.int64)
    for chosen in torch.arange(n_sequences).split(settings.batch_sequences):
        kept = sequences.kept[chosen]
        x = sequences.residuals[chosen][kept].to(sae.device).float()
        tokens = sequences.tokens[chosen][kept].to(sae.device)
        active = sae.active(x, tokens)
        errors = reconstruction_errors(x, sae.decode_active(active, sae.token_biases(tokens)), mean)
        rows, nonzero = active.rows, active.values != 0
        fired += torch.bincount(active.features[nonzero], minlength=sae.n_features).cpu()
        for name, values in (
            ("nmse", errors.nmse),
            ("nmse_original", errors.nmse_original),
            ("squared_error", errors.squared_error),
            ("squared_deviation", errors.squared_deviation),
            ("l0", torch.bincount(rows[nonzero], minlength=len(x))),
            ("l0_original", torch.bincount(rows[active.values > 0], minlength=len(x))),
        ):
            parts[name].append(values.cpu())
        if firings is not None:
            firings.append(firings_of(active, (chosen[:, None] * n_ctx + torch.arange(n_ctx))[kept]))
    per_token, documents = {name: torch.cat(parts[name]) for name in parts}, sequences.documents[sequences.kept]
    for name in ("nmse", "nmse_original", "l0", "l0_original"):
        sums.add(name, per_token[name], 1, documents)
    sums.add("fvu", per_token["squared_error"], per_token["squared_deviation"], documents)
    sums.add("mse", per_token["squared_error"], sequences.residuals.shape[-1], documents)
    if counts is not None:
        add_by_count(sums, "nmse_by_count", per_token["nmse"], counts[sequences.tokens[sequences.kept]], documents)
    return fired


def measure_dead_on_heldout(fired: Tensor, settings: Evaluation) -> Measurement:
    """Share of features that fired on no held-out token: `fired` (F,) counts the tokens."""
    return _share("dead_heldout", fired == 0, settings)


def measure_start(sae: SAE) -> list[Measurement]:
    """How far off centre the encoder's input started, of an SAE that was trained here."""
    share = sae.metadata.get("encoder_offset_at_start")
    return [] if share is None else [Measurement("encoder_offset_at_start", share)]


def measure_offset(sae: SAE, folder: Path, sequences: Sequences) -> list[Measurement]:
    """How far off centre the input of the trained encoder is on held-out tokens, of an SAE that was trained here.

    Of an encoder that sees what the table leaves, the mean moves with the table, and the centre does not.
    """
    if "tokens_trained" not in sae.metadata:
        return []
    centre = load_centre(folder)
    # `load` has folded the centre into b_enc, and b_dec is taken away instead.
    moved = torch.zeros_like(sae.b_dec) if centre is None else sae.b_dec - centre.to(sae.device)

    def inputs() -> Iterator[Tensor]:
        for chosen in torch.arange(len(sequences.tokens)).split(64):
            kept = sequences.kept[chosen]
            x = sequences.residuals[chosen][kept].to(sae.device).float()
            yield sae.encoder_input(x, sequences.tokens[chosen][kept].to(sae.device)) + moved

    return [Measurement("encoder_offset", offset_of(inputs()).share)]


def measure_dead_in_training(sae: SAE, last_fired: Tensor, settings: Evaluation) -> list[Measurement]:
    """Share of features that did not fire in the last tokens of training: in the configured window and in the authors'."""
    silent_for = sae.metadata["tokens_trained"] - last_fired
    never = last_fired < 0
    return [
        _share(metric, never | (silent_for >= window), settings)
        for metric, window in (
            ("dead_training", settings.dead_window),
            ("dead_training_original", DEAD_WINDOW_ORIGINAL),
        )
    ]


def patched_losses(
    sae: SAE, model: LanguageModel, sequences: Sequences, layer: int, settings: Evaluation, label: str = "loss"
) -> Tensor:
    """Loss of every prediction (n_seq, n_ctx - 1) float32 [nats] with reconstructions for the residuals of kept tokens."""
    parts = []
    progress = tqdm(total=sequences.tokens.numel(), desc=label, unit="tok", unit_scale=True, disable=None)
    for batch in zip(*(part.split(settings.batch_sequences) for part in sequences[:3]), strict=True):
        x, tokens, kept = (part.to(sae.device) for part in batch)
        patched = x.to(torch.float32, copy=True)
        patched[kept] = sae(patched[kept], tokens[kept])
        parts.append(next_token_losses(model, patched, tokens, layer).cpu())
        progress.update(tokens.numel())
    progress.close()
    return torch.cat(parts)


def measure_loss(
    sae: SAE,
    model: LanguageModel,
    sequences: Sequences,
    ablations: Mapping[str, Tensor],
    layer: int,
    settings: Evaluation,
    sums: DocumentSums,
    label: str = "loss",
) -> None:
    """Measure the model's loss when the SAE's reconstructions stand in for the residuals of kept tokens.

    Scored are the predictions made from kept tokens, each with the document of the token that it is made from.

    Args:
        sae: the SAE, speaking raw residuals.
        model: the language model.
        sequences: held-out sequences.
        ablations: the losses of their predictions without an SAE, as of `load_ablations`.
        layer: the SAE's.
        settings: how many sequences share a forward pass.
        sums: where the sums go.
        label: of the progress.
    """
    scored = sequences.kept[:, :-1]
    documents = sequences.documents[:, :-1][scored]
    clean, zero, mean = (ablations[name][scored].double() for name in ABLATIONS)
    ce = patched_losses(sae, model, sequences, layer, settings, label)[scored].double()
    for metric, numerator, denominator in (
        ("ce", ce, 1.0),
        ("ce_clean", clean, 1.0),
        ("ce_added", ce - clean, clean),
        ("ce_added_original", ce - clean, clean + 0.001),
        ("ce_added_nats", ce - clean, 1.0),
        # 1 - (CE - clean) / (ablated - clean), as one ratio
        ("ce_recovered_zero", zero - ce, zero - clean),
        ("ce_recovered_mean", mean - ce, mean - clean),
    ):
        sums.add(metric, numerator, denominator, documents)


def _share(
    metric: str,
    hits: Tensor,
    settings: Evaluation,
    at: float | None = None,
    min_count: int | None = None,
    over: str = "features",
) -> Measurement:
    return share(metric, hits, settings.bootstrap, settings.seed, at, min_count, over)


def evaluate(
    sae_folder: Path,
    token_bias_folder: Path,
    model_folder: Path,
    residuals: Path,
    heldout_tokens: Path,
    references: References,
    ablations: Path,
    settings: Evaluation,
    features: Features,
    min_firings: int,
    compatibility_mode: bool,
    features_output: Path,
    sums_output: Path,
    device: torch.device | str = "cpu",
) -> list[Measurement]:
    """Measure an SAE in every way, and write the statistics of its features and the sums per document.

    Args:
        sae_folder: checkpoint.
        token_bias_folder: checkpoint of the tokenized SAE whose table the features are compared with.
        model_folder: the language model.
        residuals: index of the residual cache.
        heldout_tokens: the held-out split, for its documents.
        references: what the SAE is compared with.
        ablations: losses of the layer without an SAE.
        settings: how to evaluate.
        features: which statistics of features to write.
        min_firings: features that fire less often are not judged simple or not.
        compatibility_mode: see the model's configuration.
        features_output: where the statistics of features go.
        sums_output: where the sums of metrics over held-out tokens go; of an SAE whose training was stopped, none.
        device: where to compute.

    Raises:
        ValueError: the checkpoint of the table is of a baseline, or an SAE is of another model than the residuals.
    """
    sae, reference = load(sae_folder).to(device), load(token_bias_folder)
    if reference.W_lookup is None:
        raise ValueError(f"{token_bias_folder}: evaluation.token_biases names a baseline; it has no token-biases")
    layer = sae.metadata["layer"]
    cache = open_residuals(residuals, "heldout", layer)
    check_fits(sae, sae_folder, cache.d_model, cache.vocab_size)
    check_fits(reference, token_bias_folder, cache.d_model, cache.vocab_size)
    sequences, known = load_sequences(cache, heldout_tokens), references.load()
    sums, firings = DocumentSums(sequences.documents), list[Firings]()
    counts = open_residuals(residuals, "train", layer).token_counts(len(known.unigrams))
    fired = measure_reconstruction(sae, sequences, settings, sums, firings, counts)
    tables = {"token_bias": reference.W_lookup, "unigram": known.unigrams}
    if failure(reference.metadata):
        del tables["token_bias"]  # its table is not trained
    similar = {
        name: most_similar_rows(sae.W_dec, table, counts, {*settings.min_counts, SEEN})
        for name, table in tables.items()
    }
    not_compared = Similar(torch.full((sae.n_features,), torch.nan), torch.zeros(sae.n_features, dtype=torch.int64))
    statistics = feature_statistics(
        sae.n_features,
        firings,
        sequences,
        nearest_unigrams=similar["unigram"][SEEN],
        nearest_token_biases=similar.get("token_bias", {SEEN: not_compared})[SEEN],
        settings=features,
    )
    write_features(features_output, statistics)
    if stopped := failure(sae.metadata):
        DocumentSums(sequences.documents).save(sums_output)
        return stopped
    # Of an SAE that was trained elsewhere it is not known when its features fired.
    trained_here = "tokens_trained" in sae.metadata
    rows = [
        measure_dead_on_heldout(fired, settings),
        *measure_start(sae),
        *measure_offset(sae, sae_folder, sequences),
        *(measure_dead_in_training(sae, load_last_fired(sae_folder), settings) if trained_here else ()),
        *(m for name in similar for m in measure_feature_similarity(name, similar[name], fired > 0, settings)),
        *simple_shares(statistics, min_firings, THRESHOLDS, settings.bootstrap, settings.seed),
        *compare_features(sae.W_dec, fired > 0, known, counts, settings),
        *compare_table(sae, known, counts, sequences, settings, sums),
        *measure_size(sae, sums.ratio("l0").value, known.embedding.shape[1]),
    ]
    if sae.W_lookup is not None:
        last_token_detection(sequences, sae.W_lookup, settings, sums)
        scale, fitted = fit_table(sae.W_lookup.cpu(), known.means, counts)
        table_fvu(sequences, fitted, known.means.mean, sums, "table_fvu_fitted")
        rows.append(Measurement("table_scale", scale))
    del reference, known, tables, similar, firings
    model = load_model(model_folder, compatibility_mode, device)
    scored = spread(sequences, settings.ce_sequences)
    with torch.inference_mode():
        measure_loss(sae, model, scored, load_ablations(ablations, scored), layer, settings, sums)
    sums.save(sums_output)
    return [*sums.measure(settings.bootstrap, settings.seed), *rows]
