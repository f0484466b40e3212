"""Model folders from every kind of source."""

import hashlib
import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from fixtures.corpora import refused
from huggingface_hub import errors
from huggingface_hub.utils import httpx
from safetensors.torch import load_file

from tsae.model.language_model import load_model
from tsae.model.write_model import check_shape, prepare_model
from tsae.profile.inputs import Model
from tsae.profile.sources import FolderModel, GgufModel, HubModel, PartedGgufModel, wheel_files_of
from tsae.store import files

REVISION = "0123456789" * 4


def test_size_that_the_configuration_states(tiny_gpt2: Path) -> None:
    source = FolderModel(kind="folder", path=tiny_gpt2)
    check_shape(Model(source=source, n_layers=4, d_model=32, vocab_size=512), tiny_gpt2)
    with pytest.raises(
        ValueError, match=r"^model\.n_layers is 5, but the model has 4; model\.d_model is 8, but .* 32$"
    ):
        check_shape(Model(source=source, n_layers=5, d_model=8, vocab_size=512), tiny_gpt2)


def test_folder_is_copied_with_the_hash_of_every_file(tiny_gpt2: Path, tmp_path: Path) -> None:
    source = FolderModel(kind="folder", path=tiny_gpt2)
    prepare_model(source, tmp_path, tmp_path / "model")
    record = json.loads((tmp_path / "model" / "source.json").read_text())
    assert record["source"] == {"kind": "folder", "path": str(tiny_gpt2)}
    names = {path.name for path in (tmp_path / "model").iterdir() if path.suffix != ".sha256"}
    assert names == {*record["files"], "source.json"} >= {"config.json", "model.safetensors", "tokenizer.json"}
    for name, sha256 in record["files"].items():
        assert files.sha256(tiny_gpt2 / name) == sha256
        assert (tmp_path / "model" / name).read_bytes() == (tiny_gpt2 / name).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    load_model(tmp_path / "model")


def test_random_weights_are_new_ones_of_the_same_configuration(tiny_gpt2: Path, tmp_path: Path) -> None:
    source = FolderModel(kind="folder", path=tiny_gpt2)
    for name, seed in (("own", None), ("first", 7), ("again", 7), ("other", 8)):
        prepare_model(source, tmp_path, tmp_path / name, seed)
    own, first, again, other = (
        load_file(tmp_path / name / "model.safetensors") for name in ("own", "first", "again", "other")
    )
    assert own.keys() == first.keys()
    name = "transformer.h.1.mlp.c_fc.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], own[name]) and not torch.equal(first[name], other[name])
    # As GPT-2's library begins: a normal distribution of this width, and biases of zero.
    width = json.loads((tmp_path / "first/config.json").read_text())["initializer_range"]
    assert first[name].std().item() == pytest.approx(width, rel=0.05)
    assert not first["transformer.h.1.mlp.c_fc.bias"].any()
    assert json.loads((tmp_path / "first/source.json").read_text())["random_weights"] == 7
    load_model(tmp_path / "first")


def test_an_earlier_models_files_do_not_stay(tiny_gpt2: Path, tiny_llama: Path, tmp_path: Path) -> None:
    prepare_model(FolderModel(kind="folder", path=tiny_gpt2), tmp_path, tmp_path / "model")
    (tmp_path / "model" / "model-00001-of-00002.safetensors").touch()
    prepare_model(FolderModel(kind="folder", path=tiny_llama), tmp_path, tmp_path / "model")
    record = json.loads((tmp_path / "model" / "source.json").read_text())
    assert {path.name for path in (tmp_path / "model").iterdir() if path.suffix != ".sha256"} == {
        *record["files"],
        "source.json",
    }
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "llama"


def test_an_interrupted_run_leaves_no_source_json(
    tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_model(FolderModel(kind="folder", path=tiny_gpt2), tmp_path, tmp_path / "model")
    replace = Path.replace

    def fail_at_weights(self: Path, target: Path) -> Path:
        if self.name == "model.safetensors":
            raise OSError("interrupted")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail_at_weights)
    with pytest.raises(OSError, match="interrupted"):
        prepare_model(FolderModel(kind="folder", path=tiny_gpt2), tmp_path, tmp_path / "model")
    assert not (tmp_path / "model" / "source.json").exists()
    monkeypatch.undo()
    prepare_model(FolderModel(kind="folder", path=tiny_gpt2), tmp_path, tmp_path / "model")
    load_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", r"model\.source\.path: .*config\.json is missing"),
        ("model.safetensors", r"model\.source\.path: .*no \*\.safetensors"),
        ("tokenizer.json", r"model\.source\.path: .*no tokenizer"),
    ],
)
def test_incomplete_folder(tiny_gpt2: Path, tmp_path: Path, missing: str, message: str) -> None:
    shutil.copytree(tiny_gpt2, tmp_path / "given")
    (tmp_path / "given" / missing).unlink()
    with pytest.raises(ValueError, match=message):
        prepare_model(FolderModel(kind="folder", path=tmp_path / "given"), tmp_path, tmp_path / "model")
    assert list((tmp_path / "model").iterdir()) == []


def test_folder_without_one_of_its_weight_files(tiny_gpt2: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_gpt2, tmp_path / "given")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "given" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"model-2\.safetensors is named in model\.safetensors\.index\.json"):
        prepare_model(FolderModel(kind="folder", path=tmp_path / "given"), tmp_path, tmp_path / "model")


def test_folder_that_is_missing_or_the_output(tiny_gpt2: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.source\.path: .*no such folder"):
        prepare_model(FolderModel(kind="folder", path=tmp_path / "nowhere"), tmp_path, tmp_path / "model")
    with pytest.raises(ValueError, match=r"model\.source\.path: .* is the folder that the model is to be copied to"):
        prepare_model(FolderModel(kind="folder", path=tiny_gpt2), tmp_path, tiny_gpt2)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The local cache of an unreachable hub, with the folder of one model at one commit."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--someone--tiny" / "snapshots" / REVISION
    folder.mkdir(parents=True)
    return folder


def test_hub_model_comes_without_pickles(tiny_gpt2: Path, tmp_path: Path, hub_cache: Path) -> None:
    shutil.copytree(tiny_gpt2, hub_cache, dirs_exist_ok=True)
    (hub_cache / "pytorch_model.bin").touch()
    prepare_model(HubModel(kind="huggingface", id="someone/tiny", revision=REVISION), tmp_path, tmp_path / "model")
    assert not (tmp_path / "model" / "pytorch_model.bin").exists()
    assert load_model(tmp_path / "model").n_layers == 4


def test_hub_model_with_pickles_only(tiny_gpt2: Path, tmp_path: Path, hub_cache: Path) -> None:
    shutil.copytree(tiny_gpt2, hub_cache, dirs_exist_ok=True)
    (hub_cache / "model.safetensors").rename(hub_cache / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"model\.source\.id: someone/tiny: no \*\.safetensors"):
        prepare_model(HubModel(kind="huggingface", id="someone/tiny", revision=REVISION), tmp_path, tmp_path / "model")


def test_hub_model_out_of_reach(tmp_path: Path, hub_cache: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.source\.id: someone/else at .* could not be downloaded"):
        prepare_model(HubModel(kind="huggingface", id="someone/else", revision=REVISION), tmp_path, tmp_path / "model")
    with pytest.raises(ValueError, match=r"model\.source\.id: a/b/c at .* the hub has no such model"):
        prepare_model(HubModel(kind="huggingface", id="a/b/c", revision=REVISION), tmp_path, tmp_path / "model")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            refused(errors.GatedRepoError, 403),
            "access is gated; accept the terms on its page and log in (`hf auth login`)",
        ),
        (
            refused(errors.RepositoryNotFoundError, 401),
            "the hub has no such model, or it is private; correct the id or log in",
        ),
        (
            refused(errors.RevisionNotFoundError, 404),
            "the model has no such commit; correct model.source.revision",
        ),
        (
            errors.LocalEntryNotFoundError("Got: ConnectError: no route to host\nAn error happened"),
            "could not be downloaded and is not in the local cache (Got: ConnectError: no route to host); connect to the "
            "network and run again, or copy the model here and use it as `kind: folder`",
        ),
        # Neither is an OSError; the second interrupts a download.
        (httpx.ProxyError("403 Forbidden"), "is not in the local cache (403 Forbidden); connect to the network"),
        (httpx.ReadError(""), "is not in the local cache (ReadError); connect to the network and run again"),
    ],
)
def test_what_the_hub_refuses_is_one_line_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    source = HubModel(kind="huggingface", id="someone/tiny", revision=REVISION)
    with pytest.raises(ValueError, match="model") as raised:
        prepare_model(source, tmp_path, tmp_path / "model")
    (line,) = str(raised.value).splitlines()
    assert line.startswith(f"model.source.id: someone/tiny at revision {REVISION}: ") and message in line
    assert not (tmp_path / "model" / "source.json").exists()


def test_gguf_that_is_missing_or_another(tmp_path: Path) -> None:
    source = GgufModel(
        kind="wheel-gguf", requirement="a==1", wheel_platform="any", member="a/model.gguf", sha256="0" * 64
    )
    with pytest.raises(ValueError, match=r"model\.gguf: the GGUF file of model\.source is missing"):
        prepare_model(source, tmp_path, tmp_path / "model")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"sha256 is .* delete the file"):
        prepare_model(source, tmp_path, tmp_path / "model")


def test_parts_of_a_gguf_that_are_missing_another_or_in_another_order(tmp_path: Path) -> None:
    contents = [b"GGUF", b"and more"]
    sha256 = [hashlib.sha256(part).hexdigest() for part in (*contents, b"".join(contents))]
    parts = [
        {"requirement": f"a-{number}==1", "member": f"a/model.gguf.part{number}", "sha256": sha256[number]}
        for number in (0, 1)
    ]
    source = PartedGgufModel.model_validate({"kind": "wheels-gguf", "parts": parts, "sha256": sha256[2]})
    assert [file.filename for file in wheel_files_of(source)] == ["model.gguf.part0", "model.gguf.part1"]
    (tmp_path / "model.gguf.part0").write_bytes(contents[0])
    with pytest.raises(ValueError, match=r"model\.gguf\.part1: the GGUF file of model\.source is missing"):
        prepare_model(source, tmp_path, tmp_path / "model")
    (tmp_path / "model.gguf.part1").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"part1: sha256 is .* delete the file"):
        prepare_model(source, tmp_path, tmp_path / "model")
    (tmp_path / "model.gguf.part1").write_bytes(contents[1])
    swapped = source.model_copy(update={"parts": source.parts[::-1]})
    with pytest.raises(ValueError, match=r"whole\.gguf: sha256 is .* configuration's is"):
        prepare_model(swapped, tmp_path, tmp_path / "model")
    assert not (tmp_path / "model" / "source.json").exists()
    assert [path.name for path in (tmp_path / "model").iterdir()] == []
