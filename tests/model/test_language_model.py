"""The language model at its residual stream, against the bare model of transformers."""

import shutil
from pathlib import Path

import pytest
import torch
from fixtures import tiny
from torch import Tensor
from transformers import AutoModelForCausalLM, GPTNeoConfig, GPTNeoForCausalLM

from tsae.model.folder import model_shape
from tsae.model.language_model import LanguageModel, load_model
from tsae.model.logits import logits_of_direction
from tsae.profile.shape import Shape
from tsae.store.tensors import load_tensors, save_tensors

LAYERS = (3, 0, 1)


@pytest.fixture(scope="session")
def tiny_gpt_neox(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of Pythia's shape."""
    folder = tmp_path_factory.mktemp("gpt_neox")
    tiny.write_gpt_neox(folder, tiny_corpus)
    return folder


@pytest.fixture(scope="session")
def tiny_gpt_neo(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose blocks return tuples."""
    config = GPTNeoConfig(
        vocab_size=512,
        hidden_size=32,
        num_layers=4,
        num_heads=4,
        attention_types=[[["global", "local"], 2]],
        window_size=8,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    return save_beside_tokenizer(GPTNeoForCausalLM(config), tiny_gpt2, tmp_path_factory.mktemp("gpt_neo"))


def save_beside_tokenizer(model: torch.nn.Module, tokenizer: Path, folder: Path) -> Path:
    model.save_pretrained(folder)  # type: ignore[operator]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)
    return folder


@pytest.fixture(scope="session", params=["tiny_gpt2", "tiny_llama", "tiny_gpt_neox", "tiny_gpt_neo"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def model(folder: Path) -> LanguageModel:
    return load_model(folder)


@pytest.fixture(scope="session", params=["tiny_gpt2", "tiny_gpt_neox"])
def compatible_folder(request: pytest.FixtureRequest) -> Path:
    """A model of a kind that the larger profiles run in compatibility mode."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def compatible(compatible_folder: Path) -> LanguageModel:
    return load_model(compatible_folder, compatibility_mode=True)


@pytest.fixture
def bare(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, 512, (3, 20), generator=torch.Generator().manual_seed(1))


def blocks_of(bare: torch.nn.Module) -> torch.nn.ModuleList:
    return next(module for module in bare.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == 4)


def test_residuals_are_the_bare_models_hidden_states(model: LanguageModel, bare: torch.nn.Module, ids: Tensor) -> None:
    with torch.no_grad():
        expected = bare(ids, output_hidden_states=True).hidden_states
    residuals = model.residuals(ids, LAYERS)
    assert sorted(residuals) == [0, 1, 3]
    for layer in LAYERS:
        torch.testing.assert_close(residuals[layer], expected[layer], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(residuals[layer], expected[layer + 1], rtol=1e-2)


def test_residuals_need_one_pass_that_stops_early(model: LanguageModel, ids: Tensor) -> None:
    calls = count_block_work(model)
    model.residuals(ids, (1, 2))
    assert calls == [1, 1, 0, 0]


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_logits_from_unchanged_residuals_are_the_models(
    model: LanguageModel, bare: torch.nn.Module, ids: Tensor, layer: int
) -> None:
    with torch.no_grad():
        expected = bare(ids).logits
    logits = model.logits_from(model.residuals(ids, [layer])[layer], layer, ids)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", [0, 2])
def test_logits_from_changed_residuals_are_the_patched_models(
    model: LanguageModel, bare: torch.nn.Module, ids: Tensor, layer: int
) -> None:
    patched = torch.randn(3, 20, 32, generator=torch.Generator().manual_seed(2))

    def replace(_module: torch.nn.Module, inputs: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return (patched, *inputs[1:]), kwargs

    blocks_of(bare)[layer].register_forward_pre_hook(replace, with_kwargs=True)
    with torch.no_grad():
        expected = bare(ids).logits
        unpatched = model.logits_from(model.residuals(ids, [layer])[layer], layer, ids)
    torch.testing.assert_close(model.logits_from(patched, layer, ids), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(unpatched, expected, atol=0.1)


def test_logits_of_a_direction_are_those_of_the_norm_and_the_unembedding(folder: Path, tmp_path: Path) -> None:
    bare = AutoModelForCausalLM.from_pretrained(folder).eval()
    inner = bare.base_model
    norm = next(getattr(inner, name) for name in ("ln_f", "final_layer_norm", "norm") if hasattr(inner, name))
    directions = 1e-3 * torch.randn(5, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 32))
        centred = directions
        if hasattr(norm, "bias"):
            norm.bias.copy_(torch.linspace(-1, 1, 32))
            centred = directions - directions.mean(1, keepdim=True)
        scaled = centred / centred.square().mean(1, keepdim=True).sqrt()
        expected = (norm.weight * scaled) @ bare.get_output_embeddings().weight.T
    found = logits_of_direction(load_model(save_beside_tokenizer(bare, folder, tmp_path)), directions)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_logits_from_does_not_run_the_blocks_below(model: LanguageModel, ids: Tensor) -> None:
    residual = model.residuals(ids, [2])[2]
    assert model.starts_at(2)
    calls = count_block_work(model)
    model.logits_from(residual, 2, ids)
    assert calls == [0, 0, 1, 1]
    model.residuals(ids, [3])
    assert calls == [1, 1, 2, 1]


def test_blocks_below_run_again_after_an_error(model: LanguageModel, bare: torch.nn.Module, ids: Tensor) -> None:
    with pytest.raises((RuntimeError, ValueError)):
        model.logits_from(torch.zeros(3, 20, 7), 2, ids)
    with torch.no_grad():
        expected = bare(ids, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(model.residuals(ids, [2])[2], expected, rtol=1e-5, atol=1e-5)


def count_block_work(model: LanguageModel) -> list[int]:
    """Counts, from now on, of the runs of each block's MLP."""
    calls = [0] * model.n_layers
    for layer, block in enumerate(model._blocks):

        def count(_module: torch.nn.Module, _inputs: tuple, layer: int = layer) -> None:
            calls[layer] += 1

        block.mlp.register_forward_pre_hook(count)
    return calls


def test_compatibility_mode_centres_what_writes_to_the_residual(
    compatible: LanguageModel, compatible_folder: Path, ids: Tensor
) -> None:
    residuals = compatible.residuals(ids, (0, 1, 3))
    bare = AutoModelForCausalLM.from_pretrained(compatible_folder).eval()
    with torch.no_grad():
        hidden = bare(ids, output_hidden_states=True).hidden_states
    for layer, residual in residuals.items():
        centred = hidden[layer] - hidden[layer].mean(-1, keepdim=True)
        torch.testing.assert_close(residual, centred, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(residual, hidden[layer], atol=1e-3)


def test_compatibility_mode_keeps_next_token_distributions(
    compatible: LanguageModel, compatible_folder: Path, ids: Tensor
) -> None:
    bare = AutoModelForCausalLM.from_pretrained(compatible_folder).eval()
    with torch.no_grad():
        expected = bare(ids).logits.log_softmax(-1)
    logits = compatible.logits_from(compatible.residuals(ids, [2])[2], 2, ids)
    torch.testing.assert_close(logits.log_softmax(-1), expected, rtol=1e-4, atol=1e-4)


def test_shape_needs_no_weights(tmp_path: Path, folder: Path) -> None:
    shutil.copyfile(folder / "config.json", tmp_path / "config.json")
    assert model_shape(tmp_path) == Shape(n_layers=4, d_model=32, vocab_size=512)


def test_a_layer_the_model_does_not_have(model: LanguageModel, ids: Tensor) -> None:
    with pytest.raises(ValueError, match="layer 4 does not exist; the model has layers 0 to 3"):
        model.residuals(ids, [1, 4])
    with pytest.raises(ValueError, match="layer -1 does not exist"):
        model.logits_from(torch.zeros(1, 2, 32), -1, ids[:1, :2])


def test_a_shared_prefix_is_as_if_written_out(model: LanguageModel, ids: Tensor) -> None:
    check_prefix(model, ids, tolerance=1e-5)


def test_a_shared_prefix_is_as_if_written_out_in_compatibility_mode(compatible: LanguageModel, ids: Tensor) -> None:
    check_prefix(compatible, ids, tolerance=1e-4)


def check_prefix(model: LanguageModel, ids: Tensor, tolerance: float) -> None:
    whole = model.residuals(torch.cat([torch.tensor([[7, 5, 9]]).expand(3, 3), ids], dim=1), LAYERS)
    behind = model.residuals(ids, LAYERS, prefix=[7, 5, 9])
    for layer in LAYERS:
        torch.testing.assert_close(behind[layer], whole[layer][:, 3:], rtol=tolerance, atol=1e-5)
        assert layer == 0 or not torch.allclose(behind[layer], model.residuals(ids, [layer])[layer], rtol=1e-2)


def test_token_ids_of_another_tokenizer(tiny_gpt2: Path) -> None:
    with pytest.raises(ValueError, match="token ids from 3 to 512"):
        load_model(tiny_gpt2).residuals(torch.tensor([[3, 512]]), [1])


def test_sequences_longer_than_the_model_takes(tiny_gpt2: Path) -> None:
    with pytest.raises(ValueError, match="sequences of 65 tokens: the model takes at most 64"):
        load_model(tiny_gpt2).residuals(torch.zeros(1, 65, dtype=torch.int64), [1])


def test_missing_model_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        model_shape(tmp_path / "nowhere")


def test_missing_weights_are_not_made_up(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "model")
    weights = load_tensors(tmp_path / "model" / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_tensors(tmp_path / "model" / "model.safetensors", weights)
    with pytest.raises(ValueError, match=r"layers\.2\.mlp\.up_proj\.weight are missing"):
        load_model(tmp_path / "model")


def test_pickled_weights_are_never_read(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no \*\.safetensors"):
        load_model(tmp_path / "model")
