"""Reading residuals, from disk and from the model."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fixtures.residuals import SEQUENCES, forget
from fixtures.tokens import N_CTX
from safetensors import safe_open

from tsae.model.language_model import load_model
from tsae.residuals.read import open_residuals
from tsae.store.tensors import load_metadata, load_tensors, save_tensors


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


def test_streamed_residuals_are_the_cached_ones(inputs: Path, index: Path, streamed: Path) -> None:
    for layer in (1, 3):
        whole = open_residuals(index, "train", layer)
        cache = open_residuals(streamed, "train", layer, inputs / "model")
        assert cache.streamed == {1, 2}
        on_disk = [set(load_tensors(path)) for path in cache.shards]
        # Ids are on disk once, positions not at all.
        of_streamed = {"norms", "tokens"} if layer == 1 else {"norms"}
        assert on_disk == [{"residuals", "tokens", "positions", "norms"}, *2 * [of_streamed]]
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


def test_reading_imports_no_model_library() -> None:
    code = "import sys, tsae.residuals.read, tsae.residuals.unigrams; print(*{'transformers', 'transformer_lens'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.split() == []
