"""Whether one feature fires on every token of a phrase (C10).

An SAE has a feature for " Golden Gate Bridge" that fires on " Golden", on " Gate" and on " Bridge", each time partly because
of that token itself. Take the unigram direction out of the encoder's input and such a feature may go silent on its own
tokens. To measure it without choosing features by hand: frequent phrases are found in the training tokens, and for each
the feature is sought that best covers it. On place j of a phrase a feature has the recall

    recall_j = share of the phrase's occurrences in which the feature fires on the j-th token

and over the phrase the score min_j recall_j - base rate, the base rate being the share of all tokens on which it fires.
The subtraction (Youden's J of the weakest place) keeps features that fire everywhere from covering every phrase: a score
of 1 belongs to a feature that fires on every token of every occurrence and nowhere else, 0 to one that does not tell the
phrase's weakest token from any other. The feature is chosen on half of the occurrences and scored on the other half, since the
best of thousands on few occurrences would be partly luck; a held-out score can therefore be below zero.

Phrases and residuals are those of the training split, where phrases recur often enough; every SAE has seen the same ones.
Only SAEs of equally many features, as many of them active, compare: the occurrences of a phrase have similar residuals, so
that a dictionary of random directions, too, has one that fires on most of them, and the more so the larger it is.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tsae.config import Phrases
from tsae.files import check, read_text, write_json, write_text
from tsae.metrics import Bootstrap, Measurement, failure
from tsae.residuals import ResidualCache, open_residuals
from tsae.sae import SAE, check_fits, load
from tsae.sweep import Job

LOG = logging.getLogger(__name__)
BATCH_TOKENS = 1024  # encoded together, which bounds the memory of pre-activations
# Of a candidate that shares tokens with better phrases in more of its occurrences than this, little is left of its own.
MAX_OVERLAP = 0.5
COLUMNS = ["text", "ids", "count", "n_measured", "feature", "base_rate", "recall", "score"]


class Phrase(NamedTuple):
    """A phrase and some of its occurrences in the training split."""

    tokens: tuple[int, ...]
    """Token ids."""
    text: str
    """The tokens decoded, leading space included."""
    n_occurrences: int
    """Occurrences in the whole split."""
    sequences: tuple[int, ...]
    """Sequence of each occurrence that is kept."""
    positions: tuple[int, ...]
    """Position of its first token."""


class _Candidate(NamedTuple):
    nats_saved: float
    tokens: tuple[int, ...]
    starts: np.ndarray  # places of the first token, sequence * n_ctx + position


def find_phrases(ids: Tensor, documents: Tensor, decode: Callable[[list[int]], str], settings: Phrases) -> list[Phrase]:
    """Frequent phrases, best first: runs of letters-only tokens from the start of a word to the end of a word.

    Candidates of n tokens are ranked by count * log(p(phrase) / (p(token_1) ... p(token_n))): the nats that are saved by
    coding the phrase as one unit. Of candidates that overlap in the text, the one ranked higher stays.

    Args:
        ids: (n_seq, n_ctx) int32.
        documents: (n_seq, n_ctx) int32, each token's document; -1 at BOS.
        decode: text of token ids; of a single token too it must keep the leading space.
        settings: lengths, frequencies and numbers.

    Returns:
        At most `settings.n_phrases` phrases, each with at most `settings.max_occurrences` seeded occurrences.

    Raises:
        ValueError: shapes differ.
    """
    if ids.shape != documents.shape:
        raise ValueError(f"documents of shape {tuple(documents.shape)} for tokens of shape {tuple(ids.shape)}")
    n_ctx = ids.shape[1]
    tokens, lines = (column.numpy().astype(np.int64).ravel() for column in (ids, documents))
    candidates = _find_candidates(tokens, lines, decode, settings)
    rng = np.random.default_rng(settings.seed)
    covered = np.zeros(len(tokens), dtype=bool)
    phrases: list[Phrase] = []
    for candidate in sorted(candidates, key=lambda c: (-c.nats_saved, c.tokens)):
        places = candidate.starts[:, None] + np.arange(len(candidate.tokens))
        if covered[places].any(1).mean() > MAX_OVERLAP:
            continue
        covered[places] = True
        starts, count = candidate.starts, len(candidate.starts)
        if count > settings.max_occurrences:
            starts = np.sort(rng.choice(starts, settings.max_occurrences, replace=False))
        sequences, positions = (tuple(part.tolist()) for part in np.divmod(starts, n_ctx))
        phrases.append(Phrase(candidate.tokens, decode(list(candidate.tokens)), count, sequences, positions))
        if len(phrases) == settings.n_phrases:
            break
    return phrases


def _find_candidates(
    tokens: np.ndarray, lines: np.ndarray, decode: Callable[[list[int]], str], settings: Phrases
) -> list[_Candidate]:
    """All runs that are frequent enough; `tokens` and `lines` (their documents) are of the whole split, end to end."""
    is_text = lines >= 0
    n_vocabulary = int(tokens.max()) + 1
    counts = np.bincount(tokens[is_text], minlength=n_vocabulary)
    log_p = np.log(np.maximum(counts, 1) / max(is_text.sum(), 1))
    starts_word, continues_word = _describe_tokens(n_vocabulary, counts, decode)
    usable = (starts_word | continues_word) & ~_most_common(tokens[is_text], lines[is_text], counts, settings.n_common)
    in_run = is_text & usable[tokens]
    # Whether the next token is of the same document, and so of the same sequence, which BOS ends.
    linked = (lines == np.roll(lines, -1)) & is_text
    word_goes_on = linked & continues_word[np.roll(tokens, -1)]

    # `run` holds where the runs of n tokens start, `label` which run it is: the same number for the same tokens.
    run, label = in_run.nonzero()[0], tokens[in_run]
    candidates = []
    for n in range(2, max(settings.lengths) + 1):
        last = run + n - 2
        longer = linked[last]
        longer[longer] = in_run[last[longer] + 1]
        run = run[longer]
        label = np.unique(label[longer] * n_vocabulary + tokens[run + n - 1], return_inverse=True)[1]
        if n in settings.lengths:
            whole = starts_word[tokens[run]] & ~word_goes_on[run + n - 1]
            for starts in _group(run[whole], label[whole], settings.min_count):
                if len(np.unique(lines[starts])) < settings.min_documents:
                    continue
                phrase = tuple(tokens[starts[0] : starts[0] + n].tolist())
                information = np.log(len(starts) / is_text.sum()) - log_p[list(phrase)].sum()
                if information > 0:
                    candidates.append(_Candidate(len(starts) * float(information), phrase, starts))
    return candidates


def _describe_tokens(
    n_vocabulary: int, counts: np.ndarray, decode: Callable[[list[int]], str]
) -> tuple[np.ndarray, np.ndarray]:
    """Masks (V,) of letters-only tokens that occur: those that start a word with a space, and those that go on with one."""
    starts, continues = np.zeros(n_vocabulary, dtype=bool), np.zeros(n_vocabulary, dtype=bool)
    for token in counts.nonzero()[0].tolist():
        text = decode([token])
        starts[token] = text.startswith(" ") and text[1:].isalpha()
        continues[token] = text.isalpha()
    return starts, continues


def _most_common(tokens: np.ndarray, lines: np.ndarray, counts: np.ndarray, n_common: int) -> np.ndarray:
    """Mask (V,) of the tokens in the most documents: unlike counts, these leave out what one long document is about."""
    n_lines = int(lines.max()) + 1
    n_documents = np.bincount(np.unique(tokens * n_lines + lines) // n_lines, minlength=len(counts))
    common = np.zeros(len(counts), dtype=bool)
    common[np.lexsort((-counts, -n_documents))[:n_common]] = True
    return common


def _group(places: np.ndarray, labels: np.ndarray, min_count: int) -> list[np.ndarray]:
    """Ascending places of every label that at least min_count of them have."""
    order = np.argsort(labels, kind="stable")
    groups = np.split(places[order], np.diff(labels[order]).nonzero()[0] + 1)
    return [group for group in groups if len(group) >= min_count]


def measure_phrases(
    sae: SAE, cache: ResidualCache, phrases: Sequence[Phrase], settings: Phrases
) -> tuple[list[Measurement], pd.DataFrame]:
    """Measure how well the best single feature covers each phrase, and average over the phrases.

    `phrase_coverage` is the mean held-out score of the phrases' best features, `phrase_token_recall` the mean of those
    features' held-out recall over all places of all phrases; see the module for the score. Intervals are a bootstrap over
    phrases. Occurrences with a token that is not kept are left out, and phrases of which fewer than two remain.

    Args:
        sae: the SAE, speaking raw residuals.
        cache: residuals of the training split, of the same tokens as the phrases.
        phrases: of `find_phrases`.
        settings: number of tokens for base rates, samples of the bootstrap, and the seed.

    Returns:
        The two measurements, or none without a phrase; and a row per phrase with its text, token ids, count in the split,
        n_measured occurrences (both halves), feature, its base_rate, its held-out recall (a list, by place) and score.

    Raises:
        ValueError: the cache was made from other tokens than the phrases.
    """
    # All at once, so that every shard is opened, or computed, once.
    places = [_sample_kept(cache, settings), *(_rows_of(phrase, cache.n_ctx) for phrase in phrases)]
    columns = (column.split([len(rows) for rows in places]) for column in _read_rows(cache, torch.cat(places)))
    (x, tokens, _), *found = zip(*columns, strict=True)
    base_rates = _base_rates(sae, x, tokens)
    rng = np.random.default_rng(settings.seed)
    rows = []
    for phrase, (x, tokens, kept) in zip(phrases, found, strict=True):
        tokens = tokens.view(-1, len(phrase.tokens))
        if (tokens != torch.tensor(phrase.tokens)).any():
            raise ValueError(
                f"{cache.index}: made from other tokens than the phrase {phrase.text!r}; find phrases again"
            )
        whole = kept.view(tokens.shape).all(1)
        x, tokens = x.view(*tokens.shape, -1)[whole], tokens[whole]
        if len(tokens) < 2:
            continue
        shuffled = torch.from_numpy(rng.permutation(len(tokens)))
        choosing, scoring = shuffled.tensor_split(2)
        best = int(np.argmax(_recalls(sae, x[choosing], tokens[choosing]).min(0) - base_rates))
        recall, base_rate = _recalls(sae, x[scoring], tokens[scoring])[:, best], float(base_rates[best])
        score = float(recall.min()) - base_rate
        rows.append(
            (
                phrase.text,
                list(phrase.tokens),
                phrase.n_occurrences,
                len(tokens),
                best,
                base_rate,
                recall.tolist(),
                score,
            )
        )
    frame = pd.DataFrame(rows, columns=COLUMNS)
    if frame.empty:
        return [], frame
    bootstrap = Bootstrap(len(frame), settings.bootstrap, settings.seed)
    scores, recalls, lengths = (
        torch.tensor(column.tolist(), dtype=torch.float64)
        for column in (frame["score"], frame["recall"].map(sum), frame["recall"].map(len))
    )
    return [
        bootstrap.ratio("phrase_coverage", scores, torch.ones(len(frame)), len(frame)),
        bootstrap.ratio("phrase_token_recall", recalls, lengths, int(lengths.sum())),
    ], frame


def _rows_of(phrase: Phrase, n_ctx: int) -> Tensor:
    """Rows of the split that hold the tokens of a phrase, occurrence by occurrence."""
    first = torch.tensor(phrase.sequences) * n_ctx + torch.tensor(phrase.positions)
    return (first[:, None] + torch.arange(len(phrase.tokens))).flatten()


def _sample_kept(cache: ResidualCache, settings: Phrases) -> Tensor:
    """Rows of a seeded sample of kept tokens."""
    ranks = np.random.default_rng(settings.seed).choice(
        cache.n_kept, min(settings.base_tokens, cache.n_kept), replace=False
    )
    ranks.sort()
    places, n_before = [], 0
    for index in range(len(cache.shards)):
        kept = cache.kept(index).nonzero().squeeze(1)
        here = ranks[(ranks >= n_before) & (ranks < n_before + len(kept))] - n_before
        places.append(kept[torch.from_numpy(here)] + index * cache.shard_sequences * cache.n_ctx)
        n_before += len(kept)
    return torch.cat(places)


def _base_rates(sae: SAE, x: Tensor, tokens: Tensor) -> np.ndarray:
    """Share of tokens on which each feature fires (F,)."""
    counts = np.zeros(sae.n_features)
    for x_part, tokens_part in zip(x.split(BATCH_TOKENS), tokens.split(BATCH_TOKENS), strict=True):
        counts += _recalls(sae, x_part[:, None], tokens_part[:, None])[0] * len(tokens_part)
    return counts / len(tokens)


def _read_rows(cache: ResidualCache, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Residuals (n, d) float32, tokens (n,) int64 and kept (n,) of rows (n,) of the whole split, in any order."""
    x, tokens = torch.empty(len(rows), cache.d_model), torch.empty(len(rows), dtype=torch.int64)
    kept = torch.empty(len(rows), dtype=torch.bool)
    shard_rows = cache.shard_sequences * cache.n_ctx
    for index in (rows // shard_rows).unique().tolist():
        here = rows // shard_rows == index
        shard, local = cache.shard(index), rows[here] - index * shard_rows
        x[here] = shard.residuals[local].float()
        tokens[here], kept[here] = shard.tokens[local].long(), shard.kept[local]
    return x, tokens, kept


def _recalls(sae: SAE, x: Tensor, tokens: Tensor) -> np.ndarray:
    """Share of occurrences in which each feature fires at each place (n, F): x (m, n, d), tokens (m, n)."""
    n = tokens.shape[1]
    active = sae.active(x.flatten(0, 1), tokens.flatten())
    fired = active.values != 0
    places = active.rows[fired] % n
    counts = torch.bincount(places * sae.n_features + active.features[fired], minlength=n * sae.n_features)
    return counts.view(n, -1).double().numpy() / len(tokens)


def write_phrases(path: Path, phrases: Sequence[Phrase]) -> None:
    """Write phrases as JSON."""
    write_json(path, [phrase._asdict() for phrase in phrases])


def read_phrases(path: Path) -> list[Phrase]:
    """Read what `write_phrases` wrote.

    Raises:
        ValueError: the file is missing, or holds no phrases.
    """
    try:
        return [
            Phrase(tuple(e["tokens"]), e["text"], e["n_occurrences"], tuple(e["sequences"]), tuple(e["positions"]))
            for e in json.loads(read_text(path))
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: not a list of phrases ({error!r})") from error


def write_phrase_table(path: Path, frame: pd.DataFrame) -> None:
    """Write the table of `measure_phrases` as CSV, lists as JSON."""
    written = frame.assign(
        ids=frame["ids"].map(json.dumps),
        recall=frame["recall"].map(lambda recall: json.dumps([round(share, 6) for share in recall])),
    )
    write_text(path, written.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def find_phrases_of(model: Path, train: Path, settings: Phrases, output: Path) -> None:
    """Find phrases in a training split, with the tokenizer of a model folder, and write them."""
    from tsae.tokens import load_tokenizer, load_tokens

    decode: Any = load_tokenizer(model).decode
    split = load_tokens(train)
    phrases = find_phrases(split.ids, split.documents, decode, settings)
    LOG.info("%d phrases: %s", len(phrases), ", ".join(repr(phrase.text) for phrase in phrases[:10]))
    write_phrases(output, phrases)


def measure_phrases_of(
    job: Job,
    sae_folder: Path,
    residuals: Path,
    phrases: Path,
    settings: Phrases,
    examples: Path,
    model_folder: Path | None = None,
    device: torch.device | str = "cpu",
) -> list[Measurement]:
    """Measure the SAE of a job on phrases; write a row per phrase to `examples`.

    The model computes, on a device, the residuals that are not on disk.
    """
    sae = load(sae_folder)
    cache = open_residuals(residuals, "train", sae.metadata["layer"], model_folder, device)
    check_fits(sae, sae_folder, cache.d_model, cache.vocab_size)
    measured, frame = measure_phrases(sae, cache, read_phrases(phrases), settings)
    labels = {key: value for key, value in job.labels.items() if key in ("layer", "seed", "table", "encoder_input")}
    stopped = failure(sae.metadata)
    write_phrase_table(examples, (frame.iloc[:0] if stopped else frame).assign(subject=job.point.id, **labels))
    return stopped or measured


def write_phrase_tables(path: Path, tables: Sequence[Path]) -> None:
    """Write the phrase tables of several SAEs as one, with the mean recall over each phrase's places."""
    for table in tables:
        check(table)
    rows = pd.concat([pd.read_csv(table, keep_default_na=False) for table in tables])
    mean_recall = [float(np.mean(json.loads(recall))) for recall in rows["recall"]]
    write_text(path, rows.assign(mean_recall=mean_recall).to_csv(index=False, float_format="%.6g", lineterminator="\n"))
