"""Tables with rows for bigrams: their rows by hand, and training, checkpoints and evaluation of the real stages."""

import json
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from fixtures.evaluation import SETTINGS as EVALUATION
from fixtures.evaluation import Evaluated, reconstruction
from fixtures.training import LAYER, SETTINGS, Prepared, read_history, write_cache
from torch import Tensor

from tsae.measure.sequences import load_sequences
from tsae.profile.point import Point
from tsae.profile.sweep import Job
from tsae.residuals.conditional_means import load_conditional_means, shrink
from tsae.residuals.read import ResidualCache, open_residuals
from tsae.residuals.shrinkage import SHRINKAGES
from tsae.residuals.unigrams import load_unigrams
from tsae.residuals.write_conditional_means import conditional_means
from tsae.sae.bigrams import bigram_keys, rows_with_bigrams
from tsae.sae.checkpoint import check_fits, load
from tsae.sae.exchange.saebench import ForSAEBench
from tsae.sae.exchange.saelens import export_saelens
from tsae.store.tensors import load_metadata, load_tensors, save_tensors
from tsae.training.batches import Batch
from tsae.training.bigrams import LEAST, bigram_rows
from tsae.training.start import offset_at_start, start_from
from tsae.training.train import train
from tsae.training.trainer import Step, Trainer

V, D = 5, 3
POINTS = {
    name: Point.model_validate(
        {"k": 4, "expansion": 2, "table": name, "rows": "bigram", "lookup_scale": 1, "encoder_input": seen}
    )
    for name, seen in (("learned", "remainder"), ("fixed", "residual"))
}


def test_rows_of_a_sequence_by_hand() -> None:
    tokens = torch.tensor([[0, 1, 2, 1, 2], [3, 2, 1, 2, 2]], dtype=torch.int32)
    assert bigram_keys(tokens, V).tolist() == [[-1, 1, 7, 11, 7], [-1, 17, 11, 7, 12]]
    # Rows 5 and 6 are those of 1 2 and of 3 2.
    rows = rows_with_bigrams(tokens, torch.tensor([7, 17]), V)
    assert rows.tolist() == [[0, 1, 5, 1, 5], [3, 6, 1, 5, 2]]
    assert rows_with_bigrams(tokens, torch.tensor([], dtype=torch.int64), V).tolist() == tokens.tolist()


@pytest.fixture
def by_hand(tmp_path: Path) -> tuple[ResidualCache, Tensor, Tensor]:
    """A cache with its residuals and tokens; the residual of a token is about that of its bigram."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, V, (40, 9), generator=generator)
    tokens[:, 0] = 0
    of_bigram = 4 * torch.randn(V * V, D, generator=generator)
    before = tokens.roll(1, 1)
    x = 3 + of_bigram[before * V + tokens] + torch.randn(40, 9, D, generator=generator)
    x[3, 4] = 5000  # an outlier, which is not kept
    return write_cache(tmp_path, x.half().float(), tokens), x.half().float(), tokens


def test_rows_of_bigrams_by_hand(by_hand: tuple[ResidualCache, Tensor, Tensor]) -> None:
    cache, x, tokens = by_hand
    means = conditional_means(cache)
    token_rows = shrink(means, torch.zeros(V, D), cache.token_counts(V))
    found = bigram_rows(cache, means, token_rows)
    places = kept_places(cache)
    residuals = defaultdict(list)
    for at in places:
        residuals[bigram_keys(tokens, V)[at].item()].append(x[at])
    frequent = {key: torch.stack(of) for key, of in residuals.items() if len(of) >= LEAST}
    keys = found.bigrams.tolist()
    # There are more of them than tokens, so the rarest have no row.
    assert len(keys) == V < len(frequent) and set(keys) <= set(frequent)
    assert min(len(frequent[key]) for key in keys) >= max(len(frequent[key]) for key in frequent.keys() - set(keys))

    # Every residual is predicted without itself: from the others of its bigram, and from the row of its token without it.
    errors = dict.fromkeys(SHRINKAGES, 0.0)
    for key in keys:
        of, of_token = frequent[key], torch.stack([x[at] for at in places if tokens[at] == key % V])
        prior = token_rows[key % V] + (of_token.mean(0) - of) / (len(of_token) - 1)
        for shrinkage in SHRINKAGES:
            predicted = (of.sum(0) - of + shrinkage * prior) / (len(of) - 1 + shrinkage)
            errors[shrinkage] += (of - predicted).square().sum().item()
    best = min(SHRINKAGES, key=errors.__getitem__)
    for key, row in zip(keys, found.rows, strict=True):
        shrunk = (frequent[key].sum(0) + best * token_rows[key % V]) / (len(frequent[key]) + best)
        torch.testing.assert_close(row, shrunk, rtol=1e-4, atol=1e-4)
    rows = rows_with_bigrams(tokens, found.bigrams, V)
    assert torch.equal(found.counts, torch.stack([rows[at] for at in places]).bincount(minlength=2 * V))


def kept_places(cache: ResidualCache) -> list[tuple[int, int]]:
    """Sequence and position of every kept token."""
    return [
        (index * cache.shard_sequences + row // cache.n_ctx, row % cache.n_ctx)
        for index in range(len(cache.shards))
        for row in cache.kept(index).nonzero().flatten().tolist()
    ]


def train_with(prepared: Prepared, folder: Path, name: str, **how: object) -> Path:
    means = prepared.references.conditional_means
    job = Job(layer=LAYER, point=POINTS[name], seed=0)
    settings = SETTINGS.model_copy(update=how)
    train(job, settings, prepared.residuals, prepared.unigrams, folder, conditional_means=means)
    return folder


@pytest.fixture(scope="module")
def trained(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> dict[str, Path]:
    return {name: train_with(prepared, tmp_path_factory.mktemp(name), name) for name in POINTS}


@pytest.mark.parametrize("name", list(POINTS))
def test_an_sae_starts_centred_at_the_means(prepared: Prepared, name: str) -> None:
    cache = open_residuals(prepared.residuals, "train", LAYER)
    means = load_conditional_means(prepared.references.conditional_means)
    start = start_from(POINTS[name], cache, load_unigrams(prepared.unigrams), 0, means=means)
    assert start.W_lookup is not None and start.bigrams is not None and len(start.bigrams) > 10
    bigrams = start.bigrams
    rows = cache.kept_rows(lambda tokens: rows_with_bigrams(tokens, bigrams, cache.vocab_size))
    assert (rows.tokens >= cache.vocab_size).sum() > 50
    left = rows.residuals / cache.scale - start.W_lookup[rows.tokens]
    torch.testing.assert_close(start.mean - start.mean_row, left.mean(0), rtol=1e-4, atol=1e-4)
    tokens_alone = rows.residuals / cache.scale - start.W_lookup[cache.kept_rows().tokens.long()]
    assert left.square().sum() < 0.98 * tokens_alone.square().sum()


@pytest.mark.parametrize("name", list(POINTS))
def test_training_evaluation_and_history_read_the_same_rows(
    prepared: Prepared, evaluated: Evaluated, trained: dict[str, Path], name: str
) -> None:
    sae, cache = load(trained[name]), open_residuals(prepared.residuals, "heldout", LAYER)
    check_fits(sae, trained[name], cache.d_model, cache.vocab_size)
    assert sae.W_lookup is not None and sae.token_table is not None and sae.bigrams is not None
    assert len(sae.token_table) == cache.vocab_size == len(sae.W_lookup) - len(sae.bigrams)
    history = read_history(trained[name])
    assert history[-1]["heldout_nmse"] < 0.8 * history[0]["heldout_nmse"]
    rows = cache.kept_rows(sae.rows_of)
    assert (rows.tokens >= cache.vocab_size).any()
    nmse = ((rows.residuals - sae(rows.residuals, rows.tokens)).norm(dim=1) / rows.residuals.norm(dim=1)).square()
    assert history[-1]["heldout_nmse"] == pytest.approx(nmse.mean().item(), rel=1e-4)
    measured, _ = reconstruction(sae, load_sequences(cache, prepared.heldout_tokens), EVALUATION)
    found = {m.metric: m.value for m in measured}
    assert found["nmse"] == pytest.approx(nmse.mean().item(), rel=1e-4)


def test_only_rows_that_training_met_move(prepared: Prepared, trained: dict[str, Path]) -> None:
    cache = open_residuals(prepared.residuals, "train", LAYER)
    means = load_conditional_means(prepared.references.conditional_means)
    unigrams = load_unigrams(prepared.unigrams)
    for name, path in trained.items():
        start = start_from(POINTS[name], cache, unigrams, 0, means=means)
        tensors = load_tensors(path / "sae.safetensors")
        assert start.W_lookup is not None and start.bigrams is not None
        assert torch.equal(tensors["bigrams"], start.bigrams)
        moved = (tensors["W_lookup"] != start.W_lookup).any(1)
        met = torch.zeros_like(moved)
        met[cache.kept_rows(load(path).rows_of).tokens] = True
        assert torch.equal(moved, met & (name == "learned"))


def test_the_encoders_input_is_centred(prepared: Prepared, trained: dict[str, Path]) -> None:
    cache = open_residuals(prepared.residuals, "train", LAYER)
    for path in trained.values():
        assert json.loads((path / "config.json").read_text())["encoder_offset_at_start"] < 0.1
        assert offset_at_start(load(path), cache).spread > 0


def test_an_interrupted_training_ends_with_the_same_bytes(
    prepared: Prepared, trained: dict[str, Path], tmp_path: Path
) -> None:
    step = Trainer.step

    def interrupted(self: Trainer, batch: Batch) -> Step:
        if self.steps == 60:
            raise KeyboardInterrupt
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "step", interrupted)
        train_with(prepared, tmp_path, "learned", save_minutes=0)
    assert (tmp_path / ".training/state.safetensors").is_file()
    train_with(prepared, tmp_path, "learned", save_minutes=0)
    name = "sae.safetensors"
    assert (tmp_path / name).read_bytes() == (trained["learned"] / name).read_bytes()


def test_damaged_bigrams_are_refused(trained: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_tensors(trained["fixed"] / "sae.safetensors")
    (tmp_path / "config.json").write_bytes((trained["fixed"] / "config.json").read_bytes())
    metadata = load_metadata(trained["fixed"] / "sae.safetensors")
    for keys in (tensors["bigrams"].flip(0), tensors["bigrams"] + 512**2, -1 - tensors["bigrams"].flip(0)):
        save_tensors(tmp_path / "sae.safetensors", tensors | {"bigrams": keys}, metadata)
        with pytest.raises(ValueError, match="bigrams are not ascending keys of rows of its table"):
            load(tmp_path)
    without = {name: tensor for name, tensor in tensors.items() if name != "bigrams"}
    save_tensors(tmp_path / "sae.safetensors", without, metadata)
    with pytest.raises(ValueError, match="not the parameters of this topk SAE"):
        load(tmp_path)


def test_other_formats_have_no_place_for_bigrams(trained: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"its table has rows for bigrams .* export an SAE with rows: unigram"):
        export_saelens(trained["fixed"], tmp_path)


def test_saebench_gets_the_rows_of_the_batch(
    prepared: Prepared, evaluated: Evaluated, trained: dict[str, Path]
) -> None:
    sae = load(trained["learned"])
    ids = evaluated.whole.tokens[:3]
    x = evaluated.whole.residuals[:3].float()
    adapted = ForSAEBench(sae, evaluated.bare, "gpt2-small")
    evaluated.bare(ids)
    expected = sae(x.flatten(0, 1), sae.rows_of(ids).flatten()).view_as(x)
    torch.testing.assert_close(adapted(x), expected, rtol=1e-4, atol=1e-4)
    adapted.close()


def test_settings_that_contradict_rows_of_bigrams() -> None:
    given = {"k": 4, "expansion": 2, "rows": "bigram"}
    with pytest.raises(ValueError, match="rows: bigram says nothing about table: embedding; take fixed or learned"):
        Point.model_validate(given | {"table": "embedding"})
    with pytest.raises(ValueError, match="rows: bigram has no unigram residuals for encoder_input: without_unigram"):
        Point.model_validate(given | {"table": "fixed", "encoder_input": "without_unigram"})
