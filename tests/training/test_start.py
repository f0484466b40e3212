from pathlib import Path

import pandas as pd
import pytest
import torch
from fixtures.training import LAYER, SETTINGS, Prepared, write_cache
from torch import Tensor
from torch.nn.functional import normalize

from tsae.profile.point import Point
from tsae.profile.sweep import Job
from tsae.profile.training import Training
from tsae.residuals.conditional_means import shrink
from tsae.residuals.read import ResidualCache
from tsae.residuals.write_conditional_means import conditional_means
from tsae.sae.offset import MOST_OFFSET, off_centre, offset_of
from tsae.sae.sae import SAE
from tsae.sae.start import Start
from tsae.store.tensors import load_tensors, save_tensors
from tsae.training.batches import Batch
from tsae.training.start import fit_map, offset_at_start, start_from
from tsae.training.train import train
from tsae.training.trainer import Trainer

BASELINE = Point(k=2, expansion=2, table="none")
LEARNED = Point(k=2, expansion=2, table="learned")
D, V = 4, 6


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


TOKENS = torch.randint(0, V - 1, (5, 9), generator=torch.Generator().manual_seed(1))  # the last one is never seen
UNIGRAMS = normal(V, D, seed=2)


@pytest.fixture
def by_hand(tmp_path: Path) -> ResidualCache:
    residuals = 3 + normal(5, 9, D, seed=0)
    return write_cache(tmp_path, residuals, torch.cat([TOKENS[:, :-1], torch.full((5, 1), V - 2)], 1))


def kept(cache: ResidualCache) -> tuple[Tensor, Tensor]:
    rows = cache.kept_rows()
    return rows.residuals, rows.tokens.long()


def test_means_are_those_of_what_an_encoder_sees(by_hand: ResidualCache) -> None:
    x, tokens = kept(by_hand)
    unigrams = UNIGRAMS[: by_hand.vocab_size]
    rows, directions = 0.5 * unigrams[tokens], normalize(unigrams - unigrams[tokens].mean(0))[tokens]
    seen = {
        "residual": x,
        "remainder": x - rows,
        "without_unigram": x - ((x - x.mean(0)) * directions).sum(1, keepdim=True) * directions,
    }
    for name, inputs in seen.items():
        point = Point.model_validate({"k": 2, "expansion": 2, "table": "learned", "encoder_input": name})
        start = start_from(point, by_hand, unigrams, seed=0)
        torch.testing.assert_close(start.mean, x.mean(0), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(start.mean_row, rows.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(start.mean_input, inputs.mean(0), rtol=1e-3, atol=1e-3)
        sae = SAE.initialise(point, start, seed=0)
        torch.testing.assert_close(sae.encoder_input(x, tokens), inputs - inputs.mean(0), rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(sae.b_dec, (x - rows).mean(0), rtol=1e-3, atol=1e-3)
    none = start_from(BASELINE, by_hand, unigrams, seed=0)
    assert none.W_lookup is None and not none.mean_row.any()


def test_permuted_rows_are_those_of_other_seen_tokens(by_hand: ResidualCache) -> None:
    point = Point(k=2, expansion=2, table="fixed", rows="permuted", lookup_scale=2)
    cache = by_hand
    unigrams = torch.cat([UNIGRAMS[: cache.vocab_size - 1], normal(1, D, seed=5)])
    first, again, other = (start_from(point, cache, unigrams, seed).W_lookup for seed in (0, 0, 1))
    assert first is not None and again is not None and other is not None
    assert torch.equal(first, again) and not torch.equal(first, other)
    seen = cache.token_counts(cache.vocab_size) > 0
    assert torch.equal(first[~seen], 2 * unigrams[~seen])
    key = first[seen].norm(dim=1).sort().values
    torch.testing.assert_close(key, 2 * unigrams[seen].norm(dim=1).sort().values)


def test_conditional_rows_are_shrunk_means(by_hand: ResidualCache) -> None:
    point = Point(k=2, expansion=2, table="fixed", rows="conditional", lookup_scale=0.5, encoder_input="remainder")
    unigrams, means = normal(by_hand.vocab_size, D, seed=3), conditional_means(by_hand)
    start = start_from(point, by_hand, unigrams, seed=0, means=means)
    counts = by_hand.token_counts(by_hand.vocab_size)
    assert start.W_lookup is not None
    torch.testing.assert_close(start.W_lookup, 0.5 * shrink(means, unigrams, counts) / by_hand.scale)
    torch.testing.assert_close(start.mean_input, start.mean - start.mean_row)
    with pytest.raises(ValueError, match="conditional needs the conditional means of the layer"):
        start_from(point, by_hand, unigrams, seed=0)


def test_a_table_that_is_a_map_of_the_embedding_is_the_nearest_one(by_hand: ResidualCache) -> None:
    point = Point(k=2, expansion=2, table="embedding", lookup_scale=1)
    unigrams, embedding = normal(by_hand.vocab_size, D, seed=3), normal(by_hand.vocab_size, 2, seed=4)
    table = start_from(point, by_hand, unigrams, seed=0, embedding=embedding).W_lookup
    assert table is not None
    assert torch.linalg.matrix_rank(table) == 2
    # What is left over is orthogonal to the embedding.
    torch.testing.assert_close(embedding.T @ (unigrams - table), torch.zeros(2, D), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="embedding needs the model's embedding"):
        start_from(point, by_hand, unigrams, seed=0)


def test_the_offset_by_hand() -> None:
    offset = offset_of([torch.tensor([[1.0, 4.0], [5.0, 4.0]]), torch.tensor([[3.0, 2.0], [3.0, 6.0]])])
    assert offset.norm == pytest.approx(5)
    assert offset.spread == pytest.approx(2)
    assert offset.share == pytest.approx(2.5)


def test_every_centred_point_starts_on_centre_and_a_share_of_a_centre_does_not(by_hand: ResidualCache) -> None:
    unigrams = UNIGRAMS[: by_hand.vocab_size]
    for name in ("residual", "remainder", "without_unigram"):
        point = Point.model_validate({"k": 2, "expansion": 2, "table": "learned", "encoder_input": name})
        sae = SAE.initialise(point, start_from(point, by_hand, unigrams, 0), seed=0)
        assert offset_at_start(sae, by_hand).share < 0.01
    halfway = BASELINE.model_copy(update={"centre": 0.5})
    sae = SAE.initialise(halfway, start_from(halfway, by_hand, unigrams, 0), seed=0)
    offset = offset_at_start(sae, by_hand)
    x, _ = kept(by_hand)
    assert offset.norm == pytest.approx(0.5 * x.mean(0).norm().item(), rel=1e-3)
    assert offset.share > 10 * MOST_OFFSET


def test_a_training_that_starts_off_centre_says_so(
    prepared: Prepared, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = prepared.residuals.parent
    settings = SETTINGS.model_copy(update={"tokens": 128})
    statistics = folder / f"layer{LAYER}.safetensors"
    tensors, kept_as = load_tensors(statistics), statistics.read_bytes()
    save_tensors(statistics, tensors | {"mean": torch.zeros_like(tensors["mean"])})
    try:
        train(Job(layer=LAYER, point=BASELINE, seed=0), settings, prepared.residuals, prepared.unigrams, tmp_path)
    finally:
        save_tensors(statistics, tensors)
    assert statistics.read_bytes() == kept_as
    assert "the encoder's input starts off centre, by" in caplog.text
    caplog.clear()
    train(Job(layer=LAYER, point=BASELINE, seed=0), settings, prepared.residuals, prepared.unigrams, tmp_path)
    assert "off centre" not in caplog.text


def dead_features(point: Point, mean_share: float) -> float:
    """Share of features that fire on none of the last tokens, of an SAE trained on residuals with a large mean."""
    d, vocabulary, n = 16, 20, 256
    token_part, directions = normal(vocabulary, d, seed=1), normalize(normal(48, d, seed=2))
    mean = normalize(normal(d, seed=3), dim=0)

    def batch(seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, vocabulary, (n,), generator=generator)
        active = (torch.rand(n, 48, generator=generator) < 0.06) * torch.rand(n, 48, generator=generator) * 3
        rest = 0.5 * token_part[tokens] + active @ directions
        rest = rest - rest.mean(0)
        length = rest.norm(dim=1).mean() * mean_share / (1 - mean_share**2) ** 0.5
        return Batch(rest + length * mean, tokens)

    sample = batch(0)
    mean_residual = sample.residuals.mean(0)
    table = None if point.table == "none" else point.lookup_scale * (token_part + mean_residual)
    mean_row = torch.zeros(d) if table is None else table[sample.tokens].mean(0)
    seen = mean_residual - mean_row if point.encoder_input == "remainder" else mean_residual
    sae = SAE.initialise(point, Start(mean_residual, mean_row, seen, table, None), seed=0)
    settings = Training(tokens=400 * n, batch_size=n, lr=3e-3, lr_end=3e-4, table_lr=1e-2, buffer_tokens=n)
    trainer = Trainer(sae, settings)
    fired = torch.zeros(sae.n_features, dtype=torch.bool)
    for step in range(400):
        found = trainer.step(batch(step + 1)).fired
        if step >= 350:
            fired[found] = True
    return 1 - fired.float().mean().item()


def test_residuals_that_are_nearly_all_mean_kill_no_features_of_a_centred_tokenized_sae() -> None:
    base = {"k": 4, "expansion": 8}
    baseline = dead_features(Point.model_validate(base | {"table": "none"}), mean_share=0.97)
    for more in ({}, {"encoder_input": "remainder"}):
        tokenized = dead_features(Point.model_validate(base | {"table": "learned"} | more), mean_share=0.97)
        assert tokenized <= baseline + 0.05
    # The test can fail: with half of the mean left in the encoder's input, most features die.
    off_centre = dead_features(Point.model_validate(base | {"table": "learned", "centre": 0.5}), mean_share=0.97)
    assert off_centre > baseline + 0.3


def test_a_table_of_metrics_tells_which_saes_started_off_centre() -> None:
    settings = [
        ("centred", None, 0.02),
        ("centred", None, 0.57),
        ("centred", 1.0, 0.11),
        ("centred", 0.5, 0.6),
        ("authors", None, 0.9),
    ]
    table = pd.DataFrame(settings, columns=["start", "centre", "value"]).assign(metric="encoder_offset_at_start")
    other = table.assign(metric="nmse")
    assert off_centre(pd.concat([other, table]))["value"].tolist() == [0.57, 0.11]


def test_a_map_of_the_embedding_does_not_depend_on_where_tensors_lie() -> None:
    generator = torch.Generator().manual_seed(0)
    embedding, rows = torch.randn(600, 40, generator=generator), torch.randn(600, 32, generator=generator)
    first = fit_map(embedding, rows)
    assert torch.allclose(first, torch.linalg.lstsq(embedding, rows).solution, atol=1e-5)
    for offset in range(1, 9):
        moved = torch.empty(embedding.numel() + offset)[offset:].view_as(embedding).copy_(embedding)
        assert torch.equal(fit_map(moved, rows), first)
