"""The index: statistics by hand, and checks of its parts and shards."""

import functools
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from fixtures.residuals import SEQUENCES, SETTINGS, age, contents, modified, run, run_part
from fixtures.tokens import write_tokens
from torch import Tensor

from tsae.model.language_model import LanguageModel
from tsae.profile.inputs import Residuals
from tsae.residuals import index_residuals as indexing
from tsae.residuals import write_residuals as cache
from tsae.residuals.index_residuals import index_residuals
from tsae.residuals.read import open_residuals
from tsae.residuals.shards import sampled_shards
from tsae.store.tensors import load_metadata, load_tensors, save_tensors


class NormsModel(LanguageModel):
    """A model whose residual at layer L has the norm that the test gives for its token, plus L."""

    def __init__(self, norms: dict[int, float]) -> None:
        self.n_layers, self.d_model, self.vocab_size, self.n_positions = 4, 4, 512, None
        self.norms = norms

    def residuals(self, ids: Tensor, layers: Iterable[int], prefix: Sequence[int] = ()) -> dict[int, Tensor]:
        norms = torch.tensor([[self.norms[int(token)] for token in row] for row in ids])
        return {layer: (norms + layer)[..., None] * torch.tensor([0.6, 0.0, 0.0, -0.8]) for layer in layers}


@pytest.fixture
def run_norms(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[int, float], list[list[int]], Residuals], Path]:
    def run_with(norms: dict[int, float], train: list[list[int]], settings: Residuals) -> Path:
        shutil.copytree(inputs / "model", tmp_path / "model")
        for split, rows in {"train": train, "heldout": [[0, 1, 9, 1]]}.items():
            write_tokens(tmp_path / f"{split}.safetensors", len(rows), 0, n_ctx=len(rows[0]))
            tensors = load_tensors(tmp_path / f"{split}.safetensors")
            metadata = load_metadata(tmp_path / f"{split}.safetensors")
            save_tensors(tmp_path / f"{split}.safetensors", {**tensors, "ids": torch.tensor(rows).int()}, metadata)
        monkeypatch.setattr(cache, "load_model", lambda *_: NormsModel(norms))
        run(tmp_path, tmp_path / "cache" / "index.json", settings)
        return tmp_path / "cache" / "index.json"

    return run_with


NORMS = {0: 1000.0, 1: 1.0, 2: 2.0, 3: 3.0, 5: 5.0, 9: 9.0}
TRAIN = [[0, 1, 2, 3], [0, 2, 9, 2], [0, 3, 1, 5]]


def test_statistics_by_hand(run_norms: Callable[..., Path]) -> None:
    index = run_norms(NORMS, TRAIN, Residuals(layers=(0,), max_norm=4.0, shard_sequences=2))
    described = json.loads(index.read_text())["layers"]["0"]
    # Norms without BOS: 1 2 3 | 2 9 2 | 3 1 5, sorted 1 1 2 2 2 3 3 5 9; 9 is above 4 * 2.
    assert described["median_norm"] == pytest.approx(2.0, rel=1e-6)
    assert described["train"] == {"tokens": 12, "bos": 3, "outliers": 1, "kept": 8}
    assert described["mean_norm"] == pytest.approx(19 / 8, rel=1e-6)
    assert described["scale"] == pytest.approx(19 / 8 / math.sqrt(4), rel=1e-6)
    assert described["heldout"] == {"tokens": 4, "bos": 1, "outliers": 1, "kept": 2}

    cache = open_residuals(index, "train", 0)
    assert (cache.n_rows, cache.n_kept, cache.max_norm, cache.include_bos) == (12, 8, 4.0, False)
    assert (cache.scale, cache.median_norm) == (described["scale"], described["median_norm"])
    assert cache.shard(0).kept.tolist() == [False, True, True, True, False, True, False, True]
    kept = cache.kept_rows()
    assert kept.tokens.tolist() == [1, 2, 3, 2, 2, 3, 1, 5]
    assert kept.sequences.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert kept.residuals.dtype == torch.float32
    torch.testing.assert_close(kept.residuals.norm(dim=1), kept.tokens.float(), rtol=1e-3, atol=0)
    torch.testing.assert_close(cache.mean(), torch.tensor([0.6, 0.0, 0.0, -0.8]) * 19 / 8, rtol=1e-3, atol=0)
    counts = cache.token_counts(512)
    assert counts[:10].tolist() == [0, 2, 3, 2, 0, 1, 0, 0, 0, 0] and counts.sum() == 8
    with pytest.raises(ValueError, match=r"layer0\.safetensors: counts 512 tokens of the vocabulary, and not 511"):
        cache.token_counts(511)


def test_the_mean_of_a_large_cache_is_that_of_a_sample(run_norms: Callable[..., Path]) -> None:
    # Five shards of one sequence. Two of them hold 8 tokens; evenly spaced, they are the first and the last.
    train = [[0, 1, 1, 1], [0, 2, 2, 2], [0, 2, 2, 2], [0, 2, 2, 2], [0, 3, 3, 9]]
    described = Residuals(layers=(0,), shard_sequences=1, mean_tokens=8)
    index = run_norms(NORMS, train, described)
    mean = open_residuals(index, "train", 0).mean()
    torch.testing.assert_close(mean, torch.tensor([0.6, 0.0, 0.0, -0.8]) * 9 / 5, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("n_sequences", "mean_tokens", "sampled"),
    [
        (10, 160, [0, 1, 2, 3]),  # the last shard is short: all 10 sequences are 160 tokens
        (10, 159, [0, 1, 3]),
        (10, 96, [0, 3]),
        (10, 1, [0]),
        (3, 1, [0]),
    ],
)
def test_sampled_shards(n_sequences: int, mean_tokens: int, sampled: list[int]) -> None:
    assert sampled_shards(n_sequences, 16, 3, mean_tokens) == sampled


def test_statistics_with_bos_by_hand(run_norms: Callable[..., Path]) -> None:
    index = run_norms(NORMS, TRAIN, Residuals(layers=(0,), max_norm=4.0, include_bos=True))
    described = json.loads(index.read_text())["layers"]["0"]
    # 1 1 2 2 2 3 3 5 9 1000 1000 1000: the lower median is 3, so 9 stays. BOS stays whatever its norm.
    assert described["median_norm"] == pytest.approx(3.0, rel=1e-6)
    assert described["train"] == {"tokens": 12, "bos": 3, "outliers": 0, "kept": 12}
    assert described["mean_norm"] == pytest.approx(3028 / 12, rel=1e-6)
    assert open_residuals(index, "train", 0).shard(0).kept.all()


def _parts(values: torch.Tensor) -> Iterator[torch.Tensor]:
    return iter(values.split(100))


def test_median_of_many_parts_is_the_whole_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    for n in (1, 2, 7, 1000, 1001):
        values = torch.rand(n, generator=generator) * 10.0 ** torch.randint(-3, 5, (n,), generator=generator)
        assert indexing._median(functools.partial(_parts, values)) == values.median().item()


def test_no_training_token_below_the_largest_norm(run_norms: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"residuals\.max_norm: 0\.1 times .* leaves no training token at layer 0"):
        run_norms(NORMS, TRAIN, Residuals(layers=(0,), max_norm=0.1))


def test_a_token_beyond_float16_that_is_left_out(run_norms: Callable[..., Path]) -> None:
    cache = open_residuals(run_norms({**NORMS, 9: 90_000.0}, TRAIN, Residuals(layers=(2,))), "train", 2)
    assert cache.n_outliers == 1
    assert cache.kept_rows().residuals.abs().max() < 10


def test_a_kept_token_beyond_float16(run_norms: Callable[..., Path]) -> None:
    with pytest.raises(
        ValueError, match=r"residuals\.layers: at layer 2, 1 tokens of .* with norms up to 9e\+04; choose other"
    ):
        run_norms({**NORMS, 9: 90_000.0}, TRAIN, Residuals(layers=(2,), max_norm=1e6))


def test_a_residual_that_is_not_finite(run_norms: Callable[..., Path]) -> None:
    with pytest.raises(
        ValueError, match=r"residuals\.layers: a residual is not finite at layer 2, in one of sequences 0 to 2 of the"
    ):
        run_norms({**NORMS, 9: math.inf}, TRAIN, Residuals(layers=(2,)))


def test_an_index_is_made_of_whole_parts_alone(inputs: Path, copied: Path, tmp_path: Path) -> None:
    folder = copied.parent
    parts = [run_part(inputs, folder, place, 2) for place in range(2)]
    with pytest.raises(ValueError, match=r"parts: parts \[1\] do not make one cache of 2; delete this folder"):
        index_residuals(SETTINGS, parts[1:], copied)
    shutil.copytree(inputs, tmp_path / "inputs")
    write_tokens(tmp_path / "inputs" / "train.safetensors", SEQUENCES["train"], seed=7)
    run_part(tmp_path / "inputs", folder, 0, 2)
    with pytest.raises(ValueError, match=r"parts \[0, 1\] do not make one cache of 2"):
        index_residuals(SETTINGS, parts, copied)
    parts[0].write_text("[]")
    with pytest.raises(ValueError, match=r"parts/0\.json: not what caching residuals wrote"):
        index_residuals(SETTINGS, parts, copied)
    assert not copied.exists()


def test_only_a_damaged_shard_is_made_again(inputs: Path, index: Path, copied: Path) -> None:
    shard = copied.parent / "train" / "layer1" / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    before = age(copied)
    remedy = r"train/layer1/shard-00001\.safetensors: damaged, .* was written; `make verify-artefacts REMOVE=1`.* restore it$"
    with pytest.raises(ValueError, match=remedy):
        index_residuals(SETTINGS, [copied.parent / "parts/0.json"], copied)
    with pytest.raises(ValueError, match=remedy):
        open_residuals(copied, "train", 1).shard(1)
    run(inputs, copied)
    after = modified(copied)
    assert {path for path in after if after[path] != before[path]} == {"train/layer1/shard-00001.safetensors"}
    assert contents(copied) == contents(index)
