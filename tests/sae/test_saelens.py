import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from fixtures import ROOT
from fixtures.evaluation import Evaluated
from fixtures.hub import serving
from fixtures.saes import POINTS, SCALE, TOKENS, D, F, K, V, X, make_metadata, make_sae, normal, write
from fixtures.shared import BASELINE, RATES, TOKENIZED, write_results
from safetensors.torch import save_file
from torch import Tensor

from tsae.__main__ import app
from tsae.sae.checkpoint import load, save
from tsae.sae.exchange.repository import write_repository
from tsae.sae.exchange.saelens import export_saelens, import_saelens
from tsae.store import files
from tsae.store.tensors import load_tensors, save_tensors

EXPRESSIBLE = [name for name in POINTS if "without" not in name and "remainder" not in name]
HOOK = "blocks.7.hook_resid_pre"
PEERS = ROOT / ".venv-bench"


def needs_peers(test: Callable[..., None]) -> Callable[..., None]:
    """For what runs in SAELens' own environment."""
    there = (PEERS / "ready").is_file()
    return pytest.mark.peers(pytest.mark.skipif(not there, reason="no .venv-bench; make bench sets it up")(test))


def saelens_encode(folder: Path, x: Tensor) -> Tensor:
    """What SAELens 6 does with a folder, by hand."""
    cfg, weights = json.loads((folder / "cfg.json").read_text()), load_tensors(folder / "sae_weights.safetensors")
    weights = {name: tensor.float() for name, tensor in weights.items()}
    centred = x - weights["b_dec"] if cfg["apply_b_dec_to_input"] else x
    match cfg["architecture"]:
        case "gated":
            gate = centred @ weights["W_enc"] + weights["b_gate"] > 0
            return gate * (centred @ (weights["W_enc"] * weights["r_mag"].exp()) + weights["b_mag"]).relu()
        case "standard":
            return (centred @ weights["W_enc"] + weights["b_enc"]).relu()
        case "jumprelu":
            pre = centred @ weights["W_enc"] + weights["b_enc"]
            return pre.relu() * (pre > weights["threshold"])
        case "topk":
            pre = centred @ weights["W_enc"] + weights["b_enc"]
            if cfg["rescale_acts_by_decoder_norm"]:
                pre = pre * weights["W_dec"].norm(dim=1)
            best = pre.topk(cfg["k"], dim=-1)
            return torch.zeros_like(pre).scatter(-1, best.indices, best.values.relu())
    raise AssertionError(cfg["architecture"])


def saelens_decode(folder: Path, acts: Tensor) -> Tensor:
    cfg, weights = json.loads((folder / "cfg.json").read_text()), load_tensors(folder / "sae_weights.safetensors")
    W_dec = weights["W_dec"].float()
    if cfg.get("rescale_acts_by_decoder_norm"):
        W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
    return acts @ W_dec + weights["b_dec"].float()


def write_saelens(folder: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
    """A TopK SAE as SAELens 6 saves it."""
    weights = {
        "W_enc": normal(D, F, seed=0),
        "W_dec": normal(F, D, seed=1),
        "b_enc": normal(F, seed=2) - 1,
        "b_dec": normal(D, seed=3),
    }
    save_tensors(folder / "sae_weights.safetensors", {name: tensor.to(dtype) for name, tensor in weights.items()})
    cfg = {
        "d_in": D,
        "d_sae": F,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "hook_name": HOOK, "hook_head_index": None, "model_name": "gpt2"},
        "k": K,
        "rescale_acts_by_decoder_norm": False,
        "architecture": "topk",
    }
    files.write_json(folder / "cfg.json", cfg | settings)
    return folder


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_an_export_computes_what_the_sae_does(tmp_path: Path, name: str) -> None:
    sae = load(write(tmp_path / "sae", name))
    folder = tmp_path / "exported"
    export_saelens(tmp_path / "sae", folder)
    acts = saelens_encode(folder, X * SCALE)
    assert (acts != 0).any()
    torch.testing.assert_close(acts, sae.encode(X * SCALE))
    x_hat = saelens_decode(folder, acts)
    if sae.W_lookup is not None:
        x_hat += load_tensors(folder / "token_biases.safetensors")["token_biases"][TOKENS]
    torch.testing.assert_close(x_hat, sae(X * SCALE, TOKENS))
    expected = {"cfg.json", "sae_weights.safetensors"} | (set() if "no table" in name else {"token_biases.safetensors"})
    assert {path.name for path in folder.iterdir()} == expected


def test_an_export_says_what_it_is_of(evaluated: Evaluated, tmp_path: Path) -> None:
    export_saelens(evaluated.saes["learned"], tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert (cfg["architecture"], cfg["d_in"], cfg["d_sae"], cfg["k"]) == ("topk", 32, 64, 4)
    metadata = cfg["metadata"]
    made = load(evaluated.saes["learned"]).metadata
    bos = made["residuals"]["tokens"]["train"]["bos"]
    assert metadata["tsae"] == made
    assert (metadata["hook_name"], metadata["context_size"]) == ("blocks.2.hook_resid_pre", 32)
    assert (metadata["prepend_bos"], metadata["exclude_special_tokens"]) == (True, [bos])
    assert (metadata["model_name"], metadata["model_from_pretrained_kwargs"]) == (None, {})
    assert "token_biases[tokens]" in metadata["token_biases"]


def test_an_export_names_the_model_and_how_it_was_loaded(tmp_path: Path) -> None:
    made_from = {"model": {"source": {"kind": "huggingface", "id": "gpt2"}}, "compatibility_mode": True}
    save(tmp_path / "sae", make_sae(), make_metadata() | {"residuals": made_from}, None)
    for name in (None, "gpt2-small"):
        export_saelens(tmp_path / "sae", tmp_path / "exported", name)
        metadata = json.loads((tmp_path / "exported/cfg.json").read_text())["metadata"]
        assert metadata["model_name"] == (name or "gpt2")
        assert metadata["model_from_pretrained_kwargs"]["center_writing_weights"] is True


def test_an_export_leaves_nothing_of_an_earlier_one(tmp_path: Path) -> None:
    export_saelens(write(tmp_path / "tokenized"), tmp_path / "exported")
    export_saelens(write(tmp_path / "baseline", "topk, no table"), tmp_path / "exported")
    assert not (tmp_path / "exported/token_biases.safetensors").exists()
    assert "token_biases" not in json.loads((tmp_path / "exported/cfg.json").read_text())["metadata"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("topk without relu", "topk_relu: false"),
        ("topk, without_unigram", "encoder_input: without_unigram"),
        ("relu, no table, without_unigram", "encoder_input: without_unigram"),
        ("topk, remainder", "encoder_input: remainder"),
    ],
)
def test_what_saelens_cannot_express_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path}/sae: .*{message}"):
        export_saelens(write(tmp_path / "sae", name), tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("apply_b_dec", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_import_computes_what_saelens_does(
    tmp_path: Path, apply_b_dec: bool, rescale: bool, dtype: torch.dtype
) -> None:
    folder = write_saelens(
        tmp_path / "theirs", dtype, apply_b_dec_to_input=apply_b_dec, rescale_acts_by_decoder_norm=rescale
    )
    import_saelens(folder, tmp_path / "ours")
    sae, acts = load(tmp_path / "ours"), saelens_encode(folder, X)
    torch.testing.assert_close(sae.encode(X), acts, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae(X, TOKENS), saelens_decode(folder, acts), rtol=1e-4, atol=1e-5)
    assert (sae.point.id, sae.metadata["layer"], sae.metadata["hook_point"]) == ("topk-k4-x2.5-none", 7, HOOK)
    assert sae.metadata["imported"]["cfg"]["metadata"]["model_name"] == "gpt2"


def test_what_is_exported_comes_back(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    metadata = make_metadata() | {"hook_point": HOOK}
    save(tmp_path / "sae", make_sae(), metadata, None)
    export_saelens(tmp_path / "sae", theirs)
    import_saelens(theirs, ours)
    first, again = load(tmp_path / "sae"), load(ours)
    assert first.state_dict().keys() == again.state_dict().keys()
    for name, tensor in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert again.point == first.point
    # What made it is still there.
    assert again.metadata["imported"]["cfg"]["metadata"]["tsae"] == metadata
    export_saelens(ours, tmp_path / "once more")
    for name in ("sae_weights.safetensors", "token_biases.safetensors"):
        assert files.sha256(tmp_path / "once more" / name) == files.sha256(theirs / name)


def test_an_export_that_saelens_saved_over_comes_back(tmp_path: Path) -> None:
    save(tmp_path / "sae", make_sae(), make_metadata() | {"hook_point": HOOK}, None)
    export_saelens(tmp_path / "sae", tmp_path / "theirs")
    weights = load_tensors(tmp_path / "theirs/sae_weights.safetensors")
    save_file({name: 2 * tensor for name, tensor in weights.items()}, tmp_path / "theirs/sae_weights.safetensors")
    import_saelens(tmp_path / "theirs", tmp_path / "ours")
    assert torch.equal(load(tmp_path / "ours").W_dec, 2 * load(tmp_path / "sae").W_dec)


def test_what_leaves_a_layer_enters_the_next(tmp_path: Path) -> None:
    metadata = {"sae_lens_version": "6.0.0", "hook_name": "blocks.11.hook_resid_post"}
    import_saelens(write_saelens(tmp_path / "theirs", metadata=metadata), tmp_path / "ours")
    made = load(tmp_path / "ours").metadata
    assert (made["layer"], made["hook_point"]) == (12, "blocks.12.hook_resid_pre")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "jumprelu"}, "architecture 'jumprelu'; only SAELens' topk"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm'"),
        ({"normalize_activations": "expected_average_only_in"}, "fold_activation_norm_scaling_factor"),
        ({"reshape_activations": "hook_z"}, "reads attention heads"),
        ({"metadata": {"sae_lens_version": "6.0.0", "hook_name": HOOK, "hook_head_index": 2}}, "reads attention heads"),
        ({"metadata": {"sae_lens_version": "6.0.0", "hook_name": "blocks.7.hook_mlp_out"}}, "hook_name is .*mlp_out"),
        ({"metadata": {"sae_lens_version": "6.0.0"}}, "hook_name is None"),
        ({"metadata": {"hook_name": HOOK}}, "a SAELens before 6"),
        ({"metadata": {"sae_lens_version": "5.10.7", "hook_name": HOOK}}, "a SAELens before 6"),
        ({"metadata": None}, "not the description of an SAE"),
        ({"k": F + 1}, f"k = {F + 1} active features of d_sae = {F}"),
        ({"k": None}, "k: .*integer"),
        ({"d_in": D + 1}, r"sae_weights\.safetensors: not the weights of the SAE that cfg\.json describes"),
    ],
)
def test_what_cannot_be_imported_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    folder = write_saelens(tmp_path / "theirs", **settings)
    with pytest.raises(ValueError, match=f"{folder}/.*{message}") as error:
        import_saelens(folder, tmp_path / "ours")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("cfg.json", Path.unlink),
        ("cfg.json", lambda path: path.write_text("[]")),
        ("cfg.json", lambda path: path.write_bytes(path.read_bytes()[:-10])),
        ("sae_weights.safetensors", Path.unlink),
        ("sae_weights.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-10])),
        ("sae_weights.safetensors", lambda path: save_tensors(path, {"W_enc": torch.zeros(D, F)})),
        ("token_biases.safetensors", lambda path: save_tensors(path, {"token_biases": torch.zeros(V, D + 1)})),
        ("token_biases.safetensors", lambda path: save_tensors(path, {"table": torch.zeros(V, D)})),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, change: Callable[[Path], object]) -> None:
    folder = write_saelens(tmp_path / "theirs")
    change(folder / name)
    with pytest.raises(ValueError, match=f"{folder}/{name}"):
        import_saelens(folder, tmp_path / "ours")


def test_the_commands(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    save(tmp_path / "sae", make_sae(), make_metadata() | {"hook_point": HOOK}, None)
    for arguments in (
        ["export-saelens", "--sae", str(tmp_path / "sae"), "--folder", str(theirs), "--model-name", "gpt2-small"],
        ["import-saelens", "--saelens", str(theirs), "--folder", str(ours)],
    ):
        assert CliRunner().invoke(app, arguments).exit_code == 0
    assert json.loads((theirs / "cfg.json").read_text())["metadata"]["model_name"] == "gpt2-small"
    assert torch.equal(load(ours)(X, TOKENS), load(tmp_path / "sae")(X, TOKENS))


@pytest.fixture(scope="module")
def in_saelens(evaluated: Evaluated, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which SAELens itself has read exported SAEs and written its own."""
    folder = tmp_path_factory.mktemp("saelens")
    heldout = evaluated.heldout.kept_rows()
    inputs = {"x32": heldout.residuals, "tokens32": heldout.tokens.long(), f"x{D}": X * SCALE, f"tokens{D}": TOKENS}
    save_tensors(folder / "inputs.safetensors", inputs)
    for name in EXPRESSIBLE:
        write(folder / "ours" / name, name)
    for name, trained in evaluated.saes.items():
        shutil.copytree(trained, folder / "ours" / f"trained, {name}")
    for sae in (folder / "ours").iterdir():
        export_saelens(sae, folder / "exported" / sae.name)
    write_repository([write_results(folder / "p")], folder / "pushed")
    pushed = {path.relative_to(folder / "pushed").as_posix(): path for path in (folder / "pushed").rglob("*")}
    (folder / "pushed.txt").write_text(f"{TOKENIZED}\n{BASELINE}\n")
    command = [PEERS / "bin/python", ROOT / "tests/fixtures/in_saelens.py", folder]
    with serving() as hub:
        hub.commit("me/saes", {name: path.read_bytes() for name, path in pushed.items() if path.is_file()})
        environment = os.environ | hub.environment(folder / "home") | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return folder


def compare(ours: Path, outputs: Path, name: str, width: int) -> None:
    """Activations and reconstructions of our SAE and of SAELens' must be the same."""
    inputs, found = (
        load_tensors(outputs / "inputs.safetensors"),
        load_tensors(outputs / "outputs.safetensors"),
    )
    sae, x, tokens = load(ours), inputs[f"x{width}"], inputs[f"tokens{width}"]
    for part, expected in (("acts", found[f"{name}.acts"]), ("x_hat", found[f"{name}.x_hat"])):
        computed = sae.encode(x) if part == "acts" else sae(x, tokens)
        assert expected.any()
        torch.testing.assert_close(computed, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@needs_peers
def test_saelens_computes_what_the_sae_does(in_saelens: Path) -> None:
    names = sorted(path.name for path in (in_saelens / "ours").iterdir())
    assert len(names) == len(EXPRESSIBLE) + 2
    for name in names:
        compare(in_saelens / "ours" / name, in_saelens, name, 32 if "trained" in name else D)


@needs_peers
def test_a_wrapped_sae_of_saelens_adds_the_table(in_saelens: Path, tmp_path: Path) -> None:
    inputs, found = (load_tensors(in_saelens / f"{name}.safetensors") for name in ("inputs", "outputs"))
    for path in (in_saelens / "ours").iterdir():
        sae, width = load(path), 32 if "trained" in path.name else D
        x_hat = sae(inputs[f"x{width}"], inputs[f"tokens{width}"])
        torch.testing.assert_close(
            found[f"{path.name}.wrapped"], x_hat, rtol=1e-5, atol=1e-5 * x_hat.abs().max().item()
        )
        if "trained" not in path.name:  # those by hand are of no hook point
            continue
        import_saelens(in_saelens / "wrapped" / path.name, tmp_path / path.name)
        again = load(tmp_path / path.name)
        assert (again.W_lookup is None) == (sae.W_lookup is None)
        torch.testing.assert_close(again(inputs[f"x{width}"], inputs[f"tokens{width}"]), x_hat)


@needs_peers
def test_saelens_loads_what_is_pushed(in_saelens: Path) -> None:
    found = load_tensors(in_saelens / "outputs.safetensors")
    for name in (TOKENIZED, BASELINE):
        sae = load(in_saelens / "p/saes" / name)
        torch.testing.assert_close(found[f"{name}.acts"], sae.encode(X * SCALE), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[f"{name}.wrapped"], sae(X * SCALE, TOKENS), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(10 ** found[f"{name}.sparsity"], torch.tensor(RATES).float(), rtol=1e-5, atol=1e-9)


@needs_peers
def test_what_saelens_saves_again_comes_back(in_saelens: Path, tmp_path: Path) -> None:
    for name in ("trained, none", "trained, learned"):
        saved = in_saelens / "saved" / name
        table = in_saelens / "exported" / name / "token_biases.safetensors"
        if table.is_file():
            shutil.copy(table, saved)
        import_saelens(saved, tmp_path / name)
        compare(tmp_path / name, in_saelens, name, 32)


@needs_peers
def test_what_saelens_makes_itself_computes_the_same_here(in_saelens: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in (in_saelens / "own").iterdir())
    assert len(names) == 12
    for name in names:
        import_saelens(in_saelens / "own" / name, tmp_path / name)
        compare(tmp_path / name, in_saelens, name.removesuffix("-inference"), 32)
        assert load(tmp_path / name).metadata["layer"] == 4
