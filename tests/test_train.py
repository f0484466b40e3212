import csv
import functools
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tsae import config, files
from tsae.cache import cache_residuals
from tsae.config import Corpus, Residuals, Tokens, Training, Unigrams
from tsae.corpus import write_documents
from tsae.lookup import load_unigrams, write_unigrams
from tsae.model_folder import prepare_model
from tsae.residuals import ResidualCache, open_residuals
from tsae.sae import SAE, load, load_last_fired
from tsae.sources import FileCorpus, FolderModel
from tsae.sweep import Job, Point
from tsae.tokens import load_tokens, write_tokens
from tsae.train import TableOptimizer, history_steps, train, train_sae, training_batches

LAYER = 2
SETTINGS = Training(
    tokens=12_800, batch_size=128, lr=3e-3, lr_end=3e-4, table_lr=1e-2, buffer_tokens=2000, history_points=5
)
POINTS = {
    "none": Point(k=4, expansion=2, table="none"),
    "fixed": Point(k=4, expansion=2, table="fixed"),
    "learned": Point(k=4, expansion=2, table="learned"),
}


class Prepared(NamedTuple):
    """What training and evaluation start from, made of the tiny corpus and the tiny GPT-2."""

    model: Path
    train_tokens: Path
    heldout_tokens: Path
    residuals: Path
    unigrams: Path  # of LAYER


@functools.cache
def prepare(corpus: Path, model: Path, folder: Path) -> Prepared:
    """Run the stages up to training; once per run, whichever module asks first."""
    paths = Prepared(
        folder / "model",
        folder / "train.safetensors",
        folder / "heldout.safetensors",
        folder / "residuals" / "index.json",
        folder / "unigrams.safetensors",
    )
    prepare_model(FolderModel(kind="folder", path=model), folder, paths.model)
    source = FileCorpus(kind="files", paths=(corpus,), format="lines")
    write_documents(Corpus(sources=(source,)), folder, folder / "documents.jsonl")
    write_tokens(
        folder / "documents.jsonl",
        paths.model,
        Tokens(n_ctx=32, train=4000, heldout=1200),
        paths.train_tokens,
        paths.heldout_tokens,
    )
    # A low bound, so that there are outliers.
    settings = Residuals(layers=(1, LAYER), shard_sequences=30, max_norm=1.3)
    cache_residuals(paths.model, paths.train_tokens, paths.heldout_tokens, settings, False, paths.residuals)
    write_unigrams(paths.model, paths.train_tokens, Unigrams(), [LAYER], False, {LAYER: paths.unigrams})
    return paths


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine, the threads of tiny products spend their time waiting for each other."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def prepared(tiny_corpus: Path, tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(tiny_corpus, tiny_gpt2, tmp_path_factory.getbasetemp() / "prepared")


@pytest.fixture(scope="module")
def cache(prepared: Prepared) -> ResidualCache:
    return open_residuals(prepared.residuals, "train", LAYER)


def train_point(prepared: Prepared, folder: Path, table: str, seed: int = 0) -> Path:
    job = Job(layer=LAYER, point=POINTS[table], seed=seed)
    train(job, SETTINGS, prepared.residuals, prepared.unigrams, folder)
    return folder


@pytest.fixture(scope="module")
def trained(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {table: train_point(prepared, tmp_path_factory.mktemp("saes") / table, table) for table in POINTS}


def write_cache(folder: Path, residuals: Tensor, tokens: Tensor, norms: Tensor | None = None) -> ResidualCache:
    """A cache of given residuals (n_seq, n_ctx, d) and tokens (n_seq, n_ctx) in shards of two sequences, of scale 1.

    Position 0 is BOS; tokens of a norm above 1000 are left out.
    """
    n_sequences, n_ctx, d_model = residuals.shape
    norms = residuals.float().norm(dim=2) if norms is None else norms
    paths = [folder / f"shard-{i}.safetensors" for i in range(math.ceil(n_sequences / 2))]
    for i, path in enumerate(paths):
        rows = slice(2 * i, 2 * i + 2)
        columns = {
            "residuals": residuals[rows].flatten(0, 1).half(),
            "tokens": tokens[rows].flatten().int(),
            "positions": torch.arange(n_ctx, dtype=torch.int32).repeat(len(residuals[rows])),
            "norms": norms[rows].flatten().float(),
        }
        files.save_tensors(path, columns, {"fingerprint": "by hand"})
    return ResidualCache(
        d_model=d_model,
        n_ctx=n_ctx,
        n_sequences=n_sequences,
        n_rows=tokens.numel(),
        n_kept=int((norms[:, 1:] <= 1000).sum()),
        n_outliers=int((norms[:, 1:] > 1000).sum()),
        scale=1.0,
        median_norm=1.0,
        mean_norm=1.0,
        max_norm=1000.0,
        include_bos=False,
        shards=paths,
        shard_sequences=2,
        fingerprint="by hand",
        made_from={},
        index=folder / "index.json",
    )


# --- batches ---------------------------------------------------------------------------------------------------------


def batch_settings(tokens: int, batch_size: int, buffer_tokens: int = 10**6) -> Training:
    return SETTINGS.model_copy(
        update={"tokens": tokens, "batch_size": batch_size, "buffer_tokens": buffer_tokens},
    )


def count_rows(rows: Tensor) -> dict[tuple[float, ...], int]:
    found, counts = rows.unique(dim=0, return_counts=True)
    return dict(zip(map(tuple, found.tolist()), counts.tolist(), strict=True))


def read_batches(cache: ResidualCache, settings: Training, seed: int = 0) -> Tensor:
    """(n, d + 1): every row of every batch, its token last."""
    batches = list(training_batches(cache, settings, seed))
    assert {len(batch.residuals) for batch in batches} == {settings.batch_size}
    return torch.cat([torch.cat([batch.residuals, batch.tokens[:, None]], dim=1) for batch in batches])


def kept_rows(cache: ResidualCache) -> Tensor:
    rows = cache.kept_rows()
    return torch.cat([rows.residuals / cache.scale, rows.tokens[:, None]], dim=1)


@pytest.mark.parametrize("buffer_tokens", [10**6, 700, 1])
def test_an_epoch_visits_every_kept_row_once(cache: ResidualCache, buffer_tokens: int) -> None:
    assert len(cache.shards) > 3
    seen = read_batches(cache, batch_settings(cache.n_kept, 1, buffer_tokens))
    assert count_rows(seen) == count_rows(kept_rows(cache))


@pytest.mark.parametrize("buffer_tokens", [10**6, 700, 1])
def test_rows_that_fill_no_batch_go_on_to_the_next_buffer(cache: ResidualCache, buffer_tokens: int) -> None:
    expected = count_rows(kept_rows(cache))
    batch_size = next(size for size in (7, 11, 13) if cache.n_kept % size)
    first = count_rows(read_batches(cache, batch_settings(cache.n_kept, batch_size, buffer_tokens)))
    assert sum(first.values()) == cache.n_kept // batch_size * batch_size
    assert all(count <= expected[row] for row, count in first.items())
    # Whatever is left of each epoch, a whole number of batches holds a whole number of epochs.
    whole = count_rows(read_batches(cache, batch_settings(batch_size * cache.n_kept, batch_size, buffer_tokens)))
    assert whole == {row: batch_size * count for row, count in expected.items()}


def test_neither_bos_nor_outliers_nor_heldout_documents(prepared: Prepared, cache: ResidualCache) -> None:
    ids = load_tokens(prepared.train_tokens)
    heldout = load_tokens(prepared.heldout_tokens)
    assert not (set(ids.documents[:, 1:].unique().tolist()) & set(heldout.documents[:, 1:].unique().tolist()))
    assert 0 < cache.n_outliers < cache.n_kept
    norms = torch.cat([cache.shard(i).norms for i in range(len(cache.shards))]).view(ids.ids.shape)
    kept = norms <= cache.max_norm * norms[:, 1:].flatten().median()
    kept[:, 0] = False
    assert cache.n_kept == kept.sum() == kept[:, 1:].numel() - cache.n_outliers
    tokens = torch.cat([batch.tokens for batch in training_batches(cache, batch_settings(cache.n_kept, 1), 0)])
    assert torch.equal(tokens.bincount(minlength=512), ids.ids[kept].bincount(minlength=512))


@pytest.mark.parametrize(("tokens", "n_batches"), [(128, 1), (1000, 7), (1024, 8), (9999, 78)])
def test_number_of_batches(cache: ResidualCache, tokens: int, n_batches: int) -> None:
    assert len(list(training_batches(cache, batch_settings(tokens, 128), 0))) == n_batches


def test_batches_are_scaled_and_typed(cache: ResidualCache) -> None:
    batch = next(training_batches(cache, batch_settings(3000, 3000), 0))
    assert (batch.residuals.dtype, batch.tokens.dtype) == (torch.float32, torch.int64)
    norm = batch.residuals.norm(dim=1).mean().item()
    assert norm == pytest.approx(math.sqrt(cache.d_model), rel=0.02)


def test_batches_are_shuffled_by_the_seed(cache: ResidualCache) -> None:
    def first(seed: int) -> Tensor:
        return read_batches(cache, batch_settings(512, 128), seed)

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))
    assert not torch.equal(first(0), kept_rows(cache)[:512])
    # Of one epoch and the next, in one buffer: the same rows in another order.
    both = read_batches(cache, batch_settings(2 * cache.n_kept, cache.n_kept))
    assert not torch.equal(both[: cache.n_kept], both[cache.n_kept :])
    assert count_rows(both[: cache.n_kept]) == count_rows(both[cache.n_kept :])


def test_less_than_one_batch_is_refused() -> None:
    data = yaml.safe_load((Path(__file__).parents[1] / "config" / "smoke.yaml").read_text())
    config.parse(data)
    data["training"]["tokens"] = data["training"]["batch_size"] - 1
    with pytest.raises(ValueError, match=r"training\.tokens"):
        config.parse(data)


# --- tables ----------------------------------------------------------------------------------------------------------


def initial_table(prepared: Prepared, cache: ResidualCache) -> Tensor:
    return 0.5 * (load_unigrams(prepared.unigrams) / cache.scale)


def initial_sae(table: str, prepared: Prepared, cache: ResidualCache) -> SAE:
    unigrams = load_unigrams(prepared.unigrams) / cache.scale
    rows = cache.kept_rows()
    mean_unigram = unigrams[rows.tokens.long()].mean(0)
    return SAE.initialise(POINTS[table], unigrams, rows.residuals.mean(0) / cache.scale, mean_unigram, seed=0)


def test_b_dec_starts_at_the_mean_of_what_the_table_leaves(
    prepared: Prepared, cache: ResidualCache, tmp_path: Path
) -> None:
    # At a learning rate of nothing a trained SAE is the initial one.
    settings = SETTINGS.model_copy(update={"tokens": 128, "lr": 1e-30, "lr_end": 0.0, "table_lr": 1e-30})
    for table in POINTS:
        train(Job(layer=LAYER, point=POINTS[table], seed=0), settings, prepared.residuals, prepared.unigrams, tmp_path)
        b_dec = files.load_tensors(tmp_path / "sae.safetensors")["b_dec"]
        torch.testing.assert_close(b_dec, initial_sae(table, prepared, cache).b_dec, rtol=1e-4, atol=1e-5)


def seen_in_training(cache: ResidualCache) -> Tensor:
    return cache.kept_rows().tokens.bincount(minlength=512) > 0


def test_learned_rows_of_seen_tokens_move_and_no_others(
    prepared: Prepared, cache: ResidualCache, trained: dict[str, Path]
) -> None:
    table, start = (
        files.load_tensors(trained["learned"] / "sae.safetensors")["W_lookup"],
        initial_table(prepared, cache),
    )
    seen = seen_in_training(cache)
    assert 10 < seen.sum() < 502
    assert torch.equal((table != start).any(1), seen)
    assert torch.equal(table[~seen], start[~seen])
    assert (table - start)[seen].norm(dim=1).min() > 1e-3


def test_fixed_tables_stay(prepared: Prepared, cache: ResidualCache, trained: dict[str, Path]) -> None:
    tensors = files.load_tensors(trained["fixed"] / "sae.safetensors")
    assert torch.equal(tensors["W_lookup"], initial_table(prepared, cache))
    start = initial_sae("fixed", prepared, cache)
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        assert not torch.equal(tensors[name], getattr(start, name))


def test_baselines_have_no_table(trained: dict[str, Path]) -> None:
    assert "W_lookup" not in files.load_tensors(trained["none"] / "sae.safetensors")
    assert load(trained["none"]).W_lookup is None


def test_the_tables_first_step_by_hand() -> None:
    table = torch.zeros(4, 2)
    optimizer = TableOptimizer(table, lr=0.1)
    gradients = torch.tensor([[-3.0, 2.0], [1.0, -1.0], [2.0, -3.0]])
    optimizer.step(torch.tensor([3, 1, 3]), gradients)
    # Row 3 has the gradient (-1, -1). Adam's first step is lr against the sign, whatever the size.
    expected = torch.tensor([[0.0, 0.0], [-0.1, 0.1], [0.0, 0.0], [0.1, 0.1]])
    torch.testing.assert_close(table, expected)
    before = table.clone()
    optimizer.step(torch.tensor([0]), torch.tensor([[1.0, 1.0]]))
    assert torch.equal(table[1:], before[1:])
    assert (table[0] < 0).all()


# --- a whole run -----------------------------------------------------------------------------------------------------


def read_history(folder: Path) -> list[dict[str, float]]:
    with (folder / "history.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize("table", ["none", "learned"])
def test_same_seed_same_bytes(prepared: Prepared, trained: dict[str, Path], tmp_path: Path, table: str) -> None:
    again, other = (train_point(prepared, tmp_path / str(seed), table, seed) for seed in (0, 1))
    names = {"sae.safetensors", "history.csv", "config.json"}
    assert {path.name for path in again.iterdir()} == names
    for name in names:
        assert (again / name).read_bytes() == (trained[table] / name).read_bytes()
        assert (other / name).read_bytes() != (again / name).read_bytes()


@pytest.mark.parametrize("table", list(POINTS))
def test_history_falls(prepared: Prepared, trained: dict[str, Path], table: str) -> None:
    history = read_history(trained[table])
    assert [row["step"] for row in history] == sorted(history_steps(100, 5))
    assert [row["tokens"] for row in history] == [128 * row["step"] for row in history]
    for name in ("loss", "heldout_nmse", "heldout_fvu"):
        assert history[-1][name] < 0.7 * history[0][name]
    assert history[-1]["lr"] == pytest.approx(SETTINGS.lr_end, rel=1e-9)

    # The last row is what the written checkpoint does; there are fewer held-out tokens than history_tokens.
    rows = open_residuals(prepared.residuals, "heldout", LAYER).kept_rows()
    x_hat = load(trained[table])(rows.residuals, rows.tokens)
    nmse = ((rows.residuals - x_hat).norm(dim=1) / rows.residuals.norm(dim=1)).square().mean().item()
    variance = (rows.residuals - rows.residuals.mean(0)).square().sum()
    assert history[-1]["heldout_nmse"] == pytest.approx(nmse, rel=1e-4)
    assert history[-1]["heldout_fvu"] == pytest.approx(
        ((rows.residuals - x_hat).square().sum() / variance).item(), rel=1e-4
    )


def test_loss_is_the_mean_squared_error_since_the_last_record(prepared: Prepared, cache: ResidualCache) -> None:
    # At a learning rate of almost nothing every step has the loss of the initial SAE.
    settings = SETTINGS.model_copy(update={"tokens": 1280, "lr": 1e-12, "lr_end": 0.0, "history_points": 2})
    sae = initial_sae("none", prepared, cache)
    losses = [(sae(*batch) - batch.residuals).square().mean().item() for batch in training_batches(cache, settings, 3)]
    heldout = open_residuals(prepared.residuals, "heldout", LAYER)
    history, _ = train_sae(sae, cache, heldout, settings, learn_table=False, seed=3, label="test")
    assert [row["step"] for row in history] == [1, 10]
    assert history[0]["loss"] == pytest.approx(losses[0], rel=1e-5)
    assert history[1]["loss"] == pytest.approx(sum(losses[1:]) / 9, rel=1e-5)


def test_config_tells_how_the_sae_was_made(prepared: Prepared, cache: ResidualCache, trained: dict[str, Path]) -> None:
    metadata = json.loads((trained["learned"] / "config.json").read_text())
    assert metadata["hook_point"] == "blocks.2.hook_resid_pre"
    assert (metadata["seed"], metadata["layer"], metadata["scale"]) == (0, LAYER, cache.scale)
    assert Point(**metadata["point"]) == POINTS["learned"]
    assert Training(**metadata["training"]) == SETTINGS
    assert (metadata["n_features"], metadata["d_model"], metadata["tokens_trained"]) == (64, 32, 12_800)
    assert metadata["final"] == read_history(trained["learned"])[-1]
    assert metadata["residuals"]["tokens"]["train"]["sha256"] == files.sha256(prepared.train_tokens)
    assert metadata["residuals"]["model"] == json.loads((prepared.model / "source.json").read_text())
    assert (metadata["residuals"]["max_norm"], metadata["residuals"]["kept"]) == (cache.max_norm, cache.n_kept)
    assert metadata["unigrams"]["sha256"] == files.sha256(prepared.unigrams)
    assert metadata["unigrams"]["prefix"] == ""


@pytest.fixture
def learning_rates() -> Iterator[dict[str, list[float]]]:
    """The learning rate at every step of every optimizer, by its name."""
    rates: dict[str, list[float]] = {}

    def record(optimizer: torch.optim.Optimizer, *_: object) -> None:
        rates.setdefault(type(optimizer).__name__, []).append(optimizer.param_groups[0]["lr"])

    handle = register_optimizer_step_pre_hook(record)
    yield rates
    handle.remove()


def test_learning_rates_follow_the_cosine(
    prepared: Prepared, tmp_path: Path, learning_rates: dict[str, list[float]]
) -> None:
    train_point(prepared, tmp_path, "learned")
    cosine = [(1 + math.cos(math.pi * step / 100)) / 2 for step in range(100)]
    assert set(learning_rates) == {"Adam", "SparseAdam"}
    assert learning_rates["Adam"] == pytest.approx([3e-4 + (3e-3 - 3e-4) * part for part in cosine], rel=1e-9)
    assert learning_rates["SparseAdam"] == pytest.approx([1e-3 + (1e-2 - 1e-3) * part for part in cosine], rel=1e-9)


def test_history_steps() -> None:
    assert history_steps(1000, 3) == {10, 100, 1000}
    assert history_steps(1, 20) == {1}
    assert history_steps(3, 20) == {1, 2, 3}
    for n_steps, n_points in itertools.product((7, 100, 12_345), (2, 20)):
        steps = history_steps(n_steps, n_points)
        assert max(steps) == n_steps
        assert min(steps) >= 1
        assert 2 <= len(steps) <= n_points


def test_last_fired_by_hand(tmp_path: Path) -> None:
    d_model = 4
    # Rows along the axes 0, 1, 2, and one whose largest pre-activation is 0; BOS and an outlier along axis 3.
    residuals = torch.zeros(2, 5, d_model)
    residuals[:, 0, 3] = 5.0
    residuals[0, 1, 0] = residuals[0, 2, 1] = residuals[0, 3, 2] = residuals[1, 1, 0] = 5.0
    residuals[0, 4, 3] = 2000.0
    residuals[1, 2] = -5.0
    residuals[1, 3, 1] = residuals[1, 4, 1] = 5.0
    cache = write_cache(tmp_path, residuals, torch.zeros(2, 5, dtype=torch.int32))
    assert cache.n_kept == 7
    settings = Training(tokens=7, batch_size=1, lr=1e-9, lr_end=0, table_lr=1e-9, buffer_tokens=100)
    identity = torch.eye(d_model)
    sae = SAE(identity.clone(), identity.clone(), torch.zeros(d_model), torch.zeros(d_model), None, k=1)
    expected = [-1] * d_model
    for step, batch in enumerate(training_batches(cache, settings, seed=4), start=1):
        if batch.residuals.max() > 0:
            expected[int(batch.residuals.argmax())] = step
    _, last_fired = train_sae(sae, cache, cache, settings, learn_table=False, seed=4, label="test")
    assert last_fired.tolist() == expected
    assert expected[3] == -1
    assert len(set(expected)) == 4

    # In batches of two, the count is that of the tokens up to the end of the batch.
    pairs = settings.model_copy(update={"tokens": 6, "batch_size": 2})
    expected = [-1] * d_model
    for step, batch in enumerate(training_batches(cache, pairs, seed=4), start=1):
        for row in batch.residuals[batch.residuals.max(1).values > 0]:
            expected[int(row.argmax())] = 2 * step
    _, last_fired = train_sae(sae, cache, cache, pairs, learn_table=False, seed=4, label="test")
    assert last_fired.tolist() == expected
    assert set(expected) <= {-1, 2, 4, 6}


def test_last_fired_is_written(trained: dict[str, Path]) -> None:
    last_fired = load_last_fired(trained["none"])
    assert (last_fired.shape, last_fired.dtype) == ((64,), torch.int64)
    assert last_fired.max() == 12_800
    assert (last_fired[last_fired >= 0] % 128 == 0).all()


def test_a_loss_that_is_not_finite_names_the_step(prepared: Prepared, cache: ResidualCache, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"lr": 1e30})
    job = Job(layer=LAYER, point=POINTS["none"], seed=0)
    with pytest.raises(
        FloatingPointError, match=r"layer2/topk-k4-x2-none-s0: the loss is not finite at step 2; .*training\.lr"
    ):
        train(job, settings, prepared.residuals, prepared.unigrams, tmp_path / "sae")
    assert not (tmp_path / "sae" / "config.json").exists()


def test_training_imports_no_model_library() -> None:
    code = "import sys, tsae.train; print(*{'transformers', 'transformer_lens'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.split() == []
