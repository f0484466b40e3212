import functools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from fixtures.tokens import N_CTX, write_tokens
from safetensors import safe_open
from torch import Tensor

from tsae.model.language_model import LanguageModel, load_model
from tsae.model.write_model import prepare_model
from tsae.profile.inputs import Residuals
from tsae.profile.sources import FolderModel
from tsae.residuals import index_residuals as indexing
from tsae.residuals import write_residuals as cache
from tsae.residuals.index_residuals import index_residuals
from tsae.residuals.read import open_residuals
from tsae.residuals.shards import sampled_shards
from tsae.residuals.write_residuals import cache_residuals
from tsae.store.tensors import load_metadata, load_tensors, save_tensors

SEQUENCES = {"train": 11, "heldout": 5}
SETTINGS = Residuals(layers=(3, 1), batch_sequences=2, shard_sequences=4)


@pytest.fixture(scope="session")
def inputs(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a prepared model and both splits of tokens."""
    folder = tmp_path_factory.mktemp("inputs")
    prepare_model(FolderModel(kind="folder", path=tiny_llama), folder, folder / "model")
    for seed, (split, n_sequences) in enumerate(SEQUENCES.items()):
        write_tokens(folder / f"{split}.safetensors", n_sequences, seed)
    return folder


def run_part(
    inputs: Path,
    folder: Path,
    place: int = 0,
    n_parts: int = 1,
    settings: Residuals = SETTINGS,
    compatibility_mode: bool = False,
    streams: bool = False,
) -> Path:
    cache_residuals(
        inputs / "model",
        inputs / "train.safetensors",
        inputs / "heldout.safetensors",
        settings,
        compatibility_mode,
        folder,
        place,
        n_parts,
        streams,
    )
    return folder / f"parts/{place}.json"


def run(
    inputs: Path,
    output: Path,
    settings: Residuals = SETTINGS,
    compatibility_mode: bool = False,
    streams: bool = False,
    n_parts: int = 1,
) -> None:
    parts = [
        run_part(inputs, output.parent, place, n_parts, settings, compatibility_mode, streams)
        for place in range(n_parts)
    ]
    index_residuals(settings, parts, output)


@pytest.fixture(scope="session")
def index(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("cache") / "residuals" / "index.json"
    run(inputs, output)
    return output


@pytest.fixture
def copied(index: Path, tmp_path: Path) -> Path:
    """A cache of the test's own."""
    shutil.copytree(index.parent, tmp_path / "residuals")
    return tmp_path / "residuals" / "index.json"


def forget(path: Path) -> None:
    """Let a file be one of another program: without a record of its sha256."""
    path.with_name(f".{path.name}.sha256").unlink()


def contents(index: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(index.parent)): path.read_bytes() for path in index.parent.rglob("*") if path.is_file()
    }


def modified(index: Path) -> dict[str, int]:
    return {str(path.relative_to(index.parent)): path.stat().st_mtime_ns for path in index.parent.rglob("shard-*")}


def age(index: Path) -> dict[str, int]:
    """Date every shard back, so that rewriting one shows."""
    for path in index.parent.rglob("shard-*"):
        os.utime(path, (1e9, 1e9))
    return modified(index)


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("layer", [1, 3])
def test_shards_hold_every_token_in_order(inputs: Path, index: Path, split: str, layer: int) -> None:
    ids = load_tensors(inputs / f"{split}.safetensors")["ids"]
    expected = load_model(inputs / "model").residuals(ids.long(), [layer])[layer].flatten(0, 1)
    cache = open_residuals(index, split, layer)
    shards = [cache.shard(i) for i in range(len(cache.shards))]
    assert [len(shard.tokens) // N_CTX for shard in shards] == {"train": [4, 4, 3], "heldout": [4, 1]}[split]
    assert (cache.d_model, cache.n_ctx, cache.n_sequences) == (32, N_CTX, SEQUENCES[split])
    assert cache.n_rows == SEQUENCES[split] * N_CTX
    torch.testing.assert_close(torch.cat([shard.residuals for shard in shards]).float(), expected, rtol=1e-3, atol=1e-4)
    assert shards[0].residuals.dtype == torch.float16
    assert torch.equal(torch.cat([shard.tokens for shard in shards]), ids.flatten())
    assert torch.equal(torch.cat([shard.positions for shard in shards]), torch.arange(N_CTX).repeat(len(ids)).int())
    torch.testing.assert_close(torch.cat([shard.norms for shard in shards]), expected.norm(dim=1), rtol=1e-5, atol=0)


def test_all_layers_of_a_sequence_share_one_pass(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n_passes = 0
    original = LanguageModel.residuals

    def count(self: LanguageModel, ids: Tensor, layers: list[int]) -> dict[int, Tensor]:
        nonlocal n_passes
        n_passes += 1
        return original(self, ids, layers)

    monkeypatch.setattr(LanguageModel, "residuals", count)
    run(inputs, tmp_path / "index.json")
    # Shards of 4, 4, 3 and 4, 1 sequences, 2 sequences per pass.
    assert n_passes == 2 + 2 + 2 + 2 + 1


def test_same_inputs_same_bytes(inputs: Path, index: Path, tmp_path: Path) -> None:
    run(inputs, tmp_path / "index.json")
    assert contents(tmp_path / "index.json") == contents(index)


# --- statistics ------------------------------------------------------------------------------------------------------


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
    assert (cache.scale, cache.median_norm, cache.mean_norm) == (
        described["scale"],
        described["median_norm"],
        described["mean_norm"],
    )
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
    # Five shards of one sequence; two of them are 8 tokens, and evenly spaced they are the first and the last.
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
    # 1 1 2 2 2 3 3 5 9 1000 1000 1000: the lower median is 3, so 9 stays, and BOS does whatever its norm.
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


def test_beyond_float16(run_norms: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"residuals\.layers: at layer 2 a residual's largest entry is 7\.2e\+04"):
        run_norms({**NORMS, 9: 90_000.0}, TRAIN, Residuals(layers=(2,)))


# --- going on after an interruption ----------------------------------------------------------------------------------


def test_an_interrupted_job_goes_on_at_the_first_missing_shard(
    inputs: Path, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "residuals" / "index.json"
    save, n_saved = save_tensors, 0

    def fill_disk(path: Path, *args: object) -> None:
        nonlocal n_saved
        n_saved += 1
        if n_saved == 4:
            raise OSError("No space left on device")
        save(path, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "save_tensors", fill_disk)
    with pytest.raises(OSError, match="No space left"):
        run(inputs, output)
    monkeypatch.undo()
    assert not output.exists()
    # Both layers of the first shard, and one layer of the second.
    kept = age(output)
    assert len(kept) == 3
    (tmp_path / "residuals" / "train" / "layer1" / ".shard-00001.safetensors.99.tmp").write_bytes(b"half a shard")

    run(inputs, output)
    assert {path: time for path, time in modified(output).items() if path in kept} == kept
    assert contents(output) == contents(index)


def test_a_whole_cache_is_left_alone(inputs: Path, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = age(copied)
    monkeypatch.setattr(LanguageModel, "residuals", None)
    run(inputs, copied)
    assert modified(copied) == before


def test_a_new_layer_costs_only_its_own_shards(inputs: Path, copied: Path) -> None:
    before = age(copied)
    run(inputs, copied, SETTINGS.model_copy(update={"layers": (3, 1, 2)}))
    after = modified(copied)
    assert {path: after[path] for path in before} == before
    assert open_residuals(copied, "heldout", 2).shard(1).residuals.shape == (N_CTX, 32)


@pytest.mark.parametrize("changed", ["train tokens", "compatibility mode", "model", "n_ctx"])
def test_shards_of_other_inputs_are_rewritten(inputs: Path, copied: Path, tmp_path: Path, changed: str) -> None:
    before = age(copied)
    shutil.copytree(inputs, tmp_path / "inputs")
    match changed:
        case "train tokens":
            write_tokens(tmp_path / "inputs" / "train.safetensors", SEQUENCES["train"], seed=7)
        case "model":
            source = tmp_path / "inputs" / "model" / "source.json"
            source.write_text(source.read_text().replace("folder", "other"))
            forget(source)
        case "n_ctx":
            for split, n_sequences in SEQUENCES.items():
                write_tokens(tmp_path / "inputs" / f"{split}.safetensors", n_sequences, seed=7, n_ctx=8)
    run(tmp_path / "inputs", copied, compatibility_mode=changed == "compatibility mode")
    after = modified(copied)
    rewritten = {path for path in before if after[path] != before[path]}
    assert rewritten == {path for path in before if changed != "train tokens" or path.startswith("train")}
    fresh = tmp_path / "fresh" / "index.json"
    run(tmp_path / "inputs", fresh, compatibility_mode=changed == "compatibility mode")
    assert contents(copied) == contents(fresh)


def test_surplus_files_are_removed(inputs: Path, copied: Path, tmp_path: Path) -> None:
    settings = Residuals(layers=(1,), batch_sequences=2, shard_sequences=8)
    run(inputs, copied, settings)
    run(inputs, tmp_path / "fresh" / "index.json", settings)
    assert contents(copied) == contents(tmp_path / "fresh" / "index.json")


def test_a_truncated_shard_is_rewritten(inputs: Path, index: Path, copied: Path) -> None:
    shard = copied.parent / "train" / "layer1" / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    run(inputs, copied)
    assert contents(copied) == contents(index)


# --- in parts, and without training residuals --------------------------------------------------------------------------


@pytest.mark.parametrize("n_parts", [3, 7])
def test_parts_make_the_same_cache(inputs: Path, index: Path, tmp_path: Path, n_parts: int) -> None:
    output = tmp_path / "residuals" / "index.json"
    run(inputs, output, n_parts=n_parts)

    def made(index: Path) -> dict[str, bytes]:
        return {path: content for path, content in contents(index).items() if not path.startswith("parts")}

    assert made(output) == made(index)
    assert len(list(output.parent.glob("parts/*.json"))) == n_parts


def test_a_part_leaves_those_of_others_alone(inputs: Path, copied: Path) -> None:
    folder = copied.parent
    # Two parts: shards 0 and 1 of training are the first's; its job must not touch what the second's is writing.
    others = folder / "train" / "layer1" / ".shard-00002.safetensors.99.tmp"
    left = [folder / "train/layer1/.shard-00001.safetensors.99.tmp", folder / "train/layer1/shard-00009.safetensors"]
    for path in (others, *left):
        path.write_bytes(b"half a shard")
    (folder / "train/layer1/shard-00001.safetensors").unlink()
    (folder / "heldout/layer1/shard-00000.safetensors").write_bytes(b"damaged")
    before = age(copied)
    run_part(inputs, folder, 0, 2)
    after = modified(copied)
    assert before.keys() - after.keys() == {str(path.relative_to(folder)) for path in left if "tmp" not in path.name}
    assert {path for path, time in after.items() if time != before.get(path)} == {
        "train/layer1/shard-00001.safetensors"
    }
    assert others.exists() and not any(path.exists() for path in left)
    assert not copied.exists()


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


def test_a_damaged_shard_is_found_and_made_anew_alone(inputs: Path, index: Path, copied: Path) -> None:
    shard = copied.parent / "train" / "layer1" / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    before = age(copied)
    remedy = r"train/layer1/shard-00001\.safetensors: damaged, .* was written; `make verify-artefacts REMOVE=1`.* anew$"
    with pytest.raises(ValueError, match=remedy):
        index_residuals(SETTINGS, [copied.parent / "parts/0.json"], copied)
    with pytest.raises(ValueError, match=remedy):
        open_residuals(copied, "train", 1).shard(1)
    run(inputs, copied)
    after = modified(copied)
    assert {path for path in after if after[path] != before[path]} == {"train/layer1/shard-00001.safetensors"}
    assert contents(copied) == contents(index)


STREAMED = SETTINGS.model_copy(update={"mean_tokens": 4 * N_CTX})


@pytest.fixture(scope="session")
def streamed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("streamed") / "residuals" / "index.json"
    run(inputs, output, STREAMED, streams=True)
    return output


def test_streamed_residuals_are_the_cached_ones(inputs: Path, index: Path, streamed: Path) -> None:
    for layer in (1, 3):
        whole = open_residuals(index, "train", layer)
        cache = open_residuals(streamed, "train", layer, inputs / "model")
        assert cache.streamed == {1, 2}
        on_disk = [set(load_tensors(path)) for path in cache.shards]
        assert on_disk == [{"residuals", "tokens", "positions", "norms"}, *2 * [{"tokens", "positions", "norms"}]]
        for i in range(3):
            for mine, theirs in zip(cache.shard(i), whole.shard(i), strict=True):
                assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)
            assert torch.equal(cache.kept(i), whole.kept(i).clone())
        assert (cache.scale, cache.n_kept, cache.made_from) == (whole.scale, whole.n_kept, whole.made_from)
        assert torch.equal(cache.token_counts(512), whole.token_counts(512))
        heldout = open_residuals(streamed, "heldout", layer)
        assert torch.equal(heldout.kept_rows().residuals, open_residuals(index, "heldout", layer).kept_rows().residuals)


def test_streamed_residuals_need_the_model_they_are_of(inputs: Path, streamed: Path, tmp_path: Path) -> None:
    cache = open_residuals(streamed, "train", 1)
    cache.shard(0)
    cache.mean()
    with pytest.raises(ValueError, match=r"index\.json: training residuals do not fit residuals\.disk_gb .*--model"):
        cache.shard(1)
    with pytest.raises(ValueError, match=r"source\.json is missing: .* prepare the model first"):
        open_residuals(streamed, "train", 1, tmp_path)
    shutil.copytree(inputs / "model", tmp_path / "model")
    source = tmp_path / "model" / "source.json"
    source.write_text(source.read_text().replace("folder", "other"))
    forget(source)
    with pytest.raises(ValueError, match=r"model: not the model that .*index\.json was made with"):
        open_residuals(streamed, "train", 1, tmp_path / "model")


def test_streaming_needs_less_disk(
    inputs: Path, streamed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_bytes = sum(len(content) for path, content in contents(streamed).items() if "shard" in path)
    usage = shutil._ntuple_diskusage(10**9, 10**9, n_bytes)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"GB are free; free some disk, set residuals\.disk_gb"):
        run(inputs, tmp_path / "index.json", STREAMED)
    run(inputs, tmp_path / "index.json", STREAMED, streams=True)
    assert contents(tmp_path / "index.json") == contents(streamed)


def test_shards_gain_and_lose_their_residuals(inputs: Path, copied: Path, streamed: Path) -> None:
    before = age(copied)
    run(inputs, copied, STREAMED, streams=True)
    after = modified(copied)
    slim = {f"train/layer{layer}/shard-{i:05d}.safetensors" for layer in (1, 3) for i in (1, 2)}
    assert {path for path in after if after[path] != before[path]} == slim
    assert contents(copied) == contents(streamed)
    before = age(copied)
    run(inputs, copied, STREAMED)
    after = modified(copied)
    assert {path for path in after if after[path] != before[path]} == slim
    assert open_residuals(copied, "train", 1).streamed == frozenset()


# --- bad inputs ------------------------------------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_noticed_before_the_work(
    inputs: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied.parent / "train" / "layer1" / "shard-00001.safetensors").unlink()
    before = contents(copied)
    usage = shutil._ntuple_diskusage(10**9, 10**9, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(LanguageModel, "residuals", None)
    with pytest.raises(ValueError, match=r"the missing shards need 0\.0 GB and 0\.0 GB are free"):
        run(inputs, copied)
    assert contents(copied) == before


def test_reading_names_the_shard_that_is_truncated(copied: Path) -> None:
    shard = copied.parent / "heldout" / "layer3" / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    forget(shard)
    cache = open_residuals(copied, "heldout", 3)
    cache.shard(0)
    with pytest.raises(ValueError, match=r"heldout/layer3/shard-00001\.safetensors: not a whole safetensors file"):
        cache.kept_rows()


def test_reading_names_the_shard_of_the_wrong_shape(copied: Path) -> None:
    shard = copied.parent / "train" / "layer3" / "shard-00002.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_tensors(shard).items()}
    save_tensors(shard, tensors | {"residuals": tensors["residuals"][:, :-1]}, load_metadata(shard))
    with pytest.raises(ValueError, match=r"layer3/shard-00002\.safetensors: holds .*\(48, 31\).* instead of"):
        open_residuals(copied, "train", 3).shard(2)


def test_reading_names_the_shard_of_other_inputs(copied: Path) -> None:
    shard = copied.parent / "train" / "layer3" / "shard-00000.safetensors"
    shutil.copyfile(copied.parent / "heldout" / "layer3" / "shard-00000.safetensors", shard)
    forget(shard)
    with pytest.raises(ValueError, match=r"train/layer3/shard-00000\.safetensors: not made from the inputs"):
        open_residuals(copied, "train", 3).shard(0)


def test_reading_what_is_not_cached(index: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"index\.json is missing; cache the residuals first"):
        open_residuals(tmp_path / "index.json", "train", 1)
    with pytest.raises(ValueError, match=r"layer 2 is not cached; add it to residuals\.layers \(1, 3\)"):
        open_residuals(index, "train", 2)
    with pytest.raises(ValueError, match="no split 'test'; it has train, heldout"):
        open_residuals(index, "test", 1)


def test_opening_a_shard_does_not_read_it(tmp_path: Path) -> None:
    path = tmp_path / "shard.safetensors"
    save_tensors(path, {"residuals": torch.zeros(100_000, 256, dtype=torch.float16), "norms": torch.ones(5)})

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    with safe_open(path, framework="pt") as file:
        tensor = file.get_tensor("residuals")
    assert resident() - before < tensor.nbytes / 4


def test_inputs_that_do_not_fit_the_model(inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "residuals" / "index.json"
    with pytest.raises(ValueError, match=r"residuals\.layers: layer 4 does not exist; the model has layers 0 to 3"):
        run(inputs, output, Residuals(layers=(1, 4)))
    shutil.copytree(inputs, tmp_path / "inputs")
    write_tokens(tmp_path / "inputs" / "heldout.safetensors", 2, 0, n_ctx=8)
    with pytest.raises(ValueError, match=r"heldout\.safetensors: sequences of 8 tokens, and of 16 in"):
        run(tmp_path / "inputs", output)
    for split in SEQUENCES:
        write_tokens(tmp_path / "inputs" / f"{split}.safetensors", 2, 0, n_ctx=65)
    with pytest.raises(
        ValueError, match=r"sequences of 65 tokens, and the model takes at most 64; lower tokens\.n_ctx"
    ):
        run(tmp_path / "inputs", output)
    tensors = load_tensors(inputs / "train.safetensors")
    metadata = load_metadata(inputs / "train.safetensors")
    save_tensors(tmp_path / "inputs" / "train.safetensors", {**tensors, "ids": tensors["ids"] + 100}, metadata)
    shutil.copyfile(inputs / "heldout.safetensors", tmp_path / "inputs" / "heldout.safetensors")
    forget(tmp_path / "inputs" / "heldout.safetensors")
    with pytest.raises(ValueError, match=r"train\.safetensors: token id 6\d\d is beyond the model's vocabulary of 512"):
        run(tmp_path / "inputs", output)
    (tmp_path / "inputs" / "model" / "source.json").unlink()
    with pytest.raises(ValueError, match=r"source\.json is missing: .* prepare the model first"):
        run(tmp_path / "inputs", output)
    with pytest.raises(ValueError, match=r"train\.safetensors: not a whole safetensors file"):
        cache_residuals(tmp_path, tmp_path / "train.safetensors", tmp_path, SETTINGS, False, output.parent)
    assert not output.parent.exists()


def test_a_log_gets_one_line(
    inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tsae")
    run(inputs, tmp_path / "index.json")
    assert capfd.readouterr().err == ""
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("tsae")]
    assert len(lines) == 1
    assert re.fullmatch(
        r"residuals: layers 1, 3 of 256 tokens; 0 of 5 shards were there, 256 tokens run, \d+ tokens/s", lines[0]
    )


def test_reading_imports_no_model_library() -> None:
    code = "import sys, tsae.residuals.read, tsae.residuals.unigrams; print(*{'transformers', 'transformer_lens'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.split() == []
