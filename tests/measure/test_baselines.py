"""What every SAE of a layer is compared with: sequences, residuals, and tables alone."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from fixtures.evaluation import SETTINGS, Evaluated, by_name
from fixtures.training import LAYER, Prepared
from torch import Tensor

from tsae.measure.baselines import measure_baselines
from tsae.measure.measurement import Measurement
from tsae.measure.sequences import Sequences, load_sequences, spread
from tsae.measure.sums import DocumentSums, load_sums
from tsae.measure.token_tables import last_token_detection, token_subspaces
from tsae.profile.evaluation import Evaluation
from tsae.residuals.unigrams import load_unigrams
from tsae.store.tensors import load_metadata, load_tensors, save_tensors
from tsae.text.tokens import load_tokens


def test_sequences_are_spread_evenly(prepared: Prepared, evaluated: Evaluated) -> None:
    ids = load_tokens(prepared.heldout_tokens).ids.long()
    whole = load_sequences(evaluated.heldout, prepared.heldout_tokens)
    assert torch.equal(whole.tokens, ids)
    chosen = spread(whole, 3)
    assert torch.equal(chosen.tokens, ids[[0, (len(ids) - 1) // 2, len(ids) - 1]])
    for limit in (None, len(ids), 10**6):
        assert spread(whole, limit) is whole
    positions = [0, (len(ids) - 1) // 2, len(ids) - 1]
    assert torch.equal(chosen.residuals, whole.residuals[positions])
    assert torch.equal(chosen.kept, whole.kept[positions])
    assert torch.equal(chosen.documents, whole.documents[positions])
    assert torch.equal(whole.residuals[whole.kept].float(), evaluated.heldout.kept_rows().residuals)
    assert not whole.kept[:, 0].any()
    assert (~whole.kept[:, 1:]).sum() == evaluated.heldout.n_outliers > 0


def test_documents_are_those_of_the_split_and_bos_counts_with_what_follows(
    prepared: Prepared, evaluated: Evaluated
) -> None:
    documents, of_split = evaluated.whole.documents, load_tokens(prepared.heldout_tokens).documents
    assert documents.dtype == torch.int64
    assert torch.equal(documents[:, 1:], of_split[:, 1:].long())
    assert torch.equal(documents[:, 0], documents[:, 1])
    # A document continues in the next sequence, and a sequence holds several documents.
    assert (documents[:-1, -1] == documents[1:, 0]).any()
    assert (documents[:, 1] != documents[:, -1]).any()


def test_residuals_of_other_tokens_are_refused(prepared: Prepared, evaluated: Evaluated, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.safetensors: its tokens \(125, 32\) are not those \(38, 32\) of"):
        load_sequences(evaluated.heldout, prepared.train_tokens)
    tensors, metadata = (read(prepared.heldout_tokens) for read in (load_tensors, load_metadata))
    tensors["ids"][7, 9] += 1
    save_tensors(tmp_path / "other.safetensors", tensors, metadata)
    with pytest.raises(ValueError, match=r"other\.safetensors: .*cache the residuals again"):
        load_sequences(evaluated.heldout, tmp_path / "other.safetensors")


def measure(sums: DocumentSums) -> list[Measurement]:
    return sums.measure(SETTINGS.bootstrap, SETTINGS.seed)


def detect(sequences: Sequences, table: Tensor, settings: Evaluation = SETTINGS) -> list[Measurement]:
    sums = DocumentSums(sequences.documents)
    last_token_detection(sequences, table, settings, sums)
    return measure(sums)


def plant(V: int, noise: float) -> tuple[Sequences, Tensor]:
    """Residuals along the row of their own token; what is not kept lies along another's."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(V, 24, generator=generator)
    tokens = torch.randint(0, V, (300, 6), generator=generator)
    kept = torch.rand(300, 6, generator=generator) < 0.8
    kept[:, 0] = False
    shown = torch.where(kept, tokens, (tokens + 1) % V)
    residuals = 3 * table[shown] + noise * torch.randn(300, 6, 24, generator=generator)
    return Sequences(residuals.half(), tokens, kept, torch.arange(300)[:, None].expand(300, 6) // 10), table


def test_last_token_detection_of_planted_residuals() -> None:
    sequences, table = plant(V=40, noise=0.1)
    settings = SETTINGS.model_copy(update={"detection_tokens": 700})
    named = by_name(detect(sequences, table, settings))
    assert set(named) == {"last_token_detection", "last_token_detection_any_position"}
    for measured in named.values():
        assert (measured.low, measured.value, measured.high) == (1.0, 1.0, 1.0)
    assert named["last_token_detection"].n == sequences.kept[:, -1].sum()
    assert named["last_token_detection_any_position"].n == 700
    wrong = detect(sequences, table.roll(1, 0), settings)
    assert [m.value for m in wrong] == [0.0, 0.0]


def test_last_token_detection_without_a_row() -> None:
    sequences, table = plant(V=40, noise=0.1)
    table[:10] = torch.nan
    for measured, chosen in zip(detect(sequences, table), (sequences.kept[:, -1:], sequences.kept), strict=True):
        tokens = sequences.tokens[:, -chosen.shape[1] :][chosen]
        assert measured.value == pytest.approx((tokens >= 10).double().mean().item())


def test_last_token_detection_of_noise_is_at_chance() -> None:
    sequences, _ = plant(V=20, noise=0.0)
    noise = torch.randn(sequences.residuals.shape, generator=torch.Generator().manual_seed(1)).half()
    table = torch.randn(20, 24, generator=torch.Generator().manual_seed(2))
    measured = detect(sequences._replace(residuals=noise), table)[1]
    assert measured.n == sequences.kept.sum()
    assert measured.value == pytest.approx(1 / 20, abs=4 * math.sqrt(0.05 * 0.95 / int(sequences.kept.sum())))


def cosines_by_length(
    sequences: Sequences, table: Tensor, metric: str, seed: int = 0
) -> dict[float | None, Measurement]:
    sums = DocumentSums(sequences.documents)
    token_subspaces(sequences, table, seed, sums)
    return {m.at: m for m in measure(sums) if m.metric == metric}


def test_token_subspaces_by_hand() -> None:
    # At position p, tokens p and 10 + p lie at the given cosine from their unigram residuals; the rest is along axis 20.
    cosine = torch.tensor(
        [
            [-1, 0.875, 0.75, 0.5, 0.25, 0.125, 0.25, 0.375, 0.5, 0.0625],
            [-1, 0.625, -1.0, 0.0, 0.75, -0.25, -0.5, -0.75, 1.0, 0.0],
        ]
    )
    kept = torch.ones(2, 10, dtype=torch.bool)
    kept[:, 0] = kept[1, 2] = False
    tokens = torch.arange(20).view(2, 10)
    axes = torch.eye(21)
    along, across = cosine[..., None] * axes[tokens], (1 - cosine.square()).sqrt()[..., None] * axes[20]
    # The first sequence is one document with the start of the second.
    documents = torch.tensor([[5] * 10, [5] * 4 + [8] * 6])
    sequences = Sequences((along + across).half(), tokens, kept, documents)
    unigrams = 7 * axes[:20]
    measured = cosines_by_length(sequences, unigrams, "residual_unigram_cosine")
    # Context lengths 1, 2, 3 to 4, 5 to 8 and 9, by their upper edges.
    expected = {1.0: 1.5 / 2, 2.0: 0.75, 4.0: 1.5 / 4, 8.0: 0.75 / 8, 16.0: 0.0625 / 2}
    assert {at: m.value for at, m in measured.items()} == pytest.approx(expected, abs=1e-3)
    assert {at: m.n for at, m in measured.items()} == {1: 2, 2: 1, 4: 4, 8: 8, 16: 2}
    # Of the first document they are 0.125, 0.25, 0.375 and 0.5, of the other -0.25, -0.5, -0.75 and 1.
    assert (measured[8].low, measured[8].high) == pytest.approx((-0.125, 0.3125), abs=1e-3)
    assert measured[8].over == "documents"
    # One document alone has no interval.
    assert (measured[2].low, measured[2].high, measured[2].over) == (None, None, None)
    assert all(m.min_count is None for m in measured.values())
    # A kept BOS has no context.
    kept[:, 0] = True
    assert cosines_by_length(sequences, unigrams, "residual_unigram_cosine") == measured


def test_token_subspaces_where_no_context_is_of_one_token() -> None:
    # BOS is kept, and what follows it is not: its residuals are outliers too.
    sequences, table = plant(V=40, noise=0.1)
    sequences.kept[:, 0], sequences.kept[:, 1] = True, False
    for metric in ("residual_unigram_cosine", "residual_other_cosine"):
        measured = cosines_by_length(sequences, table, metric)
        assert {at: m.n for at, m in measured.items()} == {
            2.0: sequences.kept[:, 2].sum(),
            4.0: sequences.kept[:, 3:5].sum(),
            8.0: sequences.kept[:, 5:].sum(),
        }
        assert all(math.isfinite(m.value) for m in measured.values())


def test_context_lengths_are_binned_by_powers_of_two() -> None:
    n_ctx = 1100
    kept = torch.ones(1, n_ctx, dtype=torch.bool)
    kept[0, 0] = kept[0, 5:9] = False
    zeros = torch.zeros(1, n_ctx, dtype=torch.int64)
    sequences = Sequences(torch.ones(1, n_ctx, 2).half(), zeros, kept, zeros)
    expected = Counter(1 << (length - 1).bit_length() for length in range(1, n_ctx) if kept[0, length])
    for metric in ("residual_unigram_cosine", "residual_other_cosine"):
        measured = cosines_by_length(sequences, torch.ones(1, 2), metric)
        assert {at: m.n for at, m in measured.items()} == expected
        assert list(measured) == sorted(expected)
    assert 8 not in expected
    assert 2048 in expected


def test_floor_of_token_subspaces_is_what_residuals_share() -> None:
    # Every residual is its token's unigram residual, and all share a part of length 2.
    n_tokens, n_ctx = 450, 9
    tokens = torch.arange(n_tokens).view(50, n_ctx)
    unigrams = torch.cat([torch.eye(n_tokens), torch.full((n_tokens, 1), 2.0)], dim=1)
    kept = torch.ones(50, n_ctx, dtype=torch.bool)
    kept[:, 0] = False
    documents = torch.arange(50)[:, None].expand(50, n_ctx)
    sequences = Sequences(3 * unigrams[tokens].half(), tokens, kept, documents)
    own = cosines_by_length(sequences, unigrams, "residual_unigram_cosine")
    other = cosines_by_length(sequences, unigrams, "residual_other_cosine")
    assert [m.value for m in own.values()] == pytest.approx([1.0] * 4)
    # At random a few of the 400 tokens are given themselves.
    themselves = sum((m.value - 4 / 5) * 5 * m.n for m in other.values() if m.n)
    assert themselves == pytest.approx(round(themselves), abs=1e-3)
    assert 0 <= round(themselves) < 5
    assert other == cosines_by_length(sequences, unigrams, "residual_other_cosine")
    # The other token is one of the held-out tokens: where there is only one, it is the same.
    alone = sequences._replace(tokens=torch.zeros_like(tokens))
    floor = cosines_by_length(alone, unigrams, "residual_other_cosine")
    assert [m.value for m in floor.values()] == [
        m.value for m in cosines_by_length(alone, unigrams, "residual_unigram_cosine").values()
    ]


def test_token_counts_are_of_kept_tokens(evaluated: Evaluated) -> None:
    counts = evaluated.train.token_counts(512)
    assert counts.shape == (512,)
    assert counts.sum() == evaluated.train.n_kept < evaluated.train.n_rows
    tokens = evaluated.train.kept_rows().tokens
    assert counts[tokens[3]] == (tokens == tokens[3]).sum()


def test_baselines_of_the_tiny_cache(prepared: Prepared, evaluated: Evaluated, tmp_path: Path) -> None:
    measured = measure_baselines(
        prepared.residuals,
        prepared.heldout_tokens,
        prepared.references,
        LAYER,
        SETTINGS,
        tmp_path / "b.json",
        tmp_path / "sums",
        prepared.model,
    )
    assert set(measured) == {"unigram-residuals", "conditional-means", "residuals"}
    train, heldout = evaluated.train.kept_rows(), evaluated.heldout.kept_rows()
    means = {int(t): train.residuals[train.tokens == t].mean(0) for t in train.tokens.unique()}
    unseen = [int(t) not in means for t in heldout.tokens]
    assert any(unseen)
    variance = (heldout.residuals - heldout.residuals.mean(0)).square().sum()
    mean = train.residuals.mean(0)
    predicted = {
        "unigram-residuals": load_unigrams(prepared.unigrams)[heldout.tokens.long()],
        "conditional-means": torch.stack([means.get(int(t), mean) for t in heldout.tokens]),
    }
    tables = {
        "unigram-residuals": load_unigrams(prepared.unigrams),
        "conditional-means": torch.stack([means.get(t, torch.zeros(32)) for t in range(512)]),
    }
    sequences = evaluated.whole
    last = sequences.kept[:, -1]
    for subject, x_hat in predicted.items():
        fvu = ((heldout.residuals - x_hat).square().sum() / variance).item()
        named = {m.metric: m for m in measured[subject] if m.at is None}
        assert named["table_fvu"].value == pytest.approx(fvu, rel=1e-4)
        assert named["table_fvu"].n == len(heldout.tokens)
        # No other multiple of the table, less its mean over training tokens, explains more of the training residuals.
        table = torch.where(tables[subject].isnan(), mean, tables[subject])
        centred = table - table[train.tokens.long()].mean(0)
        deviations = train.residuals - mean
        scale = (deviations * centred[train.tokens.long()]).sum() / centred[train.tokens.long()].square().sum()
        assert named["table_scale"].value == pytest.approx(scale.item(), rel=1e-4)
        fitted = torch.where(
            torch.tensor(unseen)[:, None] & (subject == "conditional-means"),
            mean,
            mean + scale * centred[heldout.tokens.long()],
        )
        fvu = ((heldout.residuals - fitted).square().sum() / variance).item()
        assert named["table_fvu_fitted"].value == pytest.approx(fvu, rel=1e-4)
        cosines = torch.nn.functional.cosine_similarity(
            sequences.residuals[last, -1, None].float(), tables[subject][None], dim=2
        )
        hits = cosines.argmax(1) == sequences.tokens[last, -1]
        assert named["last_token_detection"].value == pytest.approx(hits.double().mean().item())
    # The mean residual of a token says more than nothing.
    of_means = {m.metric: m.value for m in measured["conditional-means"] if m.at is None}
    assert of_means["table_fvu"] < 1
    # Shrinkage helps at the first order, and orders are those of the module's own test.
    by_order = {m.at: m.value for m in measured["conditional-means"] if m.metric == "table_fvu_by_order"}
    assert list(by_order) == [1, 2, 3, 4] and by_order[1] < of_means["table_fvu"]
    components = {m.at: m.value for m in measured["residuals"] if m.metric == "pca_fvu"}
    assert list(components) == [1, 2, 4, 8, 16] and list(components.values()) == sorted(components.values())[::-1]

    train_cache, heldout_cache = evaluated.train, evaluated.heldout
    about = {m.metric: m.value for m in measured["residuals"] if m.at is None}
    by_length = [m for m in measured["residuals"] if m.metric.startswith("residual_")]
    sums = DocumentSums(sequences.documents)
    token_subspaces(sequences, tables["unigram-residuals"], SETTINGS.seed, sums)
    assert by_length == measure(sums)
    assert {(m.metric, m.at) for m in by_length} == {
        (metric, at) for metric in ("residual_unigram_cosine", "residual_other_cosine") for at in (1, 2, 4, 8, 16, 32)
    }
    assert about["heldout_tokens_seen_in_training"] == pytest.approx(1 - sum(unseen) / len(unseen))
    n_text = {"train": train_cache.n_rows * 31 / 32, "heldout": heldout_cache.n_rows * 31 / 32}
    assert about["outlier_share_train"] == pytest.approx(train_cache.n_outliers / n_text["train"])
    assert about["outlier_share_heldout"] == pytest.approx(heldout_cache.n_outliers / n_text["heldout"])
    assert about["scale"] == pytest.approx(train.residuals.norm(dim=1).mean().item() / math.sqrt(32), rel=1e-3)
    # Everything about held-out tokens is in the files of sums, and nothing else.
    for subject, rows in measured.items():
        of_tokens = [m for m in rows if m.over == "documents"]
        assert {m.metric for m in rows if m.over is None} <= {
            "outlier_share_train",
            "scale",
            "table_scale",
            "table_order_shrinkage",
        }
        assert measure(load_sums(tmp_path / f"sums/{subject}.safetensors")) == of_tokens
    assert {path.suffix for path in (tmp_path / "sums").iterdir()} == {".safetensors", ".sha256"}
