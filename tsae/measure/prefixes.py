"""Unigram prefixes: text between BOS and a token that makes its unigram residual resemble the residuals of text.

In many models the first positions are attention sinks: the residual right after BOS is many times as long as any in
text, and hardly depends on its token. A short prefix avoids the sink. `measure_prefixes` tries several on the most
frequent tokens, and `recommend` chooses one.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tsae.measure.sequences import Sequences, load_sequences, spread
from tsae.measure.sums import DocumentSums
from tsae.measure.token_tables import last_token_detection, table_fvu
from tsae.model.language_model import load_model
from tsae.profile.config import Config
from tsae.profile.evaluation import Evaluation
from tsae.residuals.read import ResidualCache, open_residuals
from tsae.residuals.write_unigrams import last_residuals, rescale_long_rows_
from tsae.store import layout
from tsae.store.files import read_text, write_json
from tsae.text.tokens import load_tokens

CANDIDATES = ("", "\n", "The", " a the of and")
HELDOUT_TOKENS = 32768  # enough for a recommendation
TOLERANCE = 0.02  # differences in FVU, mean over layers, that are not worth a longer prompt
USELESS = 0.9  # FVU above which a table hardly helps


class PrefixMeasurement(NamedTuple):
    """Measurements of one prefix at one layer."""

    prefix: str
    """Text between BOS and the token."""
    n_tokens: int
    """Its length [tokens]."""
    layer: int
    """Layer of the residuals."""
    norm_ratio: float
    """Median norm of unigram residuals / median norm of residuals of text."""
    rescaled: float
    """Share of rows longer than `unigrams.max_norm` times the median row, which are rescaled."""
    scale: float
    """The multiple of the unigram residuals with the least FVU, c below."""
    fvu: float
    """FVU of x_hat = mean x + c (table[t] - mean table[t]), with c fitted, on held-out tokens in the table."""
    last_token_detection: float
    """Share of last residuals of held-out sequences, of tokens in the table, most similar to their token's row."""


class TextResiduals(NamedTuple):
    """Norms of the held-out residuals of one layer."""

    layer: int
    """Layer of the residuals."""
    median_norm: float
    """Median norm of training tokens."""
    bos_ratio: float
    """Median norm at BOS / median_norm."""
    outliers: float
    """Share of tokens, BOS aside, whose norm exceeds `residuals.max_norm` times the median."""


class Prefixes(NamedTuple):
    """Results of `measure_prefixes`."""

    n_rows: int
    """Most frequent training tokens, whose unigram residuals were made."""
    coverage: float
    """Their share of the kept held-out tokens."""
    text: list[TextResiduals]
    """Residuals of text, a row per layer."""
    measured: list[PrefixMeasurement]
    """A row per prefix and layer."""
    recommended: str
    """The prefix that `recommend` chooses."""


def frequent_tokens(ids: Tensor, bos: int, n: int) -> Tensor:
    """(n,) int64, at most n: the most frequent token ids of training sequences (n_seq, n_ctx), without BOS."""
    counts = torch.bincount(ids.flatten().long())
    counts[bos] = 0
    order = torch.argsort(counts, descending=True, stable=True)
    return order[: min(n, int((counts > 0).sum()))]


def in_rows(sequences: Sequences, tokens: Tensor, vocab_size: int) -> Sequences:
    """Sequences whose tokens are indices into `tokens` (n,); other tokens are not kept."""
    places = torch.full((vocab_size,), -1)
    places[tokens] = torch.arange(len(tokens))
    rows = places[sequences.tokens]
    return sequences._replace(tokens=rows.clamp(min=0), kept=sequences.kept & (rows >= 0))


def measure_layer(
    sequences: Sequences, rows: Tensor, median_norm: float, max_norm: float, settings: Evaluation
) -> dict[str, float]:
    """Measure the unigram residuals `rows` (n, d) of one prompt on held-out residuals; `rows` are rescaled in place.

    An SAE scales the table and shifts it by b_dec, so the FVU is that of the best scale and shift.

    Args:
        sequences: held-out sequences of `in_rows`.
        rows: unigram residuals.
        median_norm: median norm of residuals of text.
        max_norm: rows longer than this many times the median row are rescaled to it, as in the table.
        settings: size and seed of the sample for last-token detection.
    """
    norms = rescale_long_rows_(rows, max_norm)
    x, table = sequences.residuals[sequences.kept].float(), rows[sequences.tokens[sequences.kept]]
    mean, mean_row = x.mean(0), table.mean(0)
    centred = table - mean_row
    scale = ((x - mean) * centred).sum(dtype=torch.float64) / centred.square().sum(dtype=torch.float64)
    fitted = mean + scale.float() * (rows - mean_row)
    sums = DocumentSums(sequences.documents)
    last_token_detection(sequences, rows, settings, sums)
    table_fvu(sequences, fitted, mean, sums)
    return {
        "norm_ratio": norms.median_norm / median_norm,
        "rescaled": norms.n_rescaled / len(rows),
        "scale": scale.item(),
        "fvu": sums.ratio("table_fvu").value,
        "last_token_detection": sums.ratio("last_token_detection").value,
    }


def measure_prefixes(
    config: Config,
    configfile: Path,
    results: Path,
    given: Sequence[str],
    n_rows: int,
    device: torch.device | str = "cpu",
) -> Prefixes:
    """Measure `CANDIDATES`, the profile's own prefix and the given ones, and write `prefixes.json`.

    Args:
        config: the profile.
        configfile: its file, for messages.
        results: folder of its results.
        given: further prefixes.
        n_rows: the size of the vocabulary's sample.
        device: where the model computes.

    Raises:
        ValueError: a file is missing, or a prompt is too long for the model; the message says what to do.
    """
    from transformers import AutoTokenizer

    folder, index = results / layout.MODEL, results / layout.RESIDUALS
    train, heldout = results / layout.TRAIN_TOKENS, results / layout.HELDOUT_TOKENS
    for path in (results / layout.MODEL_SOURCE, train, index, heldout):
        if not path.is_file():
            raise ValueError(f"{path} is missing; run first: snakemake --cores all {index} --configfile {configfile}")
    layers = config.residuals.layers
    split = load_tokens(train)
    sample = frequent_tokens(split.ids, split.bos, n_rows)
    caches = {layer: open_residuals(index, "heldout", layer) for layer in layers}
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    prefixes = list(dict.fromkeys((*CANDIDATES, config.unigrams.prefix, *given)))
    ids = {prefix: tokenizer.encode(prefix, add_special_tokens=False) for prefix in prefixes}
    model = load_model(folder, config.model.compatibility_mode, device)
    rows = {
        prefix: last_residuals(model, split.bos, ids[prefix], sample[:, None], layers, config.unigrams.batch_tokens)
        for prefix in prefixes
    }
    text, measured, coverage = [], [], 0.0
    for layer, cache in caches.items():
        text.append(_text_residuals(layer, cache))
        every = spread(load_sequences(cache, heldout), max(1, HELDOUT_TOKENS // cache.n_ctx))
        sequences = in_rows(every, sample, model.vocab_size)
        coverage += int(sequences.kept.sum()) / int(every.kept.sum()) / len(caches)
        for prefix in prefixes:
            values = measure_layer(
                sequences, rows[prefix][layer], cache.median_norm, config.unigrams.max_norm, config.evaluation
            )
            measured.append(PrefixMeasurement(prefix, len(ids[prefix]), layer, **values))
    found = Prefixes(len(sample), coverage, text, measured, recommend(measured))
    write_json(results / layout.PREFIXES, to_json(found))
    return found


def _text_residuals(layer: int, cache: ResidualCache) -> TextResiduals:
    shards = [cache.shard(index) for index in range(len(cache.shards))]
    bos = torch.cat([shard.norms[shard.positions == 0] for shard in shards]).median().item()
    scored = cache.n_rows - cache.n_sequences
    return TextResiduals(layer, cache.median_norm, bos / cache.median_norm, cache.n_outliers / scored)


def mean_fvu(measured: Sequence[PrefixMeasurement]) -> dict[str, float]:
    """Mean FVU over layers, by prefix."""
    by_prefix: dict[str, list[float]] = {}
    for row in measured:
        by_prefix.setdefault(row.prefix, []).append(row.fvu)
    return {prefix: sum(values) / len(values) for prefix, values in by_prefix.items()}


def recommend(measured: Sequence[PrefixMeasurement]) -> str:
    """The shortest prefix whose mean FVU over layers is within `TOLERANCE` of the smallest, the best of equal length."""
    fvu = mean_fvu(measured)
    length = {row.prefix: row.n_tokens for row in measured}
    near = [prefix for prefix in fvu if fvu[prefix] <= min(fvu.values()) + TOLERANCE]
    return min(near, key=lambda prefix: (length[prefix], fvu[prefix]))


def to_json(found: Prefixes) -> dict[str, Any]:
    """The content of `prefixes.json`."""
    rows = {"text": [row._asdict() for row in found.text], "measured": [row._asdict() for row in found.measured]}
    return found._asdict() | rows


def read_prefixes(path: Path) -> Prefixes:
    """Read `prefixes.json`."""
    content = json.loads(read_text(path))
    content["text"] = [TextResiduals(**row) for row in content["text"]]
    content["measured"] = [PrefixMeasurement(**row) for row in content["measured"]]
    return Prefixes(**content)


def describe(found: Prefixes) -> str:
    """The results as Markdown tables, with layers side by side."""
    layers = " / ".join(str(row.layer) for row in found.text)
    of_text = [[str(r.layer), f"{r.median_norm:.4g}", f"{r.bos_ratio:.3g}", f"{r.outliers:.2%}"] for r in found.text]
    of_prefix = []
    for prefix, fvu in mean_fvu(found.measured).items():
        of_layers = [row for row in found.measured if row.prefix == prefix]
        columns = (
            [f"{row.norm_ratio:.2g}" for row in of_layers],
            [f"{row.rescaled:.1%}" for row in of_layers],
            [f"{row.scale:.2f}" for row in of_layers],
            [f"{row.fvu:.2f}" for row in of_layers],
            [f"{fvu:.3f}"],
            [f"{row.last_token_detection:.2f}" for row in of_layers],
        )
        prompt = f"[BOS, {json.dumps(prefix, ensure_ascii=False)}, t]" if prefix else "[BOS, t]"
        of_prefix.append([f"`{prompt}`".replace("|", r"\|"), *(" / ".join(column) for column in columns)])
    heads = ("norm / median norm", "rows rescaled", "best scale", "FVU of the table", "mean", "last-token detection")
    return "\n\n".join(
        [
            _markdown([["layer", "median norm", "BOS / median", "outliers"], *of_text]),
            f"Layers {layers}; the {found.n_rows} most frequent tokens, {found.coverage:.1%} of held-out tokens:",
            _markdown([["prompt", *heads], *of_prefix]),
        ]
    )


def _markdown(rows: list[list[str]]) -> str:
    """A table from its header and rows, padded to columns; all but the first are right-aligned."""
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [rows[0], rule, *rows[1:]]
    return "\n".join(
        "| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + " |" for line in lines
    )


def advice(found: Prefixes, current: str) -> str:
    """The setting to make, and the reason; `current` is the profile's prefix."""
    fvu = mean_fvu(found.measured)
    best = min(fvu, key=lambda prefix: fvu[prefix])
    chosen = found.recommended
    lines = [
        f"unigrams.prefix: {json.dumps(chosen)}, {'as it is' if chosen == current else f'instead of {json.dumps(current)}'}.",
        f"The shortest prompt whose FVU, mean over layers ({fvu[chosen]:.3f}), is within {TOLERANCE:g} of the smallest "
        f"({fvu[best]:.3f}, {json.dumps(best)}).",
    ]
    if fvu[chosen] > USELESS:
        lines.append(
            "No prefix tried gives a table that says much more than the mean residual: try others with --prefix."
        )
    return "\n".join(lines)
