"""Models of many kinds: read, read behind a prefix, and continued, against the library's own model."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fixtures.kinds import VOCABULARY, WIDTH, write_kind
from torch import Tensor
from transformers import CONFIG_MAPPING

from tsae.model.folder import model_shape
from tsae.model.language_model import load_model
from tsae.model.losses import next_token_losses
from tsae.model.self_test import try_model
from tsae.profile.shape import Shape

# Nothing special: a prefix runs once, and upper blocks run alone.
PLAIN = (
    "apertus", "arcee", "codegen", "cohere", "cohere2", "deepseek_v2", "deepseek_v3", "ernie4_5", "ernie4_5_moe", "exaone4",
    "falcon", "flex_olmo", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "glm4_moe", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox",
    "gpt_oss", "gptj", "granite", "granitemoe", "llama", "llama4_text", "ministral3", "mistral", "mixtral", "mpt", "nanochat",
    "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "opt", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss",
    "smollm3", "stablelm", "starcoder2", "vaultgemma", "xglm",
    "gemma3", "llama4", "mistral3",
)  # fmt: skip
# What they keep of a prefix is more than keys and values, or nothing.
WITHOUT_PLAIN_CACHE = (
    "bamba", "falcon_h1", "falcon_mamba", "jamba", "lfm2", "lfm2_moe", "mamba", "mamba2", "olmo_hybrid", "openai-gpt", "qwen3_5_text",
    "qwen3_next", "recurrent_gemma", "rwkv",
    "gemma4", "gemma4_text", "qwen3_5",
)  # fmt: skip
# Layers from which upper blocks need more than the residual.
NOT_ALONE = {
    "bamba": {1},
    "bloom": {0, 1},
    "gemma4": {0, 1, 2, 3},
    "gemma4_text": {0, 1, 2, 3},
    "opt projected": {0, 1},
    "rwkv": {1},
}
KINDS = sorted({*PLAIN, *WITHOUT_PLAIN_CACHE, *NOT_ALONE})


@pytest.fixture(autouse=True)
def _one_thread_and_no_installations(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(command: list[str], *_: Any, **__: Any) -> None:
        raise AssertionError(f"ran {command}")

    monkeypatch.setattr(subprocess, "check_call", refuse)


def run_bare(
    bare: torch.nn.Module, ids: Tensor, layer: int, n_layers: int, new: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What enters block `layer` of the library's model, and its logits; with `new` in its place if given."""
    text = bare.get_decoder()  # type: ignore[operator]
    blocks = next(m for m in text.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == n_layers)
    entered: list[Tensor] = []

    def watch(_block: torch.nn.Module, inputs: tuple, named: dict) -> tuple[tuple, dict]:
        entered.append(inputs[0] if inputs else named["hidden_states"])
        if new is None:
            return inputs, named
        return ((new, *inputs[1:]), named) if inputs else (inputs, named | {"hidden_states": new})

    handle = blocks[layer].register_forward_pre_hook(watch, with_kwargs=True)
    with torch.no_grad():
        logits = bare(ids, use_cache=False).logits
    handle.remove()
    return entered[0], logits


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_prefixed_and_continued_exactly(kind: str, tmp_path: Path) -> None:
    if kind.split()[0] not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    bare, model = write_kind(kind, tmp_path), load_model(tmp_path)
    n_layers = model.n_layers
    assert model_shape(tmp_path) == Shape(n_layers, WIDTH, VOCABULARY)

    found = try_model(model)
    assert found.read == tuple(range(n_layers))
    assert found.prefix == ("whole prompt" if kind in WITHOUT_PLAIN_CACHE else "once")
    assert set(found.read) - set(found.continued) == NOT_ALONE.get(kind, set())

    ids = torch.randint(2, VOCABULARY, (3, 6), generator=torch.Generator().manual_seed(1))
    residuals, behind = (
        model.residuals(ids, range(n_layers)),
        model.residuals(ids[:1, 2:], range(n_layers), ids[0, :2].tolist()),
    )
    for layer in range(n_layers):
        expected, own = run_bare(bare, ids, layer, n_layers)
        check_close(residuals[layer], expected)
        check_close(behind[layer], expected[:1, 2:])
        check_close(model.logits_from(residuals[layer], layer, ids), own)
        other = residuals[layer].flip(1)
        expected_logits = run_bare(bare, ids, layer, n_layers, new=other)[1]
        assert not torch.allclose(expected_logits, own, rtol=1e-2, atol=1e-2)
        check_close(model.logits_from(other, layer, ids), expected_logits)
        losses = F.cross_entropy(expected_logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        check_close(next_token_losses(model, other, ids, layer), losses.view(3, 5))


def check_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
