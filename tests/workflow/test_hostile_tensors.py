"""Files of tensors that lie in their headers, metadata or descriptions are one clear error."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.training import LAYER, Prepared

from tsae.measure.ablations import load_ablations
from tsae.measure.letter_tokens import _digest, load_letter_tokens
from tsae.measure.sequences import Sequences
from tsae.measure.sums import load_curve, load_sums
from tsae.model.language_model import load_model
from tsae.profile.point import Point
from tsae.residuals.read import open_residuals
from tsae.residuals.shards import read_shard
from tsae.residuals.unigrams import load_unigrams
from tsae.sae.checkpoint import load, load_last_fired, save
from tsae.sae.exchange.saelens import export_saelens, import_saelens
from tsae.sae.sae import SAE
from tsae.sae.start import Start
from tsae.store.tensors import load_metadata, load_tensors, save_tensors
from tsae.text.tokens import load_tokens


def tensor(dtype: str = "F32", shape: tuple[int, ...] = (2,), offsets: tuple[int, int] = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def raw(header: Any, data: bytes = bytes(8), length: int | None = None) -> bytes:
    """A safetensors file whose header says whatever it likes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


LYING = {
    "empty": b"",
    "shorter than a length": bytes(7),
    "no header": raw(b"", b""),
    "header beyond the file": raw({"a": tensor()}, length=10**6),
    "header beyond memory": raw({"a": tensor()}, length=2**64 - 1),
    "header that is a list": raw([1]),
    "header nested deeply": raw(b'{"a":' + b"[" * 100_000),
    "header not UTF-8": raw(b'{"a\xff": 1}'),
    "data beyond the file": raw({"a": tensor(shape=(20,), offsets=(0, 80))}),
    "data overlapping": raw({"a": tensor(), "b": tensor(offsets=(4, 12))}, bytes(12)),
    "data with a gap": raw({"a": tensor(), "b": tensor(offsets=(12, 20))}, bytes(20)),
    "data left over": raw({"a": tensor()}, bytes(100)),
    "data before the file": raw({"a": tensor(offsets=(-8, 0))}),
    "data backwards": raw({"a": tensor(offsets=(8, 0))}),
    "shape overflowing": raw({"a": tensor(shape=(2**40, 2**40))}),
    "shape of other data": raw({"a": tensor(shape=(3,))}),
    "dtype unknown": raw({"a": tensor("F31")}),
    "dtype that torch has not": raw({"a": tensor("F6_E2M3", (32,), (0, 24))}, bytes(24)),
    "metadata no strings": raw({"__metadata__": {"tsae": 3}}, b""),
    "metadata not UTF-8": raw(b'{"__metadata__": {"tsae": "\xff"}}', b""),
    # Whole safetensors, and nothing of ours.
    "metadata no JSON": raw({"__metadata__": {"tsae": "{nonsense"}, "a": tensor()}),
    "metadata a list": raw({"__metadata__": {"tsae": "[1]"}, "a": tensor()}),
    "metadata nested deeply": raw({"__metadata__": {"tsae": "[" * 100_000}, "a": tensor()}),
    "metadata with a long number": raw({"__metadata__": {"tsae": "9" * 5000}, "a": tensor()}),
    "metadata of another program": raw({"__metadata__": {"format": "pt"}, "a": tensor()}),
    "tensor of another program": raw({"a": tensor()}),
    "no tensor": raw({}, b""),
    "tensor of no rows": raw({"a": tensor(shape=(2**62, 0), offsets=(0, 0))}, b""),
    "name given twice": raw(b'{"a": %b, "a": %b}' % ((json.dumps(tensor()).encode(),) * 2)),
}
OF_ANOTHER = [
    name for name in LYING if "another" in name or name in ("no tensor", "tensor of no rows", "name given twice")
]


@pytest.mark.parametrize("name", LYING)
def test_files_that_lie_are_one_clear_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(LYING[name])
    if not name.startswith("metadata") and name not in OF_ANOTHER:
        with pytest.raises(ValueError, match=rf"^{path}: not a whole safetensors file"):
            load_tensors(path)
    if name not in OF_ANOTHER and name != "dtype that torch has not":  # which is found when it is read
        with pytest.raises(ValueError, match=rf"^{path}: (not a whole safetensors file|its metadata are)") as error:
            load_metadata(path)
        assert "\n" not in str(error.value) and len(str(error.value)) < 500


POINT = Point(architecture="gated", l1=1, expansion=2, table="learned", encoder_input="without_unigram")
D, F, V = 3, 6, 5
SCORED = Sequences(*(torch.ones(4, 3, dtype=torch.bool) for _ in Sequences._fields))
SUMS = {"nmse/numerator": torch.ones(2).double(), "nmse/denominator": torch.ones(2).double()}
DOCUMENTS = {"documents": torch.tensor([3, 5])}


def write_sae(folder: Path, made_as: Point = POINT, **metadata: Any) -> None:
    unigrams, zeros = torch.arange(V * D, dtype=torch.float32).view(V, D), torch.zeros(D)
    directions = torch.ones(V, D) if made_as.encoder_input == "without_unigram" else None
    table = None if made_as.table == "none" else unigrams
    sae = SAE.initialise(made_as, Start(zeros, zeros, zeros, table, directions), seed=0)
    hook = "blocks.1.hook_resid_pre"
    described = {
        "hook_point": hook,
        "scale": 1.0,
        "point": made_as.model_dump(mode="json"),
        "layer": 1,
        "d_model": D,
        "n_features": F,
    }
    save(folder, sae, described | metadata, torch.zeros(F, dtype=torch.int64))


def loaders(prepared: Prepared, path: Path) -> dict[str, Callable[[], object]]:
    """What reads safetensors of ours, each pointed to one path."""
    write_sae(path.parent)  # sae.safetensors is that path
    cache = open_residuals(prepared.residuals, "train", LAYER)
    object.__setattr__(cache, "index", path.with_name("index.json"))
    path.with_name(f"layer{LAYER}.safetensors").symlink_to(path.name)  # its statistics
    return {
        "sae": lambda: load(path.parent),
        "last_fired": lambda: load_last_fired(path.parent),
        "shard": lambda: read_shard(path, "f", 4, D, ("norms", "positions", "residuals", "tokens")),
        "streamed shard": lambda: read_shard(path, "f", 4, D, ("norms", "tokens")),
        "mean": cache.mean,
        "token counts": lambda: cache.token_counts(512),
        "tokens": lambda: load_tokens(path),
        "unigrams": lambda: load_unigrams(path),
        "ablations": lambda: load_ablations(path, SCORED),
        "letter tokens": lambda: load_letter_tokens(path, SCORED),
        "sums": lambda: load_sums(path),
        "sums of a curve": lambda: load_curve(path),
    }


@pytest.mark.refused("headers that lie, in every file of tensors")
@pytest.mark.parametrize("name", LYING)
def test_every_reader_refuses_files_that_lie(prepared: Prepared, tmp_path: Path, name: str) -> None:
    path = tmp_path / "sae.safetensors"
    for reader, read in loaders(prepared, path).items():
        path.with_name(".sae.safetensors.sha256").unlink(missing_ok=True)
        path.write_bytes(LYING[name])
        with pytest.raises(ValueError, match=str(path.parent)):
            read()
            pytest.fail(f"{reader} read it")


def test_tensors_of_another_type_or_size_are_refused(prepared: Prepared, tmp_path: Path) -> None:
    """Nothing is cast or broadcast to what was expected."""
    path = tmp_path / "sae.safetensors"
    read = loaders(prepared, path)
    good: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any]]] = {
        "sae": (load_tensors(path), {}),
        "shard": (
            {
                "tokens": torch.zeros(4, dtype=torch.int32),
                "positions": torch.zeros(4, dtype=torch.int32),
                "norms": torch.ones(4),
                "residuals": torch.zeros(4, D, dtype=torch.float16),
            },
            {"fingerprint": "f"},
        ),
        "mean": (
            {"mean": torch.zeros(32), "token_counts": torch.zeros(512, dtype=torch.int64)},
            {},
        ),
        "token counts": (
            {"mean": torch.zeros(32), "token_counts": torch.zeros(512, dtype=torch.int64)},
            {},
        ),
        "tokens": (load_tensors(prepared.train_tokens), load_metadata(prepared.train_tokens)),
        "unigrams": ({"residuals": torch.zeros(512, 32)}, {}),
        "ablations": (
            {
                "scored": SCORED.kept[:, :-1],
                **{name: torch.ones(4, 2) for name in ("clean", "zero", "mean")},
            },
            {},
        ),
        "letter tokens": (
            {
                "x": torch.zeros(4, D, dtype=torch.float16),
                "tokens": torch.zeros(4, dtype=torch.int64),
                "classes": torch.tensor([0, 1, 0, -1]),
                "places": torch.tensor([2, 7]),
                "test_classes": torch.tensor([0, 1]),
                "mean": torch.zeros(D),
                "directions": torch.zeros(2, D),
                "thresholds": torch.zeros(2).double(),
            },
            {"n_classes": 2, "heldout": _digest(SCORED)},
        ),
        "sums": (DOCUMENTS | SUMS, {"n_tokens": {"nmse": 4}}),
        "sums of a curve": (DOCUMENTS | {f"7/{name}": SUMS[name] for name in SUMS}, {"n_tokens": {"7/nmse": 4}}),
    }
    kept = {name: tensor.clone() for name, tensor in good["sae"][0].items()}
    good["sae"] = (kept, {})
    for reader, (tensors, metadata) in good.items():
        save_tensors(path, tensors, metadata)
        read[reader]()
        for name, tensor in tensors.items():
            # Tables of an SAE may be of half precision.
            casts = {torch.float64, torch.bfloat16, torch.int32, torch.int64, torch.uint8, torch.bool} - {tensor.dtype}
            for changed in (
                *(tensor.to(dtype) for dtype in casts),
                tensor[None],
                tensor[:0],
            ):
                if (
                    name in ("W_lookup", "unigram_directions")
                    and changed.shape[1:] == (D,)
                    and changed.dtype == tensor.dtype
                ):
                    continue  # a vocabulary of another size is found where it meets tokens
                save_tensors(path, tensors | {name: changed}, metadata)
                with pytest.raises(ValueError, match=str(path.parent)):
                    read[reader]()
                    pytest.fail(f"{reader} read {name} of {changed.dtype} {tuple(changed.shape)}")


@pytest.mark.refused("descriptions of an SAE that lie")
@pytest.mark.parametrize(
    "changes",
    [
        {"scale": float("nan")},
        {"scale": float("inf")},
        {"scale": 0},
        {"scale": -1.0},
        {"scale": "one"},
        {"scale": [1]},
        {"scale": 10**400},
        {"point": POINT.model_dump(mode="json") | {"expansion": float("nan")}},
        {"point": []},
    ],
    ids=str,
)
def test_descriptions_of_an_sae_that_lie_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_sae(tmp_path, **changes)
    with pytest.raises(ValueError, match=rf"{tmp_path}/config\.json: not the description of an SAE"):
        load(tmp_path)


@pytest.mark.parametrize(
    "text", ["[]", "3", "[" * 100_000, "9" * 5000, '{"scale": ' + "9" * 5000 + "}"], ids=lambda text: text[:30]
)
def test_a_description_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    write_sae(tmp_path)
    (tmp_path / ".config.json.sha256").unlink(missing_ok=True)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"{tmp_path}/config\.json: not the description of an SAE"):
        load(tmp_path)


def test_more_active_features_than_there_are_is_refused(tmp_path: Path) -> None:
    point = Point(k=F, expansion=2, table="none")
    write_sae(tmp_path, point, point=point.model_dump(mode="json") | {"k": F + 1})
    with pytest.raises(ValueError, match=rf"{F} features of width {D} are too few for topk-k{F + 1}"):
        load(tmp_path)


@pytest.mark.parametrize("name", LYING)
def test_a_folder_of_saelens_that_lies_is_refused(tmp_path: Path, name: str) -> None:
    point = Point(k=2, expansion=2, table="learned")
    write_sae(tmp_path / "ours", point)
    export_saelens(tmp_path / "ours", tmp_path / "theirs", None)
    for file in ("sae_weights.safetensors", "token_biases.safetensors"):
        path = tmp_path / "theirs" / file
        kept = path.read_bytes()
        path.with_name(f".{file}.sha256").unlink(missing_ok=True)
        path.write_bytes(LYING[name])
        with pytest.raises(ValueError, match=str(path)):
            import_saelens(tmp_path / "theirs", tmp_path / "imported")
        path.write_bytes(kept)
    weights = tmp_path / "theirs/sae_weights.safetensors"
    save_tensors(weights, {n: t.to(torch.int32) for n, t in load_tensors(weights).items()})
    with pytest.raises(ValueError, match=str(weights)):
        import_saelens(tmp_path / "theirs", tmp_path / "imported")


@pytest.mark.refused("headers that lie, in a model's weights")
@pytest.mark.parametrize("name", [name for name in LYING if not name.startswith("metadata")])
def test_a_model_whose_weights_lie_is_refused(tiny_gpt2: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(tiny_gpt2, tmp_path / "model")
    (tmp_path / "model/model.safetensors").write_bytes(LYING[name])
    with pytest.raises(ValueError, match=rf"{tmp_path}/model: could not be loaded"):
        load_model(tmp_path / "model")
