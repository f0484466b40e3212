from pathlib import Path

import pytest
import torch
from fixtures.tokens import write_tokens
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tsae.model.language_model import load_model
from tsae.profile.inputs import Unigrams
from tsae.residuals import write_unigrams as write
from tsae.residuals.unigrams import load_embedding, load_unigrams
from tsae.residuals.write_unigrams import last_residuals, write_unigrams
from tsae.store.tensors import load_metadata

BOS = 3


@pytest.mark.parametrize("compatibility_mode", [False, True])
@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_llama"])
@pytest.mark.parametrize("prefix", [[], [7, 5]])
def test_rows_are_the_residuals_of_single_prompts(
    name: str, prefix: list[int], compatibility_mode: bool, request: pytest.FixtureRequest
) -> None:
    model = load_model(request.getfixturevalue(name), compatibility_mode)
    rows = last_residuals(model, BOS, prefix, torch.arange(512)[:, None], (3, 1), batch=100)
    assert set(rows) == {3, 1}
    for layer, residuals in rows.items():
        assert residuals.shape == (512, 32)
        for token in (0, 99, 100, 511):
            expected = model.residuals(torch.tensor([[BOS, *prefix, token]]), [layer])[layer][0, -1]
            torch.testing.assert_close(residuals[token], expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(residuals[0], residuals[511], rtol=0.1)


@pytest.fixture
def train_tokens(tmp_path: Path) -> Path:
    write_tokens(tmp_path / "train.safetensors", n_sequences=2, seed=0)
    return tmp_path / "train.safetensors"


def test_written_rows_follow_bos_and_the_tokenized_prefix(tiny_llama: Path, train_tokens: Path, tmp_path: Path) -> None:
    outputs = {layer: tmp_path / f"layer{layer}.safetensors" for layer in (1, 3)}
    settings = Unigrams(prefix="\n", max_norm=1e6)
    write_unigrams(tiny_llama, train_tokens, settings, (3, 1), False, tmp_path)
    weights = AutoModelForCausalLM.from_pretrained(tiny_llama).model.embed_tokens.weight
    assert torch.equal(load_embedding(tmp_path / "embedding.safetensors"), weights)
    prefix_ids = AutoTokenizer.from_pretrained(tiny_llama).encode("\n", add_special_tokens=False)
    assert prefix_ids
    tokens = torch.arange(512)[:, None]
    expected = last_residuals(load_model(tiny_llama), 0, prefix_ids, tokens, (1, 3), batch=512)
    for layer, path in outputs.items():
        rows = load_unigrams(path)
        assert rows.dtype == torch.float32
        assert torch.equal(rows, expected[layer])
        metadata = load_metadata(path)
        norms = rows.norm(dim=1)
        assert (metadata["prefix"], metadata["bos"], metadata["n_rescaled"]) == ("\n", 0, 0)
        assert metadata["median_norm"] == pytest.approx(norms.median().item())
        assert metadata["max_norm_ratio"] == pytest.approx((norms.max() / norms.median()).item())


def test_long_rows_are_rescaled_to_the_median(
    tiny_gpt2: Path,
    train_tokens: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def rows(*_: object) -> dict[int, Tensor]:
        return {2: torch.tensor([[3.0, 4], [0, 5], [-30, 40], [0, 20.5], [0, 20]])}

    monkeypatch.setattr(write, "last_residuals", rows)
    caplog.set_level("INFO", "tsae")
    write_unigrams(tiny_gpt2, train_tokens, Unigrams(max_norm=1.0), [2], False, tmp_path)
    # Norms 5, 5, 50, 20.5, 20 have the median 20; only rows longer than max_norm times that change.
    expected = torch.tensor([[3.0, 4], [0, 5], [-12, 16], [0, 20], [0, 20]])
    torch.testing.assert_close(load_unigrams(tmp_path / "layer2.safetensors"), expected)
    metadata = load_metadata(tmp_path / "layer2.safetensors")
    assert metadata == {"prefix": "", "bos": 0, "median_norm": 20.0, "n_rescaled": 2, "max_norm_ratio": 2.5}
    assert "layer 2: median norm 20, the largest 2.5 times that; 2 rows rescaled" in caplog.text


def test_bad_inputs(tiny_gpt2: Path, train_tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layer 4 does not exist; the model has layers 0 to 3"):
        write_unigrams(tiny_gpt2, train_tokens, Unigrams(), [4], False, tmp_path)
    with pytest.raises(ValueError, match="nowhere"):
        write_unigrams(tmp_path / "nowhere", train_tokens, Unigrams(), [1], False, tmp_path)
    with pytest.raises(ValueError, match=r"sequences of .* tokens: the model takes at most 64"):
        write_unigrams(tiny_gpt2, train_tokens, Unigrams(prefix="a b " * 40), [1], False, tmp_path)
    assert not list(tmp_path.glob("layer*"))
    with pytest.raises(ValueError, match="instead of residuals \\(n, n\\) float32"):
        load_unigrams(train_tokens)
