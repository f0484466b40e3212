"""The divergence of predictions with reconstructions in place, against the whole model with a hook."""

import pytest
import torch
from fixtures.evaluation import SETTINGS, Evaluated, identity_sae
from fixtures.training import LAYER
from torch import Tensor

from tsae.measure.divergence import divergences
from tsae.measure.loss import patched_losses
from tsae.measure.sums import DocumentSums
from tsae.sae.checkpoint import load
from tsae.sae.sae import SAE


def reconstructed(sae: SAE, evaluated: Evaluated) -> Tensor:
    x, tokens, kept, _ = evaluated.sequences
    return sae(x[kept].float(), tokens[kept])


def measured(sae: SAE, evaluated: Evaluated, n: int) -> DocumentSums:
    sums = DocumentSums(evaluated.whole.documents)
    settings = SETTINGS.model_copy(update={"kl_sequences": n, "batch_sequences": 2})
    with torch.no_grad():
        patched_losses(reconstructed(sae, evaluated), evaluated.model, evaluated.sequences, LAYER, settings, sums)
    return sums


def test_divergences_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsae.measure.divergence.PART", 2)
    p = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.25, 0.75]])
    p_hat = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.5, 0.5]])
    # Logits may have any constant added.
    found = divergences(p.log() + 3, p_hat.log() - 7)
    expected = [
        0,
        (torch.tensor(4 / 3).log() / 2).item(),
        0.25 * torch.tensor(0.5).log() + 0.75 * torch.tensor(1.5).log(),
    ]
    assert found.tolist() == pytest.approx([float(value) for value in expected], abs=1e-6)


@pytest.mark.parametrize("table", ["none", "learned"])
def test_divergence_is_the_patched_models(evaluated: Evaluated, table: str) -> None:
    sae, n = load(evaluated.saes[table]), 3
    x, tokens, kept, documents = (part[:n] for part in evaluated.sequences)
    patched = x.float().clone()
    with torch.no_grad():
        patched[kept] = sae(x[kept].float(), tokens[kept])
    log_p, log_p_hat = (log_probabilities(evaluated.bare, tokens, of) for of in (x.float(), patched))
    of_each = (log_p.exp() * (log_p - log_p_hat)).sum(2)
    scored = kept[:, :-1]
    (ratio,) = (ratio for metric, _, ratio in measured(sae, evaluated, n) if metric == "logit_kl")
    assert ratio.value == pytest.approx(of_each[:, :-1][scored].mean().item(), rel=1e-4)
    assert ratio.value > 1e-4
    assert ratio.denominator.sum() == scored.sum()
    at = documents[:, :-1][scored].unique()
    assert (ratio.denominator > 0).sum() == len(at)


def log_probabilities(bare: torch.nn.Module, tokens: Tensor, residuals: Tensor) -> Tensor:
    """Log-probabilities (batch, pos, V) float64 of the whole model with its residual entering `LAYER` replaced."""
    blocks = next(module for module in bare.modules() if isinstance(module, torch.nn.ModuleList))
    handle = blocks[LAYER].register_forward_pre_hook(
        lambda _, inputs, named: ((residuals, *inputs[1:]), named), with_kwargs=True
    )
    with torch.no_grad():
        logits: Tensor = bare(tokens).logits.double()
    handle.remove()
    return logits.log_softmax(-1)


def test_a_perfect_sae_changes_no_prediction(evaluated: Evaluated) -> None:
    assert measured(identity_sae(32), evaluated, 2).ratio("logit_kl").value == pytest.approx(0, abs=1e-6)


def test_without_sequences_nothing_is_measured(evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsae.measure.divergence.divergences", None)
    assert list(measured(identity_sae(32), evaluated, 0)) == []
