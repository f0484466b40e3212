"""Caching residuals: which shards are written, kept, rewritten and refused."""

import re
import shutil
from pathlib import Path

import pytest
from fixtures.residuals import SEQUENCES, SETTINGS, STREAMED, age, contents, forget, modified, run, run_part
from fixtures.tokens import N_CTX, write_tokens
from torch import Tensor

from tsae.model.language_model import LanguageModel
from tsae.profile.inputs import Residuals
from tsae.residuals import write_residuals as cache
from tsae.residuals.read import open_residuals
from tsae.residuals.write_residuals import cache_residuals
from tsae.store.tensors import load_metadata, load_tensors, save_tensors


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


def test_an_interrupted_job_resumes_at_the_first_missing_shard(
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
    # The first of two parts has shards 0 and 1 of training. Its job must not touch files that the second's is writing.
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


def test_inputs_that_do_not_fit_the_model(inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "residuals" / "index.json"
    with pytest.raises(ValueError, match=r"residuals\.layers: layer 4 does not exist; the model has layers 0 to 3"):
        run(inputs, output, Residuals(layers=(1, 4)))
    shutil.copytree(inputs, tmp_path / "inputs")
    write_tokens(tmp_path / "inputs" / "heldout.safetensors", 2, 0, n_ctx=8)
    with pytest.raises(ValueError, match=r"heldout\.safetensors: sequences of 8 tokens, and of 16 in"):
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
