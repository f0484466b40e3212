"""The loss of the model with reconstructions in place of residuals, against the whole model with a hook."""

import pytest
import torch
from fixtures.evaluation import Evaluated, by_name, identity_sae, losses, losses_of, make_sae, whole_model_losses
from fixtures.training import LAYER
from transformers import AutoModelForCausalLM

from tsae.measure.ablations import load_ablations
from tsae.measure.sequences import Sequences
from tsae.model.language_model import load_model
from tsae.model.losses import next_token_losses
from tsae.sae.checkpoint import load
from tsae.store.tensors import load_tensors


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_llama"])
def test_losses_by_upper_layers_are_the_patched_models(name: str, layer: int, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    model, bare = load_model(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 512, (3, 20), generator=generator)
    residuals = model.residuals(tokens, [layer])[layer]
    found = next_token_losses(model, residuals, tokens, layer)
    assert found.shape == (3, 19)
    intact = whole_model_losses(bare, tokens, layer, None)
    torch.testing.assert_close(found.double(), intact, rtol=1e-5, atol=1e-5)

    patched = residuals + torch.randn(residuals.shape, generator=generator)
    expected = whole_model_losses(bare, tokens, layer, patched)
    assert (expected - intact).abs().mean() > 0.1
    torch.testing.assert_close(
        next_token_losses(model, patched, tokens, layer).double(), expected, rtol=1e-5, atol=1e-5
    )


def test_losses_from_the_cache_are_the_models(evaluated: Evaluated) -> None:
    x, tokens = evaluated.sequences.residuals.float(), evaluated.sequences.tokens
    found = next_token_losses(evaluated.model, x, tokens, LAYER).double()
    torch.testing.assert_close(found, whole_model_losses(evaluated.bare, tokens, LAYER, x), rtol=1e-5, atol=1e-5)
    # float16 keeps 11 bits.
    torch.testing.assert_close(found, whole_model_losses(evaluated.bare, tokens, LAYER, None), rtol=0.01, atol=0.01)


def test_ablations_are_the_patched_models_losses(evaluated: Evaluated) -> None:
    ablations = load_tensors(evaluated.ablations)
    x, tokens, kept, _ = evaluated.sequences
    assert (~kept[:, 1:-1]).any()
    assert torch.equal(ablations.pop("scored"), kept[:, :-1])
    replacements = {"zero": torch.zeros(32), "mean": evaluated.train.kept_rows().residuals.double().mean(0).float()}
    assert set(ablations) == {"clean", "zero", "mean"}
    for name, found in ablations.items():
        patched = x.float().clone()
        if name != "clean":
            patched[kept] = replacements[name]
        expected = whole_model_losses(evaluated.bare, tokens, LAYER, patched)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert (ablations["zero"] - ablations["clean"]).abs().median() > 0.1


def test_ablations_of_other_tokens_are_refused(evaluated: Evaluated) -> None:
    assert set(load_ablations(evaluated.ablations, evaluated.sequences)) == {"clean", "zero", "mean"}
    kept = evaluated.sequences.kept.clone()
    kept[3, 4] = ~kept[3, 4]
    with pytest.raises(ValueError, match=r"ablations\.safetensors: the losses of other tokens"):
        load_ablations(evaluated.ablations, evaluated.sequences._replace(kept=kept))


@pytest.mark.parametrize("table", ["none", "learned"])
def test_loss_is_the_patched_models(evaluated: Evaluated, table: str) -> None:
    sae, ablations = load(evaluated.saes[table]), load_tensors(evaluated.ablations)
    measured = by_name(losses(sae, evaluated, ablations))

    x, tokens, kept, _ = evaluated.sequences
    assert (~kept[:, 1:-1]).any()
    patched = x.float()
    for sequence, position in kept.nonzero().tolist():
        row, token = x[sequence, position].float(), tokens[sequence, position]
        patched[sequence, position] = sae.decode(sae.encode(row), token)
    scored = kept[:, :-1]
    n = int(scored.sum())
    ce, clean, zero, mean = (
        whole_model_losses(evaluated.bare, tokens, LAYER, residuals)[scored].mean().item()
        for residuals in (
            patched,
            x.float(),
            torch.where(kept[..., None], torch.zeros(32), x.float()),
            torch.where(kept[..., None], evaluated.train.kept_rows().residuals.mean(0), x.float()),
        )
    )
    # In a random model, a worse residual may well predict better.
    assert min(abs(ce - clean), abs(zero - clean), abs(mean - clean)) > 0.01
    expected = {
        "ce": ce,
        "ce_clean": clean,
        "ce_added": (ce - clean) / clean,
        "ce_added_original": (ce - clean) / (clean + 0.001),
        "ce_added_nats": ce - clean,
        "ce_recovered_zero": 1 - (ce - clean) / (zero - clean),
        "ce_recovered_mean": 1 - (ce - clean) / (mean - clean),
    }
    assert set(measured) == set(expected)
    for name, value in expected.items():
        assert measured[name].value == pytest.approx(value, rel=1e-4), name
        assert measured[name].n == n
        assert measured[name].low < measured[name].value < measured[name].high  # type: ignore[operator]


def test_residuals_are_not_patched_in_place(evaluated: Evaluated) -> None:
    x, tokens, kept, documents = (part[:2] for part in evaluated.sequences)
    sequences = Sequences(x.float(), tokens, kept, documents)
    before = sequences.residuals.clone()
    patched = losses_of(load(evaluated.saes["none"]), evaluated.model, sequences)
    assert torch.equal(sequences.residuals, before)
    clean = load_tensors(evaluated.ablations)["clean"]
    assert not torch.equal(patched, clean[:2])


def test_a_perfect_sae_adds_no_loss(evaluated: Evaluated) -> None:
    ablations = load_tensors(evaluated.ablations)
    measured = by_name(losses(identity_sae(32), evaluated, ablations))
    for name in ("ce_added", "ce_added_original", "ce_added_nats"):
        assert (measured[name].low, measured[name].value, measured[name].high) == (0.0, 0.0, 0.0)
    for name in ("ce_recovered_zero", "ce_recovered_mean"):
        assert (measured[name].low, measured[name].value, measured[name].high) == (1.0, 1.0, 1.0)
    assert measured["ce"].value == measured["ce_clean"].value


def test_ablations_recover_nothing(evaluated: Evaluated) -> None:
    ablations = load_tensors(evaluated.ablations)
    for name, b_dec in (("zero", torch.zeros(32)), ("mean", evaluated.train.kept_rows().residuals.double().mean(0))):
        sae = make_sae(torch.eye(32), torch.zeros(32, 32), k=4)
        sae.b_dec.copy_(b_dec)
        measured = by_name(losses(sae, evaluated, ablations))
        assert measured[f"ce_recovered_{name}"].value == pytest.approx(0, abs=1e-5)
        other = "mean" if name == "zero" else "zero"
        assert abs(measured[f"ce_recovered_{other}"].value) > 0.01


def test_bos_and_outliers_are_neither_patched_nor_scored(evaluated: Evaluated) -> None:
    x, tokens, _, documents = (part[:2] for part in evaluated.sequences)
    kept = torch.zeros(tokens.shape, dtype=torch.bool)
    kept[0, 5] = kept[1, 9] = kept[1, 31] = True
    sae = make_sae(torch.eye(32), torch.zeros(32, 32), k=4)
    ones = torch.ones(2, 31)
    ablations = {"clean": ones, "zero": 2 * ones, "mean": 2 * ones}
    measured = by_name(losses(sae, evaluated, ablations, Sequences(x, tokens, kept, documents)))
    # Position 31 has no next token; its own residual reaches no other position's prediction.
    patched = x.float()
    patched[0, 5] = patched[1, 9] = 0
    expected = whole_model_losses(evaluated.bare, tokens, LAYER, patched)
    assert measured["ce"].value == pytest.approx((expected[0, 5] + expected[1, 9]).item() / 2, rel=1e-5)
