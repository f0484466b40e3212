"""What every SAE of a layer is compared with: the model's loss with the residual intact or ablated, and tables alone."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from tsae.config import Evaluation
from tsae.files import load_as, save_tensors
from tsae.lookup import load_unigrams
from tsae.metrics import Bootstrap, Measurement, max_cosine_similarity, median, reconstruction_errors
from tsae.models import LanguageModel, load_model
from tsae.residuals import ResidualCache, open_residuals
from tsae.shards import evenly_spaced


class Sequences(NamedTuple):
    """Held-out sequences at one layer."""

    residuals: Tensor  # (n_seq, n_ctx, d) float16
    tokens: Tensor  # (n_seq, n_ctx) int64
    kept: Tensor  # (n_seq, n_ctx) bool: neither BOS nor of outlying norm


def load_sequences(cache: ResidualCache) -> Sequences:
    """Read all sequences of a split."""
    shards = [cache.shard(index) for index in range(len(cache.shards))]
    shape = (cache.n_sequences, cache.n_ctx)
    return Sequences(
        torch.cat([shard.residuals for shard in shards]).view(*shape, cache.d_model),
        torch.cat([shard.tokens for shard in shards]).view(shape).long(),
        torch.cat([shard.kept for shard in shards]).view(shape),
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
    layer: int,
    settings: Evaluation,
    compatibility_mode: bool,
    output: Path,
    device: torch.device | str = "cpu",
) -> None:
    """Write the loss of each held-out sequence with the residuals intact, set to zero, and set to the training mean.

    The output holds `count`, `clean`, `zero`, `mean`, each (n_seq,) float64: sums over scored predictions [nats].
    Like an SAE's reconstruction, an ablation leaves BOS and outlying tokens as they are.
    """
    model = load_model(model_folder, compatibility_mode, device)
    cache = open_residuals(residuals, "train", layer)
    sequences = spread(load_sequences(open_residuals(residuals, "heldout", layer)), settings.ce_sequences)
    replacements = {"zero": torch.zeros(cache.d_model, device=device), "mean": cache.mean().to(device)}
    sums: dict[str, list[Tensor]] = {"count": [], "clean": [], "zero": [], "mean": []}
    progress = tqdm(
        total=sequences.tokens.numel(), desc=f"ablations of layer {layer}", unit="tok", unit_scale=True, disable=None
    )
    for batch in zip(*(part.split(settings.batch_sequences) for part in sequences), strict=True):
        x, tokens, kept = (part.to(device) for part in batch)
        scored, x = kept[:, :-1], x.float()
        sums["count"].append(scored.sum(1).double())
        for name in ("clean", "zero", "mean"):
            patched = x if name == "clean" else torch.where(kept[..., None], replacements[name], x)
            losses = next_token_losses(model, patched, tokens, layer)
            sums[name].append((losses * scored).double().sum(1))
        progress.update(tokens.numel())
    progress.close()
    save_tensors(output, {name: torch.cat(parts) for name, parts in sums.items()})


def load_ablations(path: Path, n_sequences: int) -> dict[str, Tensor]:
    """Read what `measure_ablations` wrote: `count`, `clean`, `zero`, `mean`, each (n_sequences,) float64.

    Raises:
        ValueError: the file is missing, damaged, or of other sequences.
    """
    return load_as(path, dict.fromkeys(("count", "clean", "zero", "mean"), ((n_sequences,), torch.float64)))


def last_token_detection(sequences: Sequences, table: Tensor, settings: Evaluation) -> list[Measurement]:
    """How often the row most similar to a residual, by cosine, is that of its own token (C9).

    `last_token_detection` is measured on the last row of every sequence, `last_token_detection_any_position` on a
    sample of all positions; both leave out tokens of outlying norm.

    Args:
        sequences: held-out sequences.
        table: (V, d), a row per token; NaN rows are never chosen.
        settings: size of the sample and of the bootstrap.
    """
    n_sequences, n_ctx = sequences.tokens.shape
    last = torch.zeros_like(sequences.kept)
    last[:, -1] = True
    places = sequences.kept.flatten().nonzero().flatten()
    generator = torch.Generator().manual_seed(settings.seed)
    sample = places[torch.randperm(len(places), generator=generator)[: settings.detection_tokens]]
    bootstrap = Bootstrap(n_sequences, settings.bootstrap, settings.seed)
    rows = []
    for metric, chosen in (
        ("last_token_detection", (last & sequences.kept).flatten().nonzero().flatten()),
        ("last_token_detection_any_position", sample),
    ):
        queries = sequences.residuals.flatten(0, 1)[chosen].float()
        nearest = max_cosine_similarity(queries.to(table.device), table)[1].cpu()
        hits = nearest == sequences.tokens.flatten()[chosen]
        sequence = chosen // n_ctx
        numerator = torch.zeros(n_sequences, dtype=torch.float64).index_add_(0, sequence, hits.double())
        rows.append(bootstrap.ratio(metric, numerator, torch.bincount(sequence, minlength=n_sequences), len(chosen)))
    return rows


def table_fvu(sequences: Sequences, table: Tensor, mean: Tensor, bootstrap: Bootstrap) -> Measurement:
    """FVU of x_hat = table[t] at kept tokens, before any SAE.

    Args:
        sequences: held-out sequences.
        table: (V, d), a row per token.
        mean: (d,), what tokens get whose row is NaN.
        bootstrap: resamples of these sequences.
    """
    x, tokens = sequences.residuals[sequences.kept].float(), sequences.tokens[sequences.kept]
    sequence = sequences.kept.nonzero()[:, 0]
    predicted = table[tokens]
    errors = reconstruction_errors(x, torch.where(predicted.isnan(), mean, predicted))
    error, deviation = (
        torch.zeros(len(sequences.tokens), dtype=torch.float64).index_add_(0, sequence, part)
        for part in (errors.squared_error, errors.squared_deviation)
    )
    return bootstrap.ratio("table_fvu", error, deviation, n=len(tokens))


def conditional_means(cache: ResidualCache, counts: Tensor) -> Tensor:
    """Mean training residual of every token: (V, d), NaN where the token's count in `counts` (V,) is zero."""
    sums = torch.zeros(len(counts), cache.d_model)
    for index in range(len(cache.shards)):
        shard = cache.shard(index)
        sums.index_add_(0, shard.tokens[shard.kept], shard.residuals[shard.kept].float())
    return sums / counts.where(counts > 0, torch.nan)[:, None]


def token_subspaces(sequences: Sequences, unigram_table: Tensor, seed: int) -> list[Measurement]:
    """Median cosine similarity of a residual to its token's unigram residual, by context length (C12).

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
    bins = torch.ceil(torch.log2(position.double()))
    return [
        replace(median(metric, values[bins == edge]), at=2.0**edge)
        for metric, values in cosines.items()
        for edge in bins[position > 0].unique().tolist()  # a kept BOS has no context
    ]


def measure_baselines(
    residuals: Path,
    unigrams: Path,
    layer: int,
    settings: Evaluation,
    model_folder: Path | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, list[Measurement]]:
    """Measure held-out residuals, and what tables alone say of them, before any SAE: unigram residuals and conditional means.

    A token that the table does not have gets the mean residual. The model computes, on a
    device, the residuals that are not on disk.
    """
    cache = open_residuals(residuals, "train", layer, model_folder, device)
    heldout = open_residuals(residuals, "heldout", layer)
    sequences = load_sequences(heldout)
    unigram_table = load_unigrams(unigrams)
    counts = cache.token_counts(len(unigram_table))
    mean_table, mean = conditional_means(cache, counts), cache.mean()
    bootstrap = Bootstrap(heldout.n_sequences, settings.bootstrap, settings.seed)
    tokens = sequences.tokens[sequences.kept]
    measured = {
        subject: [
            table_fvu(sequences, table, mean, bootstrap),
            *last_token_detection(sequences, table, settings),
        ]
        for subject, table in (("unigram-residuals", unigram_table), ("conditional-means", mean_table))
    }
    measured["residuals"] = [
        *token_subspaces(sequences, unigram_table, settings.seed),
        Measurement("heldout_tokens_seen_in_training", (counts[tokens] > 0).double().mean().item(), n=len(tokens)),
        Measurement("outlier_share_train", cache.n_outliers / (cache.n_kept + cache.n_outliers), n=cache.n_rows),
        Measurement(
            "outlier_share_heldout", heldout.n_outliers / (heldout.n_kept + heldout.n_outliers), n=heldout.n_rows
        ),
        Measurement("scale", cache.scale, n=cache.n_kept),
    ]
    return measured
