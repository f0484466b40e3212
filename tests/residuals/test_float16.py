"""Residuals beyond float16: stored halved where they are left out, refused where they are kept."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fixtures.residuals import SEQUENCES, SETTINGS, STREAMED, run
from transformers import AutoModelForCausalLM

from tsae.measure.ablations import measure_ablations
from tsae.measure.sequences import load_sequences
from tsae.model.language_model import load_model
from tsae.model.write_model import prepare_model
from tsae.profile.evaluation import Evaluation
from tsae.profile.sources import FolderModel
from tsae.residuals.read import open_residuals
from tsae.residuals.shards import doublings, restored, to_float16
from tsae.store.tensors import load_tensors

LAYER = 1


@pytest.fixture
def enlarged(inputs: Path, tiny_gpt2: Path, tmp_path: Path) -> Path:
    """The inputs of a cache, with a GPT-2 whose embedding of BOS is 1e6 times as long; the unembedding stays."""
    given, folder = tmp_path / "given", tmp_path / "inputs"
    shutil.copytree(tiny_gpt2, given)
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_gpt2)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.transformer.wte.weight.detach().clone())
    with torch.no_grad():
        model.transformer.wte.weight[0] *= 1e6
    model.save_pretrained(given)
    folder.mkdir()
    for split in SEQUENCES:
        shutil.copyfile(inputs / f"{split}.safetensors", folder / f"{split}.safetensors")
    prepare_model(FolderModel(kind="folder", path=given), tmp_path, folder / "model")
    return folder


def test_rows_beyond_float16_are_halved_and_restored() -> None:
    rows = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    rows *= torch.tensor([1.0, 1e5, 3e7, 2e4, 1.0])[:, None]
    rows[0, 0] = 65_504  # fits
    stored, norms = to_float16(rows), rows.norm(dim=1)
    assert stored.isfinite().all()
    for row in (0, 3, 4):
        assert torch.equal(stored[row], rows[row].half())
    powers = doublings(stored, norms)
    assert powers[[0, 3, 4]].tolist() == [0, 0, 0]
    # The fewest halvings that fit.
    for row in (1, 2):
        assert rows[row].abs().max() / 2 ** powers[row] <= 65_504 < rows[row].abs().max() / 2 ** (powers[row] - 1)
    torch.testing.assert_close(restored(stored, norms), rows, rtol=1e-3, atol=1e-6)
    assert restored(stored[[0, 3]], norms[[0, 3]]).dtype == torch.float16
    with pytest.raises(ValueError, match="not finite"):
        to_float16(torch.tensor([[1.0, float("inf")]]))


def test_a_bos_beyond_float16_is_left_out_and_the_loss_is_the_models_own(enlarged: Path, tmp_path: Path) -> None:
    index = tmp_path / "cache/index.json"
    run(enlarged, index, SETTINGS)
    cache = open_residuals(index, "heldout", LAYER)
    sequences = load_sequences(cache, enlarged / "heldout.safetensors")
    expected = load_model(enlarged / "model").residuals(sequences.tokens, [LAYER])[LAYER]
    assert expected[:, 0].abs().max() > 65_504
    assert not sequences.kept[:, 0].any()
    assert sequences.kept[:, 1:].float().mean() > 0.9
    torch.testing.assert_close(sequences.residuals[:, 0], expected[:, 0], rtol=1e-3, atol=1.0)
    torch.testing.assert_close(sequences.residuals[:, 1:].float(), expected[:, 1:], rtol=1e-3, atol=1e-3)
    assert cache.kept_rows().residuals.abs().max() < 100

    losses = tmp_path / "losses.safetensors"
    settings = Evaluation(token_biases="none", dead_window=1000, ce_sequences=None)
    measure_ablations(enlarged / "model", index, enlarged / "heldout.safetensors", LAYER, settings, False, losses)
    bare = AutoModelForCausalLM.from_pretrained(enlarged / "model").eval()
    with torch.no_grad():
        logits = bare(sequences.tokens).logits
    own = F.cross_entropy(logits[:, :-1].flatten(0, 1), sequences.tokens[:, 1:].flatten(), reduction="none")
    torch.testing.assert_close(load_tensors(losses)["clean"].flatten(), own, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("streams", [False, True])
def test_a_kept_row_beyond_float16_is_an_error(enlarged: Path, tmp_path: Path, streams: bool) -> None:
    settings = (STREAMED if streams else SETTINGS).model_copy(update={"include_bos": True})
    with pytest.raises(
        ValueError, match=r"residuals\.layers: at layer 1, \d+ tokens of a shard .* beyond float16"
    ) as caught:
        run(enlarged, tmp_path / "cache/index.json", settings, streams=streams)
    assert "choose other layers" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_computed_residuals_are_checked_too(enlarged: Path, tmp_path: Path) -> None:
    index = tmp_path / "cache/index.json"
    run(enlarged, index, STREAMED, streams=True)
    cache = open_residuals(index, "train", LAYER, enlarged / "model")
    streamed = min(cache.streamed)
    shard = cache.shard(streamed)
    assert shard.residuals.isfinite().all()
    assert not shard.kept[shard.positions == 0].any()
    object.__setattr__(cache, "include_bos", True)
    with pytest.raises(ValueError, match="beyond float16"):
        cache.shard(streamed)
