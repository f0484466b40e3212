"""What every SAE of a layer is compared with: the model's loss with the residual intact or ablated, and tables alone."""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from tsae.comparisons import References, compare_unigrams
from tsae.conditional_means import fit_table
from tsae.config import Evaluation
from tsae.counts import EDGES, count_bins
from tsae.files import REMEDY, load_as, save_tensors
from tsae.metrics import Measurement, max_cosine_similarity, reconstruction_errors
from tsae.models import LanguageModel, load_model
from tsae.ngrams import measure_ngrams
from tsae.residuals import ResidualCache, open_residuals
from tsae.shards import evenly_spaced
from tsae.sums import DocumentSums
from tsae.tokens import load_tokens

ABLATIONS = ("clean", "zero", "mean")


class Sequences(NamedTuple):
    """Held-out sequences at one layer."""

    residuals: Tensor  # (n_seq, n_ctx, d) float16
    tokens: Tensor  # (n_seq, n_ctx) int64
    kept: Tensor  # (n_seq, n_ctx) bool: neither BOS nor of outlying norm
    documents: Tensor  # (n_seq, n_ctx) int64: line of the token's document; BOS counts with the token behind it


def load_sequences(cache: ResidualCache, tokens: Path) -> Sequences:
    """Read all sequences of a split, whose token ids and documents are in the file `tokens`.

    Raises:
        ValueError: a file is missing or damaged, or the residuals are of other tokens.
    """
    split = load_tokens(tokens)
    shards = [cache.shard(index) for index in range(len(cache.shards))]
    shape = (cache.n_sequences, cache.n_ctx)
    ids = torch.cat([shard.tokens for shard in shards]).view(shape)
    if not torch.equal(ids, split.ids):
        raise ValueError(
            f"{tokens}: its tokens {tuple(split.ids.shape)} are not those {shape} of {cache.index}; cache the residuals again"
        )
    documents = split.documents.long()
    return Sequences(
        torch.cat([shard.residuals for shard in shards]).view(*shape, cache.d_model),
        ids.long(),
        torch.cat([shard.kept for shard in shards]).view(shape),
        torch.where(documents < 0, documents.roll(-1, 1), documents),
    )


def spread(sequences: Sequences, limit: int | None) -> Sequences:
    """At most `limit` of the sequences, evenly spaced; None: all."""
    chosen = evenly_spaced(len(sequences.tokens), limit)
    return sequences if len(chosen) == len(sequences.tokens) else Sequences(*(part[chosen] for part in sequences))


def next_token_losses(model: LanguageModel, residuals: Tensor, tokens: Tensor, layer: int) -> Tensor:
    """Cross-entropy of every next token when the model goes on from these residuals.

    Args:
        model: the language model.
        residuals: (batch, pos, d) float32, entering block `layer`.
        tokens: (batch, pos) int64, on the model's device.
        layer: the block to start from; those below do not run.

    Returns:
        (batch, pos - 1) [nats], on the model's device.
    """
    logits = model.logits_from(residuals, layer)[:, :-1]
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].flatten(), reduction="none").view(
        len(tokens), -1
    )


def measure_ablations(
    model_folder: Path,
    residuals: Path,
    heldout_tokens: Path,
    layer: int,
    settings: Evaluation,
    compatibility_mode: bool,
    output: Path,
    device: torch.device | str = "cpu",
) -> None:
    """Write the loss of every held-out prediction with the residuals intact, set to zero, and set to the training mean.

    The output holds `clean`, `zero`, `mean`, each (n_seq, n_ctx - 1) float32 [nats], and the mask `scored` of the same shape: a
    prediction is scored if the token that it is made from is kept. Like an SAE's reconstruction, an ablation leaves BOS and
    outlying tokens as they are.
    """
    model = load_model(model_folder, compatibility_mode, device)
    cache = open_residuals(residuals, "train", layer)
    heldout = load_sequences(open_residuals(residuals, "heldout", layer), heldout_tokens)
    sequences = spread(heldout, settings.ce_sequences)
    replacements = {"zero": torch.zeros(cache.d_model, device=device), "mean": cache.mean().to(device)}
    losses: dict[str, list[Tensor]] = {name: [] for name in ABLATIONS}
    progress = tqdm(
        total=sequences.tokens.numel(), desc=f"ablations of layer {layer}", unit="tok", unit_scale=True, disable=None
    )
    for batch in zip(*(part.split(settings.batch_sequences) for part in sequences[:3]), strict=True):
        x, tokens, kept = (part.to(device) for part in batch)
        x = x.float()
        for name in ABLATIONS:
            patched = x if name == "clean" else torch.where(kept[..., None], replacements[name], x)
            losses[name].append(next_token_losses(model, patched, tokens, layer).cpu())
        progress.update(tokens.numel())
    progress.close()
    save_tensors(
        output, {"scored": sequences.kept[:, :-1], **{name: torch.cat(parts) for name, parts in losses.items()}}
    )


def load_ablations(path: Path, sequences: Sequences) -> dict[str, Tensor]:
    """Read what `measure_ablations` wrote of these sequences: `clean`, `zero`, `mean`, each (n_seq, n_ctx - 1) float32 [nats].

    Raises:
        ValueError: the file is missing, damaged, or of other sequences.
    """
    scored = sequences.kept[:, :-1]
    shape = tuple(scored.shape)
    found = load_as(path, {"scored": (shape, torch.bool), **dict.fromkeys(ABLATIONS, (shape, torch.float32))})
    if not torch.equal(found.pop("scored"), scored):
        raise ValueError(f"{path}: the losses of other tokens; {REMEDY}")
    return found


def last_token_detection(sequences: Sequences, table: Tensor, settings: Evaluation, sums: DocumentSums) -> None:
    """Sum how often the row most similar to a residual, by cosine, is that of its own token (C9).

    `last_token_detection` is measured on the last row of every sequence, `last_token_detection_any_position` on a
    sample of all positions; both leave out tokens of outlying norm.

    Args:
        sequences: held-out sequences.
        table: (V, d), a row per token; NaN rows are never chosen.
        settings: size and seed of the sample.
        sums: where the sums go.
    """
    last = torch.zeros_like(sequences.kept)
    last[:, -1] = True
    places = sequences.kept.flatten().nonzero().flatten()
    generator = torch.Generator().manual_seed(settings.seed)
    sample = places[torch.randperm(len(places), generator=generator)[: settings.detection_tokens]]
    for metric, chosen in (
        ("last_token_detection", (last & sequences.kept).flatten().nonzero().flatten()),
        ("last_token_detection_any_position", sample),
    ):
        queries = sequences.residuals.flatten(0, 1)[chosen].float()
        nearest = max_cosine_similarity(queries.to(table.device), table)[1].cpu()
        hits = nearest == sequences.tokens.flatten()[chosen]
        sums.add(metric, hits, 1, sequences.documents.flatten()[chosen])


def table_fvu(sequences: Sequences, table: Tensor, mean: Tensor, sums: DocumentSums, metric: str = "table_fvu") -> None:
    """Sum the FVU of x_hat = table[t] at kept tokens, before any SAE.

    Args:
        sequences: held-out sequences.
        table: (V, d), a row per token.
        mean: (d,), what tokens get whose row is NaN.
        sums: where the sums go.
        metric: what they are called.
    """
    x, tokens = sequences.residuals[sequences.kept].float(), sequences.tokens[sequences.kept]
    predicted = table[tokens]
    errors = reconstruction_errors(x, torch.where(predicted.isnan(), mean, predicted))
    sums.add(metric, errors.squared_error, errors.squared_deviation, sequences.documents[sequences.kept])


def token_subspaces(sequences: Sequences, unigram_table: Tensor, seed: int, sums: DocumentSums) -> None:
    """Sum the cosine similarities of residuals to their tokens' unigram residuals, by context length (C12).

    Context length counts the tokens up to and including it, without BOS, and `at` is the upper edge of a bin: 1, 2, 3 to 4,
    5 to 8, ... `residual_other_cosine`, the floor, takes the unigram residual of another held-out token at random: residuals
    share a large mean.
    """
    sequence, position = sequences.kept.nonzero(as_tuple=True)
    x, tokens = sequences.residuals[sequence, position].float(), sequences.tokens[sequence, position]
    other = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))]
    cosines = {
        "residual_unigram_cosine": F.cosine_similarity(x, unigram_table[tokens], dim=1),
        "residual_other_cosine": F.cosine_similarity(x, unigram_table[other], dim=1),
    }
    documents = sequences.documents[sequence, position]
    bins = torch.ceil(torch.log2(position.double()))
    for metric, values in cosines.items():
        for edge in bins[position > 0].unique().tolist():  # a kept BOS has no context
            inside = bins == edge
            sums.add(metric, values[inside], 1, documents[inside], at=2.0**edge)


def measure_baselines(
    residuals: Path,
    heldout_tokens: Path,
    references: References,
    layer: int,
    settings: Evaluation,
    sums_folder: Path,
) -> dict[str, list[Measurement]]:
    """Measure held-out residuals, and what tables alone say of them, before any SAE: unigram residuals and conditional means.

    A token that the table does not have gets the mean residual. The sums per document go to `{subject}.safetensors` in
    `sums_folder`.

    Args:
        residuals: index of the residual cache.
        heldout_tokens: the held-out split, for its documents.
        references: what residuals are compared with.
        layer: the layer.
        settings: how to evaluate.
        sums_folder: where the sums go.

    Returns:
        Measurements by subject.
    """
    cache, heldout = (open_residuals(residuals, split, layer) for split in ("train", "heldout"))
    sequences, known = load_sequences(heldout, heldout_tokens), references.load()
    counts = cache.token_counts(len(known.unigrams))
    tables = {"unigram-residuals": known.unigrams, "conditional-means": known.means.table(len(counts))}
    sums = {subject: DocumentSums(sequences.documents) for subject in (*tables, "residuals")}
    rows: dict[str, list[Measurement]] = {}
    for subject, table in tables.items():
        table_fvu(sequences, table, known.means.mean, sums[subject])
        scale, fitted = fit_table(table, known.means, counts)
        table_fvu(sequences, fitted, known.means.mean, sums[subject], "table_fvu_fitted")
        rows[subject] = [Measurement("table_scale", scale)]
        last_token_detection(sequences, table, settings, sums[subject])
    rows["unigram-residuals"] += compare_unigrams(known, counts, sequences, settings, sums["unigram-residuals"])
    about, kept, in_text = sums["residuals"], sequences.kept, sequences.kept.clone()
    in_text[:, 1:] = True  # a BOS that is not kept is no outlier
    token_subspaces(sequences, known.unigrams, settings.seed, about)
    seen = counts[sequences.tokens[kept]]
    about.add("heldout_tokens_seen_in_training", seen > 0, 1, sequences.documents[kept])
    for edge in EDGES:
        about.add("heldout_share_by_count", count_bins(seen) == edge, 1, sequences.documents[kept], at=float(edge))
    about.add("outlier_share_heldout", ~kept[in_text], 1, sequences.documents[in_text])
    for subject in sums:
        sums[subject].save(sums_folder / f"{subject}.safetensors")
    rows["residuals"] = [
        *measure_ngrams(known.ngrams, known.unigrams, settings.seed),
        Measurement("outlier_share_train", cache.n_outliers / (cache.n_kept + cache.n_outliers), n=cache.n_rows),
        Measurement("scale", cache.scale, n=cache.n_kept),
    ]
    return {subject: [*sums[subject].measure(settings.bootstrap, settings.seed), *rows[subject]] for subject in sums}
