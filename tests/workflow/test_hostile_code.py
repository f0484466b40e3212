"""Models, tokenizers and configurations made by someone who means harm run no code, and are refused."""

import ast
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import ROOT
from fixtures.training import Prepared
from transformers import AutoConfig, AutoTokenizer

from tsae.explore.run import Run
from tsae.model.language_model import load_model
from tsae.model.write_model import prepare_model
from tsae.phrases.find_phrases import find_phrases_of
from tsae.profile.evaluation import Phrases
from tsae.profile.inputs import Tokens, Unigrams
from tsae.profile.sources import FolderModel
from tsae.residuals.write_unigrams import write_unigrams
from tsae.text.write_tokens import write_tokens

# Calls that run the code in what they read, and the argument that stops them; () if none does.
RUNS_CODE = {
    "torch.load": ("weights_only", True),
    "from_pretrained": ("trust_remote_code", False),
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
            if called != name and not called.endswith(f".{name}"):
                continue
            if not needed or (
                arguments.get(str(needed[0])) != repr(needed[1]) and "**options" not in ast.unparse(node)
            ):
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
