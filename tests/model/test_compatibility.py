"""Compatibility mode against GPT-2 written out by hand, with folded layer norms and centred writing weights."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from tsae.model.language_model import load_model
from tsae.store.tensors import load_tensors

N_LAYERS, N_HEADS = 4, 4
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def folder(tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 with random layer norms and biases: a fresh one has ones and zeros, so folding would change nothing."""
    folder = tmp_path_factory.mktemp("compatibility") / "model"
    shutil.copytree(tiny_gpt2, folder)
    model = GPT2LMHeadModel.from_pretrained(tiny_gpt2)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".ln_" in name or name.endswith("bias"):
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


def processed(folder: Path) -> Weights:
    """The weights in float64, with folded layer norms and centred writing to the residual stream."""
    stored = load_tensors(folder / "model.safetensors")
    weights = {name.removeprefix("transformer."): tensor.double() for name, tensor in stored.items()}
    for layer in range(N_LAYERS):
        for norm, reader in (("ln_1", "attn.c_attn"), ("ln_2", "mlp.c_fc")):
            gain, shift = (weights[f"h.{layer}.{norm}.{part}"] for part in ("weight", "bias"))
            weight = weights[f"h.{layer}.{reader}.weight"]  # (in, out)
            weights[f"h.{layer}.{reader}.bias"] = weights[f"h.{layer}.{reader}.bias"] + shift @ weight
            weights[f"h.{layer}.{reader}.weight"] = gain[:, None] * weight
        for writer in ("attn.c_proj", "mlp.c_proj"):
            for part in ("weight", "bias"):
                name = f"h.{layer}.{writer}.{part}"
                weights[name] = weights[name] - weights[name].mean(-1, keepdim=True)
    for embedding in ("wte.weight", "wpe.weight"):
        weights[embedding] = weights[embedding] - weights[embedding].mean(-1, keepdim=True)
    return weights


def normalised(x: Tensor) -> Tensor:
    """A layer norm without gain and shift."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def residuals_by_hand(weights: Weights, ids: Tensor) -> list[Tensor]:
    """The residuals entering every block and leaving the last."""
    batch, n_ctx = ids.shape
    x = weights["wte.weight"][ids] + weights["wpe.weight"][:n_ctx]
    entering = [x]
    later = torch.ones(n_ctx, n_ctx, dtype=torch.bool).triu(1)
    for layer in range(N_LAYERS):
        block = {name.removeprefix(f"h.{layer}."): w for name, w in weights.items() if name.startswith(f"h.{layer}.")}
        read = normalised(x) @ block["attn.c_attn.weight"] + block["attn.c_attn.bias"]
        q, k, v = (part.view(batch, n_ctx, N_HEADS, -1).transpose(1, 2) for part in read.chunk(3, dim=-1))
        scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(later, -torch.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, n_ctx, -1)
        x = x + mixed @ block["attn.c_proj.weight"] + block["attn.c_proj.bias"]
        hidden = normalised(x) @ block["mlp.c_fc.weight"] + block["mlp.c_fc.bias"]
        gelu = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        x = x + gelu @ block["mlp.c_proj.weight"] + block["mlp.c_proj.bias"]
        entering.append(x)
    return entering


def test_residuals_are_those_of_folded_and_centred_weights(folder: Path) -> None:
    ids = torch.randint(0, 512, (3, 20), generator=torch.Generator().manual_seed(1))
    expected = residuals_by_hand(processed(folder), ids)
    found = load_model(folder, compatibility_mode=True).residuals(ids, range(N_LAYERS))
    plain = load_model(folder).residuals(ids, range(N_LAYERS))
    for layer, residual in found.items():
        torch.testing.assert_close(residual.double(), expected[layer], rtol=1e-4, atol=1e-4)
        assert residual.mean(-1).abs().max() < 1e-4
        # It differs from the plain model's residual only by its mean.
        assert not torch.allclose(residual, plain[layer], atol=1e-2)
        centred = plain[layer] - plain[layer].mean(-1, keepdim=True)
        torch.testing.assert_close(residual, centred, rtol=1e-3, atol=1e-3)
