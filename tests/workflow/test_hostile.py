"""Hostile files: models, wheels, tensors and text made by someone who means harm are refused or shown as text."""

import ast
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import ROOT
from fixtures.training import LAYER, Prepared
from transformers import AutoConfig, AutoTokenizer

from tsae.measure.ablations import load_ablations
from tsae.measure.explore import Run
from tsae.measure.sequences import Sequences
from tsae.measure.sums import load_curve, load_sums
from tsae.model.language_model import load_model
from tsae.model.write_model import prepare_model
from tsae.phrases.find_phrases import find_phrases_of
from tsae.profile.evaluation import Phrases
from tsae.profile.inputs import Tokens, Unigrams
from tsae.profile.point import Point
from tsae.profile.sources import FolderModel
from tsae.residuals.read import open_residuals
from tsae.residuals.shards import read_shard
from tsae.residuals.unigrams import load_unigrams
from tsae.residuals.write_unigrams import write_unigrams
from tsae.sae.checkpoint import load, load_last_fired, save
from tsae.sae.exchange.saelens import export_saelens, import_saelens
from tsae.sae.sae import SAE
from tsae.sae.start import Start
from tsae.store.tensors import load_metadata, load_tensors, save_tensors
from tsae.text.tokens import load_tokens
from tsae.text.write_tokens import write_tokens

# --- code in files ---------------------------------------------------------------------------------------------------

# What runs what it reads, unless it is told not to: with this argument, or never (None).
RUNS_CODE = {
    "torch.load": ("weights_only", True),
    "from_pretrained": ("trust_remote_code", False),
    "load_dataset": None,
    "snapshot_download": None,
    "pickle.load": (),
    "pickle.loads": (),
    "pickle.Unpickler": (),
    "joblib.load": (),
    "np.load": ("allow_pickle", False),
    "read_pickle": (),
    "yaml.unsafe_load": (),
    "yaml.full_load": (),
    "os.system": (),
}


def code_that_may_run(source: str) -> list[str]:
    """Calls in a Python file that would run, or let a library run, code from what they read."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        for name, needed in RUNS_CODE.items():
            if (called != name and not called.endswith(f".{name}")) or needed is None:
                continue
            if not needed or (arguments.get(needed[0]) != repr(needed[1]) and "**options" not in ast.unparse(node)):
                found.append(ast.unparse(node))
        if called == "yaml.load" and "_StrictLoader" not in ast.unparse(node):
            found.append(ast.unparse(node))
        if arguments.get("shell") == "True" or called in ("eval", "exec"):
            found.append(ast.unparse(node))
    return found


def test_nothing_unpickles_or_trusts_code() -> None:
    paths = [path for name in ("tsae", "workflow", "notebooks", "docs") for path in sorted((ROOT / name).rglob("*.py"))]
    assert len(paths) > 50
    assert {str(path): calls for path in paths if (calls := code_that_may_run(path.read_text()))} == {}
    for harmful in (
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.loads(b)",
        "AutoTokenizer.from_pretrained(folder)",
        "yaml.load(text, yaml.Loader)",
        "subprocess.run(text, shell=True)",
        "eval(text)",
    ):
        assert code_that_may_run(harmful) == [harmful]


class Code:
    """What a pickle may hold: a call, made when it is read."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """What code leaves behind when it runs."""
    return tmp_path / "code-ran"


@pytest.mark.refused("pickled weights of a model")
@pytest.mark.parametrize("beside", [True, False], ids=["beside safetensors", "alone"])
def test_pickled_weights_are_refused_and_never_read(tiny_gpt2: Path, tmp_path: Path, trace: Path, beside: bool) -> None:
    shutil.copytree(tiny_gpt2, tmp_path / "given")
    weights = tmp_path / "given/pytorch_model.bin"
    torch.save({"transformer.wte.weight": Code(trace)}, weights)
    source = FolderModel(kind="folder", path=tmp_path / "given")
    if beside:
        prepare_model(source, tmp_path, tmp_path / "model")
        assert not (tmp_path / "model/pytorch_model.bin").exists()
        load_model(tmp_path / "given")
    else:
        (tmp_path / "given/model.safetensors").unlink()
        with pytest.raises(
            ValueError, match=r"model\.source\.path: .*no \*\.safetensors, and other formats can run code"
        ):
            prepare_model(source, tmp_path, tmp_path / "model")
        with pytest.raises(ValueError, match=r"no \*\.safetensors"):
            load_model(tmp_path / "given")
    assert not trace.exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(weights, weights_only=True)
    torch.load(weights, weights_only=False)
    assert trace.exists()  # so it would have run


MODULE = """\
import os
os.makedirs({trace!r}, exist_ok=True)
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast
class Config(GPT2Config):
    model_type = "theirs"
class Model(GPT2LMHeadModel):
    pass
class Tokenizer(GPT2TokenizerFast):
    pass
"""


@pytest.fixture
def with_code(tiny_gpt2: Path, tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder whose configuration asks for a module of its own, which lies there; and a user who says yes to anything."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder = tmp_path / "theirs"
    shutil.copytree(tiny_gpt2, folder)
    (folder / "theirs.py").write_text(MODULE.format(trace=str(trace)))
    return folder


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.refused("code that comes with a model")
def test_a_models_own_code_does_not_run(with_code: Path, tmp_path: Path, trace: Path) -> None:
    auto_map = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}
    rewrite(with_code / "config.json", auto_map=auto_map)
    assert load_model(with_code).n_layers == 4  # a GPT-2 by its type, and loaded as one
    assert not trace.exists()
    rewrite(with_code / "config.json", model_type="theirs", auto_map=auto_map)
    with pytest.raises(ValueError, match=r"theirs/config\.json: .*custom code"):
        load_model(with_code)
    prepare_model(FolderModel(kind="folder", path=with_code), tmp_path, tmp_path / "model")
    assert not list((tmp_path / "model").glob("*.py"))
    assert not trace.exists()
    AutoConfig.from_pretrained(with_code, trust_remote_code=True)
    assert trace.exists()  # so it would have run


@pytest.mark.refused("code that comes with a tokenizer")
@pytest.mark.parametrize("stage", ["tokenize", "unigrams", "phrases", "notebook"])
def test_a_tokenizers_own_code_does_not_run(
    with_code: Path, prepared: Prepared, tmp_path: Path, trace: Path, stage: str
) -> None:
    auto_map = {"AutoTokenizer": ["theirs.Tokenizer", "theirs.Tokenizer"]}
    rewrite(with_code / "tokenizer_config.json", tokenizer_class="Theirs", auto_map=auto_map)
    (tmp_path / "model").symlink_to(with_code)
    stages: dict[str, Callable[[], object]] = {
        "tokenize": lambda: write_tokens(
            prepared.train_tokens.parent / "documents.jsonl",
            with_code,
            Tokens(n_ctx=32, train=4000, heldout=1200),
            tmp_path / "train",
            tmp_path / "heldout",
        ),
        "unigrams": lambda: write_unigrams(
            with_code, prepared.train_tokens, Unigrams(), [1], False, tmp_path / "unigrams"
        ),
        "phrases": lambda: find_phrases_of(with_code, prepared.train_tokens, Phrases(), tmp_path / "phrases"),
        "notebook": lambda: Run(tmp_path).tokenizer,
    }
    stages[stage]()  # with a tokenizer.json there is no need of it
    assert not trace.exists()
    AutoTokenizer.from_pretrained(with_code, trust_remote_code=True)
    assert trace.exists()  # so it would have run


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "3",
        "{",
        "[" * 100_000,
        '{"model_type": 3}',
        '{"model_type": "gpt2", "n_layer": "four"}',
        '{"model_type": "gpt2", "n_embd": -1}',
        '{"model_type": "gpt2", "vocab_size": 1e99}',
        '{"model_type": "gpt2", "quantization_config": {"quant_method": "bitsandbytes"}}',
        '{"model_type": "t5"}',
        b"\xff\xfe",
    ],
    ids=lambda content: repr(content)[:40],
)
def test_a_configuration_that_describes_no_model_is_one_clear_error(
    tiny_gpt2: Path, tmp_path: Path, content: str | bytes
) -> None:
    shutil.copytree(tiny_gpt2, tmp_path / "model")
    (tmp_path / "model/config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"{tmp_path}/model"):
        load_model(tmp_path / "model")


@pytest.mark.refused("an index of weights that points outside its folder")
def test_an_index_of_weights_that_points_outside_is_refused(tiny_gpt2: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_gpt2, tmp_path / "given")
    shutil.copyfile(tiny_gpt2 / "model.safetensors", tmp_path / "outside.safetensors")
    index = tmp_path / "given/model.safetensors.index.json"
    source = FolderModel(kind="folder", path=tmp_path / "given")
    for content in (
        '{"weight_map": {"a": "../outside.safetensors"}}',
        '{"weight_map": 3}',
        "[]",
        "{",
        '{"weight_map": {"a": []}}',
    ):
        index.write_text(content)
        with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
            prepare_model(source, tmp_path, tmp_path / "model")


# --- tensors ---------------------------------------------------------------------------------------------------------


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
    object.__setattr__(cache, "statistics", path)
    return {
        "sae": lambda: load(path.parent),
        "last_fired": lambda: load_last_fired(path.parent),
        "shard": lambda: read_shard(path, "f", 4, D, with_residuals=True),
        "streamed shard": lambda: read_shard(path, "f", 4, D, with_residuals=False),
        "mean": cache.mean,
        "token counts": lambda: cache.token_counts(512),
        "tokens": lambda: load_tokens(path),
        "unigrams": lambda: load_unigrams(path),
        "ablations": lambda: load_ablations(path, SCORED),
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
        with pytest.raises(ValueError, match=str(path)):
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
                with pytest.raises(ValueError, match=str(path)):
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
