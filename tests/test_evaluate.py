import math
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from test_train import LAYER, Prepared, one_thread, prepare, train_point, write_cache  # noqa: F401
from torch import Tensor
from transformers import AutoModelForCausalLM

from tsae import files
from tsae.baselines import (
    Sequences,
    conditional_means,
    last_token_detection,
    load_sequences,
    measure_ablations,
    measure_tables,
    next_token_losses,
)
from tsae.config import Evaluation
from tsae.evaluate import (
    evaluate,
    measure_dead_in_training,
    measure_feature_similarity,
    measure_loss,
    measure_reconstruction,
    measure_table,
)
from tsae.lookup import load_unigrams
from tsae.metrics import Measurement
from tsae.models import LanguageModel, load_model
from tsae.residuals import ResidualCache, open_residuals
from tsae.sae import SAE, load
from tsae.tokens import load_tokens

SETTINGS = Evaluation(
    token_biases="topk-k4-x2-learned", batch_sequences=16, ce_sequences=20, bootstrap=50, dead_window=4000
)


class Evaluated(NamedTuple):
    """What the loss of a layer is measured with."""

    model: LanguageModel
    bare: torch.nn.Module  # the same model, without anything of this package
    train: ResidualCache
    heldout: ResidualCache
    sequences: Sequences
    ablations: Path


@pytest.fixture(scope="module")
def prepared(tiny_corpus: Path, tiny_gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(tiny_corpus, tiny_gpt2, tmp_path_factory.getbasetemp() / "prepared")


@pytest.fixture(scope="module")
def evaluated(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    ablations = tmp_path_factory.mktemp("ablations") / "layer.safetensors"
    measure_ablations(prepared.model, prepared.residuals, LAYER, SETTINGS, False, ablations)
    train, heldout = (open_residuals(prepared.residuals, split, LAYER) for split in ("train", "heldout"))
    return Evaluated(
        load_model(prepared.model),
        AutoModelForCausalLM.from_pretrained(prepared.model).eval(),
        train,
        heldout,
        load_sequences(heldout, SETTINGS.ce_sequences),
        ablations,
    )


@pytest.fixture(scope="module")
def trained(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("saes")
    return {table: train_point(prepared, folder / table, table) for table in ("none", "learned")}


def by_name(measured: list[Measurement]) -> dict[str, Measurement]:
    named = {m.metric: m for m in measured}
    assert len(named) == len(measured)
    return named


def patched_losses(bare: torch.nn.Module, tokens: Tensor, layer: int, residuals: Tensor | None) -> Tensor:
    """Losses (batch, pos - 1) of the whole model, every block run, its residual entering `layer` replaced by a hook."""

    def replace(_module: torch.nn.Module, inputs: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return (residuals, *inputs[1:]), kwargs

    blocks = next(module for module in bare.modules() if isinstance(module, torch.nn.ModuleList))
    handle = blocks[layer].register_forward_pre_hook(replace, with_kwargs=True) if residuals is not None else None
    with torch.no_grad():
        logits = bare(tokens).logits.double()
    if handle is not None:
        handle.remove()
    log_probabilities = logits.log_softmax(-1)[:, :-1]
    return -log_probabilities.gather(2, tokens[:, 1:, None]).squeeze(2)


def make_sae(W_enc: Tensor, W_dec: Tensor, k: int, relu: bool = True, W_lookup: Tensor | None = None) -> SAE:
    sae = SAE(W_enc, W_dec, torch.zeros(len(W_enc)), torch.zeros(W_enc.shape[1]), W_lookup, k, relu)
    return sae.requires_grad_(False)


def identity_sae(d_model: int) -> SAE:
    return make_sae(torch.eye(d_model), torch.eye(d_model), k=d_model, relu=False)


# --- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_llama"])
def test_losses_by_upper_layers_are_the_patched_models(name: str, layer: int, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    model, bare = load_model(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 512, (3, 20), generator=generator)
    residuals = model.residuals(tokens, [layer])[layer]
    losses = next_token_losses(model, residuals, tokens, layer)
    assert losses.shape == (3, 19)
    intact = patched_losses(bare, tokens, layer, None)
    torch.testing.assert_close(losses.double(), intact, rtol=1e-5, atol=1e-5)

    patched = residuals + torch.randn(residuals.shape, generator=generator)
    expected = patched_losses(bare, tokens, layer, patched)
    assert (expected - intact).abs().mean() > 0.1
    torch.testing.assert_close(
        next_token_losses(model, patched, tokens, layer).double(), expected, rtol=1e-5, atol=1e-5
    )


def test_losses_from_the_cache_are_the_models(evaluated: Evaluated) -> None:
    x, tokens = evaluated.sequences.residuals.float(), evaluated.sequences.tokens
    losses = next_token_losses(evaluated.model, x, tokens, LAYER).double()
    torch.testing.assert_close(losses, patched_losses(evaluated.bare, tokens, LAYER, x), rtol=1e-5, atol=1e-5)
    # float16 keeps 11 bits.
    torch.testing.assert_close(losses, patched_losses(evaluated.bare, tokens, LAYER, None), rtol=0.01, atol=0.01)


def test_sequences_of_the_loss_are_spread_evenly(prepared: Prepared, evaluated: Evaluated) -> None:
    ids = load_tokens(prepared.heldout_tokens).ids.long()
    assert torch.equal(load_sequences(evaluated.heldout).tokens, ids)
    chosen = load_sequences(evaluated.heldout, 3)
    assert torch.equal(chosen.tokens, ids[[0, (len(ids) - 1) // 2, len(ids) - 1]])
    assert torch.equal(load_sequences(evaluated.heldout, 10**6).tokens, ids)
    whole = load_sequences(evaluated.heldout)
    assert torch.equal(whole.residuals[whole.kept].float(), evaluated.heldout.kept_rows().residuals)
    assert not whole.kept[:, 0].any()
    assert (~whole.kept[:, 1:]).sum() == evaluated.heldout.n_outliers > 0


def test_ablations_are_sums_over_the_patched_models_losses(evaluated: Evaluated) -> None:
    ablations = files.load_tensors(evaluated.ablations)
    x, tokens, kept = evaluated.sequences
    assert (~kept[:, 1:-1]).any()
    scored = kept[:, :-1]
    replacements = {"zero": torch.zeros(32), "mean": evaluated.train.kept_rows().residuals.double().mean(0).float()}
    expected = {"count": scored.sum(1).double()}
    for name in ("clean", "zero", "mean"):
        patched = x.float().clone()
        if name != "clean":
            patched[kept] = replacements[name]
        losses = patched_losses(evaluated.bare, tokens, LAYER, patched)
        expected[name] = torch.stack([row[mask].sum() for row, mask in zip(losses, scored, strict=True)])
    assert set(ablations) == set(expected)
    for name in expected:
        torch.testing.assert_close(ablations[name], expected[name], rtol=1e-5, atol=1e-5)
    assert (ablations["zero"] - ablations["clean"]).abs().median() > 0.1


@pytest.mark.parametrize("table", ["none", "learned"])
def test_loss_is_the_patched_models(evaluated: Evaluated, trained: dict[str, Path], table: str) -> None:
    sae, ablations = load(trained[table]), files.load_tensors(evaluated.ablations)
    measured = by_name(measure_loss(sae, evaluated.model, evaluated.sequences, ablations, LAYER, SETTINGS))

    x, tokens, kept = evaluated.sequences
    assert (~kept[:, 1:-1]).any()
    patched = x.float()
    for sequence, position in kept.nonzero().tolist():
        row, token = x[sequence, position].float(), tokens[sequence, position]
        patched[sequence, position] = sae.decode(sae.encode(row), token)
    scored = kept[:, :-1]
    n = int(scored.sum())
    ce, clean, zero, mean = (
        patched_losses(evaluated.bare, tokens, LAYER, residuals)[scored].mean().item()
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


def test_a_perfect_sae_adds_no_loss(evaluated: Evaluated) -> None:
    ablations = files.load_tensors(evaluated.ablations)
    measured = by_name(measure_loss(identity_sae(32), evaluated.model, evaluated.sequences, ablations, LAYER, SETTINGS))
    for name in ("ce_added", "ce_added_original", "ce_added_nats"):
        assert (measured[name].low, measured[name].value, measured[name].high) == (0.0, 0.0, 0.0)
    for name in ("ce_recovered_zero", "ce_recovered_mean"):
        assert (measured[name].low, measured[name].value, measured[name].high) == (1.0, 1.0, 1.0)
    assert measured["ce"].value == measured["ce_clean"].value


def test_ablations_recover_nothing(evaluated: Evaluated) -> None:
    ablations = files.load_tensors(evaluated.ablations)
    for name, b_dec in (("zero", torch.zeros(32)), ("mean", evaluated.train.kept_rows().residuals.double().mean(0))):
        sae = make_sae(torch.eye(32), torch.zeros(32, 32), k=4)
        sae.b_dec.copy_(b_dec)
        measured = by_name(measure_loss(sae, evaluated.model, evaluated.sequences, ablations, LAYER, SETTINGS))
        assert measured[f"ce_recovered_{name}"].value == pytest.approx(0, abs=1e-5)
        other = "mean" if name == "zero" else "zero"
        assert abs(measured[f"ce_recovered_{other}"].value) > 0.01


def test_bos_and_outliers_are_neither_patched_nor_scored(evaluated: Evaluated) -> None:
    x, tokens, _ = (part[:2] for part in evaluated.sequences)
    kept = torch.zeros(tokens.shape, dtype=torch.bool)
    kept[0, 5] = kept[1, 9] = kept[1, 31] = True
    sae = make_sae(torch.eye(32), torch.zeros(32, 32), k=4)
    ones = torch.ones(2, dtype=torch.float64)
    ablations = {"count": ones, "clean": ones, "zero": 2 * ones, "mean": 2 * ones}
    measured = by_name(measure_loss(sae, evaluated.model, Sequences(x, tokens, kept), ablations, LAYER, SETTINGS))
    # Position 31 has no next token; its own residual reaches no other position's prediction.
    patched = x.float()
    patched[0, 5] = patched[1, 9] = 0
    losses = patched_losses(evaluated.bare, tokens, LAYER, patched)
    assert measured["ce"].value == pytest.approx((losses[0, 5] + losses[1, 9]).item() / 2, rel=1e-5)


# --- reconstruction --------------------------------------------------------------------------------------------------

BY_HAND = Sequences(
    torch.tensor([[[50.0, 9], [3, 4], [2, 0]], [[50, 9], [100, 100], [-1, -2]]], dtype=torch.float16),
    torch.tensor([[0, 1, 2], [0, 1, 2]]),
    torch.tensor([[False, True, True], [False, False, True]]),
)
# Features along both axes, and one that never fires; token 1 has the token-bias (0, 1).
W_ENC = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
W_LOOKUP = torch.tensor([[9.0, 9.0], [0.0, 1.0], [0.0, 0.0]])


def sae_by_hand(relu: bool) -> SAE:
    sae = make_sae(W_ENC, W_ENC.clone(), k=1, relu=relu, W_lookup=W_LOOKUP)
    sae.b_enc[2] = -5.0
    return sae


@pytest.mark.parametrize("batch_sequences", [1, 2])
def test_reconstruction_by_hand(batch_sequences: int) -> None:
    settings = SETTINGS.model_copy(update={"batch_sequences": batch_sequences})
    measured, fired = measure_reconstruction(sae_by_hand(relu=True), BY_HAND, settings)
    # (3, 4) -> (0, 4 + 1), (2, 0) -> (2, 0), (-1, -2) -> (0, 0): errors 10, 0, 5 of 25, 4, 5.
    # Around the mean (4/3, 2/3) the squares sum to (125 + 8 + 113) / 9.
    expected = {
        "nmse": (10 / 25 + 0 + 1) / 3,
        "nmse_original": (10 / 25.0001 + 0 + 5 / 5.0001) / 3,
        "l0": 2 / 3,
        "l0_original": 2 / 3,
        "fvu": 15 / (246 / 9),
        "mse": 15 / 6,
        "dead_heldout": 1 / 3,
    }
    assert {m.metric: m.value for m in measured} == pytest.approx(expected, rel=1e-6)
    assert {m.metric: m.n for m in measured} == dict.fromkeys(expected, 3)
    assert fired.tolist() == [1, 1, 0]
    # The sequences alone have 0.2 and 1.
    assert (by_name(measured)["nmse"].low, by_name(measured)["nmse"].high) == pytest.approx((0.2, 1.0))


def test_reconstruction_without_relu_by_hand() -> None:
    measured, fired = measure_reconstruction(sae_by_hand(relu=False), BY_HAND, SETTINGS)
    # (-1, -2) -> (-1, 0): a negative activation counts for L0, and not for the authors'.
    expected = {"nmse": (0.4 + 0 + 0.8) / 3, "l0": 1.0, "l0_original": 2 / 3, "fvu": 14 / (246 / 9), "mse": 14 / 6}
    assert {name: by_name(measured)[name].value for name in expected} == pytest.approx(expected, rel=1e-6)
    assert fired.tolist() == [2, 1, 0]


def test_a_perfect_sae_reconstructs(evaluated: Evaluated) -> None:
    measured, fired = measure_reconstruction(identity_sae(32), load_sequences(evaluated.heldout), SETTINGS)
    named = by_name(measured)
    assert [named[name].value for name in ("nmse", "nmse_original", "fvu", "mse", "dead_heldout")] == [0.0] * 5
    assert named["l0"].value == pytest.approx(32, abs=0.01)
    assert named["nmse"].n == evaluated.heldout.n_kept
    assert fired.min() > 0


def test_dead_in_training_by_hand() -> None:
    sae = sae_by_hand(relu=True)
    sae.metadata = {"tokens_trained": 20_000}
    # Silent for: ever, 0, 3999, 4000, 12 000, 12 288 and 12 289 tokens; the authors' window is 3 * 4096 = 12 288.
    last_fired = torch.tensor([-1, 20_000, 16_001, 16_000, 8_000, 7_712, 7_711])
    measured = measure_dead_in_training(sae, last_fired, SETTINGS)
    assert {m.metric: m.value for m in measured} == {
        "dead_training": pytest.approx(5 / 7),
        "dead_training_original": pytest.approx(3 / 7),
    }
    # A run shorter than the window: only features that never fired are dead.
    sae.metadata = {"tokens_trained": 3_000}
    measured = measure_dead_in_training(sae, torch.tensor([-1, 500, 3_000, 2_000]), SETTINGS)
    assert [m.value for m in measured] == [0.25, 0.25]


# --- features and tables ---------------------------------------------------------------------------------------------


def test_feature_similarity_by_hand() -> None:
    e = torch.eye(4)
    sae = make_sae(e, torch.stack([2 * e[0], 0.6 * e[0] + 0.8 * e[3], -e[3], e[2]]), k=1)
    token_biases = torch.stack([e[1], 5 * e[0], torch.zeros(4), e[1] * torch.nan])
    alive = torch.tensor([True, True, False, True])
    unigrams, counts = e[2].expand(4, 4), torch.tensor([3, 1, 1, 1])
    settings = SETTINGS.model_copy(update={"min_counts": (1,)})
    measured = measure_feature_similarity(sae, alive, token_biases, unigrams, counts, settings)
    value = {(m.metric, m.at): m.value for m in measured}
    assert len(value) == len(measured) == 4 * 22
    # Token-biases: the features' similarities are 1, 0.6, 0, 0; unigram residuals: 0, 0, 0, 1.
    shares = {0.0: 4, 0.05: 2, 0.55: 2, 0.65: 1, 1.0: 1}
    for at, count in shares.items():
        assert value["feature_token_bias_similarity", at] == count / 4
        assert value["feature_token_bias_similarity_alive", at] == pytest.approx((count - (at == 0)) / 3)
    assert value["feature_token_bias_similar", None] == 1 / 4
    assert value["feature_token_bias_similar_alive", None] == pytest.approx(1 / 3)
    for at in (0.05, 0.5, 1.0):
        assert value["feature_unigram_similarity", at] == 1 / 4
        assert value["feature_unigram_similarity_alive", at] == pytest.approx(1 / 3)
    assert value["feature_unigram_similar", None] == 0
    dead = measure_feature_similarity(sae, torch.zeros(4, dtype=torch.bool), token_biases, unigrams, counts, settings)
    assert len(dead) == 2 * 22
    assert not any(m.metric.endswith("_alive") for m in dead)


def test_features_are_compared_with_rows_of_tokens_seen_often_enough() -> None:
    e = torch.eye(4)
    sae = make_sae(e, e, k=1)
    counts, alive = torch.tensor([0, 1, 2, 30]), torch.ones(4, dtype=torch.bool)
    measured = measure_feature_similarity(sae, alive, e, e, counts, SETTINGS)
    value = {(m.metric, m.min_count): m.value for m in measured if m.at == 1.0}
    for min_count, share in ((0, 4 / 4), (1, 3 / 4), (20, 1 / 4)):
        assert value["feature_token_bias_similarity", min_count] == share
        assert value["feature_unigram_similarity_alive", min_count] == share


def test_table_by_hand() -> None:
    e, half = torch.eye(4), math.sqrt(0.5)
    table = torch.stack([e[0], 2 * e[0], e[1], e[1] + e[2], e[3], -e[3]])
    unigrams = torch.stack([e[0], e[0], e[1] + e[2], 3 * e[1] + 3 * e[2], e[2], e[3]])
    counts = torch.tensor([5, 0, 1, 30, 20, 0])
    measured = measure_table(table, unigrams, counts, SETTINGS)
    value = {(m.metric, m.min_count, m.at): m.value for m in measured}
    n = {(m.metric, m.min_count): m.n for m in measured}
    assert len(value) == len(measured) == 3 * 3 * 22
    # To their own unigram residuals: 1, 1, 0.71, 1, 0, -1; to the most similar other row: 1, 1, 0.71, 0.71, 0, 0.
    own, neighbour = "token_bias_unigram_cosine", "token_bias_neighbour_cosine"
    for min_count, rows, own_median, neighbour_median in (
        (0, 6, (half + 1) / 2, half),
        (1, 4, (half + 1) / 2, half),
        (20, 2, 0.5, half / 2),
    ):
        assert value[own, min_count, None] == pytest.approx(own_median, rel=1e-6)
        assert value[neighbour, min_count, None] == pytest.approx(neighbour_median, rel=1e-6)
        assert n[own, min_count] == n[neighbour, min_count] == rows
    assert value[f"{own}_share", 0, 0.7] == pytest.approx(4 / 6)
    assert value[f"{own}_share", 0, 0.75] == pytest.approx(3 / 6)
    assert value[f"{own}_share", 0, 0.0] == pytest.approx(5 / 6)
    assert value[f"{own}_share", 20, 0.05] == 0.5
    assert value[f"{neighbour}_share", 0, 0.95] == pytest.approx(2 / 6)
    assert value[f"{neighbour}_share", 1, 0.7] == 0.75
    assert value[f"{neighbour}_share", 1, 0.95] == 0.25


def test_table_without_frequent_tokens() -> None:
    settings = SETTINGS.model_copy(update={"similarity_rows": 3})
    measured = measure_table(torch.randn(6, 4), torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 5, 9]), settings)
    assert {m.min_count for m in measured} == {0, 1}
    assert {(m.metric, m.n) for m in measured if m.at is None} == {
        ("token_bias_unigram_cosine", 6),
        ("token_bias_unigram_cosine", 4),
        ("token_bias_neighbour_cosine", 3),
        ("token_bias_other_cosine", 6),
        ("token_bias_other_cosine", 4),
    }


def test_other_cosine_is_never_with_a_tokens_own_unigram_residual() -> None:
    e = torch.eye(5)
    settings = SETTINGS.model_copy(update={"min_counts": (0,)})
    value = {m.metric: m.value for m in measure_table(e, e, torch.ones(5), settings) if m.at is None}
    assert (value["token_bias_unigram_cosine"], value["token_bias_other_cosine"]) == (1, 0)


def plant(V: int, noise: float) -> tuple[Sequences, Tensor]:
    """Residuals along the row of their own token; what is not kept lies along another's."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(V, 24, generator=generator)
    tokens = torch.randint(0, V, (300, 6), generator=generator)
    kept = torch.rand(300, 6, generator=generator) < 0.8
    kept[:, 0] = False
    shown = torch.where(kept, tokens, (tokens + 1) % V)
    residuals = 3 * table[shown] + noise * torch.randn(300, 6, 24, generator=generator)
    return Sequences(residuals.half(), tokens, kept), table


def test_last_token_detection_of_planted_residuals() -> None:
    sequences, table = plant(V=40, noise=0.1)
    settings = SETTINGS.model_copy(update={"detection_tokens": 700})
    named = by_name(last_token_detection(sequences, table, settings))
    assert set(named) == {"last_token_detection", "last_token_detection_any_position"}
    for measured in named.values():
        assert (measured.low, measured.value, measured.high) == (1.0, 1.0, 1.0)
    assert named["last_token_detection"].n == sequences.kept[:, -1].sum()
    assert named["last_token_detection_any_position"].n == 700
    wrong = last_token_detection(sequences, table.roll(1, 0), settings)
    assert [m.value for m in wrong] == [0.0, 0.0]


def test_last_token_detection_without_a_row() -> None:
    sequences, table = plant(V=40, noise=0.1)
    table[:10] = torch.nan
    for measured, chosen in zip(
        last_token_detection(sequences, table, SETTINGS), (sequences.kept[:, -1:], sequences.kept), strict=True
    ):
        tokens = sequences.tokens[:, -chosen.shape[1] :][chosen]
        assert measured.value == pytest.approx((tokens >= 10).double().mean().item())


def test_last_token_detection_of_noise_is_at_chance() -> None:
    sequences, _ = plant(V=20, noise=0.0)
    noise = torch.randn(sequences.residuals.shape, generator=torch.Generator().manual_seed(1)).half()
    table = torch.randn(20, 24, generator=torch.Generator().manual_seed(2))
    measured = last_token_detection(sequences._replace(residuals=noise), table, SETTINGS)[1]
    assert measured.n == sequences.kept.sum()
    assert measured.value == pytest.approx(1 / 20, abs=4 * math.sqrt(0.05 * 0.95 / int(sequences.kept.sum())))


def test_conditional_means_by_hand(tmp_path: Path) -> None:
    # Three sequences in two shards; BOS is token 0, and the row of norm 5000 is an outlier.
    tokens = torch.tensor([[0, 1, 2], [0, 1, 4], [0, 2, 1]])
    residuals = torch.tensor([[[9.0, 9], [1, 2], [10, 0]], [[9, 9], [3, 4], [0, 5000]], [[9, 9], [20, 4], [2, 12]]])
    cache = write_cache(tmp_path, residuals, tokens)
    counts = cache.token_counts(5)
    means = conditional_means(cache, counts)
    assert counts.tolist() == [0, 3, 2, 0, 0]
    assert means[1].tolist() == [2, 6]
    assert means[2].tolist() == [15, 2]
    assert means[[0, 3, 4]].isnan().all()
    torch.testing.assert_close(cache.mean(), torch.tensor([36 / 5, 22 / 5]))


def test_token_counts_are_of_kept_tokens(evaluated: Evaluated) -> None:
    counts = evaluated.train.token_counts(512)
    assert counts.shape == (512,)
    assert counts.sum() == evaluated.train.n_kept < evaluated.train.n_rows
    tokens = evaluated.train.kept_rows().tokens
    assert counts[tokens[3]] == (tokens == tokens[3]).sum()


def test_tables_of_the_tiny_cache(prepared: Prepared, evaluated: Evaluated) -> None:
    measured = measure_tables(prepared.residuals, prepared.unigrams, LAYER, SETTINGS)
    assert set(measured) == {"unigram-residuals", "conditional-means", "residuals"}
    train, heldout = evaluated.train.kept_rows(), evaluated.heldout.kept_rows()
    means = {int(t): train.residuals[train.tokens == t].mean(0) for t in train.tokens.unique()}
    unseen = [int(t) not in means for t in heldout.tokens]
    assert any(unseen)
    variance = (heldout.residuals - heldout.residuals.mean(0)).square().sum()
    mean = train.residuals.mean(0)
    predicted = {
        "unigram-residuals": load_unigrams(prepared.unigrams)[heldout.tokens.long()],
        "conditional-means": torch.stack([means.get(int(t), mean) for t in heldout.tokens]),
    }
    tables = {
        "unigram-residuals": load_unigrams(prepared.unigrams),
        "conditional-means": torch.stack([means.get(t, torch.zeros(32)) for t in range(512)]),
    }
    sequences = load_sequences(evaluated.heldout)
    last = sequences.kept[:, -1]
    for subject, x_hat in predicted.items():
        fvu = ((heldout.residuals - x_hat).square().sum() / variance).item()
        named = by_name(measured[subject])
        assert named["table_fvu"].value == pytest.approx(fvu, rel=1e-4)
        assert named["table_fvu"].n == len(heldout.tokens)
        cosines = torch.nn.functional.cosine_similarity(
            sequences.residuals[last, -1, None].float(), tables[subject][None], dim=2
        )
        hits = cosines.argmax(1) == sequences.tokens[last, -1]
        assert named["last_token_detection"].value == pytest.approx(hits.double().mean().item())
    # The mean residual of a token says more than nothing.
    assert by_name(measured["conditional-means"])["table_fvu"].value < 1

    train_cache, heldout_cache = evaluated.train, evaluated.heldout
    about = {m.metric: m.value for m in measured["residuals"]}
    assert about["heldout_tokens_seen_in_training"] == pytest.approx(1 - sum(unseen) / len(unseen))
    n_text = {"train": train_cache.n_rows * 31 / 32, "heldout": heldout_cache.n_rows * 31 / 32}
    assert about["outlier_share_train"] == pytest.approx(train_cache.n_outliers / n_text["train"])
    assert about["outlier_share_heldout"] == pytest.approx(heldout_cache.n_outliers / n_text["heldout"])
    assert about["scale"] == pytest.approx(train.residuals.norm(dim=1).mean().item() / math.sqrt(32), rel=1e-3)


# --- a whole evaluation ----------------------------------------------------------------------------------------------


def run(prepared: Prepared, evaluated: Evaluated, sae: Path, token_biases: Path) -> list[Measurement]:
    return evaluate(
        sae,
        token_biases,
        prepared.model,
        prepared.residuals,
        prepared.unigrams,
        evaluated.ablations,
        SETTINGS,
        False,
    )


@pytest.mark.parametrize("table", ["none", "learned"])
def test_evaluation_of_a_trained_sae(
    prepared: Prepared, evaluated: Evaluated, trained: dict[str, Path], table: str
) -> None:
    measured = run(prepared, evaluated, trained[table], trained["learned"])
    assert len({(m.metric, m.at, m.min_count) for m in measured}) == len(measured)
    assert run(prepared, evaluated, trained[table], trained["learned"]) == measured
    for m in measured:
        assert m.low is not None
        assert m.high is not None
        assert m.low <= m.value <= m.high, m
    first = {m.metric: m for m in measured}
    of_tables = {"token_bias_unigram_cosine", "token_bias_neighbour_cosine", "last_token_detection"}
    assert of_tables & set(first) == (of_tables if table == "learned" else set())
    assert {"nmse", "fvu", "l0", "dead_heldout", "dead_training", "feature_unigram_similar", "ce_added"} <= set(first)

    rows = evaluated.heldout.kept_rows()
    x_hat = load(trained[table])(rows.residuals, rows.tokens)
    nmse = ((rows.residuals - x_hat).square().sum(1) / rows.residuals.square().sum(1)).mean().item()
    assert first["nmse"].value == pytest.approx(nmse, rel=1e-5)
    assert first["nmse"].n == len(rows.tokens)
    assert first["l0"].value <= 4


def test_the_table_compared_with_must_be_one(
    prepared: Prepared, evaluated: Evaluated, trained: dict[str, Path]
) -> None:
    with pytest.raises(ValueError, match=r"none: evaluation\.token_biases names a baseline"):
        run(prepared, evaluated, trained["learned"], trained["none"])
