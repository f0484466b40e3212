"""What a page tells of features, by hand and against the model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tsae.explore.features import BINS, histograms, nearest_features, top_logits, top_tokens
from tsae.model.language_model import load_model
from tsae.sae.firings import Firings, contexts_of

# Two features: one fires on places 1, 2, 5, the other never.
FIRINGS = Firings(np.array([0, 3, 3]), np.array([1, 2, 5]), np.array([1.0, 4.0, 2.0], dtype=np.float32))
TOKENS = np.array([9, 7, 8, 7, 7, 7])


def test_histograms_by_hand() -> None:
    lowest, highest, heights = histograms(FIRINGS)
    assert (lowest[0], highest[0]) == (1.0, 4.0) and np.isnan([lowest[1], highest[1]]).all()
    assert heights[0].nonzero()[0].tolist() == [0, BINS // 3, BINS - 1] and heights[0].sum() == 3
    assert not heights[1].any()


def test_top_tokens_by_hand() -> None:
    ids, shares = top_tokens(FIRINGS, TOKENS)
    assert ids.tolist() == [[8, 7, -1, -1, -1, -1], [-1] * 6]
    assert shares[0, :3].tolist() == pytest.approx([4 / 7, 3 / 7, 0])


def test_contexts_have_the_activation_of_every_token() -> None:
    row = {
        "feature": 0,
        "context_activations": [4.5],
        "context_sequences": [0],
        "context_positions": [2],
        "context_active": [2],
        "context_tokens": [[9, 7, 8, 7]],
    }
    (context,) = contexts_of(row, FIRINGS, n_ctx=6)
    assert (context.start, context.active, context.tokens) == (0, 2, [9, 7, 8, 7])
    # The highest is as it was measured.
    assert context.activations.tolist() == [0.0, 1.0, 4.5, 0.0]


def test_logits_are_those_of_the_model(tiny_llama: Path) -> None:
    """Through all of a model whose blocks add nothing: the decoder row is then the last residual."""
    W_dec = torch.randn(70, 32, generator=torch.Generator().manual_seed(0))
    bare = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    with torch.no_grad():
        for layer in bare.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        logits = bare(inputs_embeds=1000 * W_dec[:, None]).logits[:, 0, :500]
    found = top_logits(W_dec, load_model(tiny_llama), n_tokens=500)
    for name, largest in (("raised", True), ("lowered", False)):
        values, tokens = logits.topk(8, largest=largest)
        np.testing.assert_allclose(found[f"{name}_by"], values, rtol=1e-4)
        assert (found[name] == tokens.numpy()).mean() > 0.99  # but for ties
    assert found["raised"].max() < 500


def test_nearest_features_by_hand() -> None:
    found = nearest_features(
        torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 3.0], [1.0, 0.1], [-1.0, 0.0]])
    )
    assert found["match"].tolist() == [1, 1]
    assert found["match_cosine"].tolist() == pytest.approx([0.995, 0.774], abs=1e-3)
