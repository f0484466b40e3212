"""The adapter for SAEBench: ids that it learns from the model, and residuals that are of no batch."""

from pathlib import Path

import pytest
import torch
from fixtures.saes import D, F, V, make_metadata, make_sae, normal
from torch import Tensor, nn

from tsae.sae.checkpoint import load, save
from tsae.sae.exchange.saebench import ForSAEBench
from tsae.sae.sae import SAE

IDS = torch.arange(12).view(3, 4) % V
RESIDUALS = normal(3, 4, D, seed=11)


class Model(nn.Module):
    """A model of SAEBench's kind: it takes ids, positional or by name, or text."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(V, D)

    def forward(self, input: Tensor | list[str]) -> Tensor:
        ids = torch.tensor([[1, 2, 3]]) if isinstance(input, list) else input
        found: Tensor = self.embed(ids)
        return found


def loaded(tmp_path: Path, name: str) -> SAE:
    save(tmp_path / "sae", make_sae(name), make_metadata(name) | {"layer": 3}, None)
    return load(tmp_path / "sae").requires_grad_(False)


@pytest.mark.parametrize(
    "name", ["topk", "relu", "gated", "jumprelu", "topk, remainder", "topk, without_unigram", "topk, no table"]
)
def test_reconstructions_are_those_of_the_sae_with_ids(tmp_path: Path, name: str) -> None:
    sae, model = loaded(tmp_path, name), Model()
    bench = ForSAEBench(sae, model, "tiny")
    model(IDS)
    flat, ids = RESIDUALS.view(-1, D), IDS.flatten()
    expected = sae(flat, ids)
    torch.testing.assert_close(bench(flat), expected)
    torch.testing.assert_close(bench(RESIDUALS), expected.view(3, 4, D))
    acts = bench.encode(RESIDUALS)
    assert acts.shape == (3, 4, F)
    assert torch.equal(acts != 0, sae.encode(RESIDUALS, IDS) != 0)
    torch.testing.assert_close(bench.decode(acts), expected.view(3, 4, D))
    torch.testing.assert_close(bench.W_dec.norm(dim=1), torch.ones(F))
    # The next batch, by name.
    model(input=IDS.flip(0))
    torch.testing.assert_close(bench(flat), sae(flat, ids.view(3, 4).flip(0).flatten()))


def test_it_has_what_saebench_reads(tmp_path: Path) -> None:
    sae = loaded(tmp_path, "topk")
    bench = ForSAEBench(sae, Model(), "gpt2-small")
    layer = sae.metadata["layer"]
    assert (bench.W_enc.shape, bench.W_dec.shape, bench.b_enc.shape, bench.b_dec.shape) == ((D, F), (F, D), (F,), (D,))
    assert (bench.cfg.model_name, bench.cfg.d_in, bench.cfg.d_sae, bench.cfg.dtype) == ("gpt2-small", D, F, "float32")
    # What enters a block leaves the one before it, which some evaluations read by hook_layer alone.
    assert (bench.cfg.hook_layer, bench.cfg.hook_name) == (layer - 1, f"blocks.{layer - 1}.hook_resid_post")
    assert bench.cfg.to_dict()["hook_layer"] == layer - 1
    assert (bench.device, bench.dtype) == (torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match="metadata have no layer"):
        ForSAEBench(make_sae(), Model(), "gpt2-small")


def test_rows_of_no_batch_are_refused(tmp_path: Path) -> None:
    model = Model()
    bench = ForSAEBench(loaded(tmp_path, "topk"), model, "tiny")
    acts = bench.encode(RESIDUALS)  # needs no ids
    with pytest.raises(ValueError, match="the model has not run on token ids"):
        bench.decode(acts)
    model(IDS)
    bench.decode(acts)
    for part in (acts[0], acts.view(-1, F)[:5], acts[:, :2]):
        with pytest.raises(ValueError, match=r"are not of the batch of ids \(3, 4\)"):
            bench.decode(part)
    model(["text"])
    with pytest.raises(ValueError, match="hook its embedding"):
        bench.decode(acts)
    bench.close()
    model(IDS)
    with pytest.raises(ValueError, match="has not run"):
        bench.decode(acts)


def test_the_embedding_tells_ids_where_the_model_takes_text(tmp_path: Path) -> None:
    sae, model = loaded(tmp_path, "topk, remainder"), Model()
    bench = ForSAEBench(sae, model.embed, "tiny")
    model(["text"])
    x = normal(1, 3, D, seed=12)
    torch.testing.assert_close(bench(x), sae(x[0], torch.tensor([1, 2, 3]))[None])
    with pytest.raises(ValueError, match="residuals"):
        bench.encode(RESIDUALS)


def test_a_baseline_needs_no_ids(tmp_path: Path) -> None:
    sae = loaded(tmp_path, "topk, no table")
    bench = ForSAEBench(sae, Model(), "tiny")
    torch.testing.assert_close(bench(RESIDUALS[0]), sae(RESIDUALS[0], IDS[0]))
