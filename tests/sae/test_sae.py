import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fixtures.saes import (
    LAST_FIRED,
    MEAN,
    MEAN_INPUT,
    MEAN_ROW,
    POINTS,
    SCALE,
    TOKENS,
    UNIGRAMS,
    D,
    F,
    K,
    V,
    X,
    make_metadata,
    make_sae,
    normal,
    write,
)
from torch import Tensor
from torch.nn.functional import normalize

from tsae.profile.point import Point
from tsae.sae.architectures.gated import Gated
from tsae.sae.checkpoint import load, load_last_fired
from tsae.sae.sae import SAE
from tsae.sae.start import Start
from tsae.store import files
from tsae.store.tensors import load_tensors, save_tensors

GATED = {"activation.r_mag", "activation.b_mag"}
OWN = {
    "gated": GATED,
    "batchtopk": {"activation.threshold", "activation.n_batches"},
    "matryoshka": {"activation.batchtopk.threshold", "activation.batchtopk.n_batches"},
    "auxk": {"activation.silent"},
    "jumprelu": {"activation.log_threshold"},
}


def start_of(point: Point) -> Start:
    directions = normalize(UNIGRAMS) if point.encoder_input == "without_unigram" else None
    return Start(MEAN, MEAN_ROW, MEAN_INPUT, None if point.table == "none" else UNIGRAMS.clone(), directions)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write(tmp_path / "sae")


@pytest.mark.parametrize("relu", [True, False])
def test_encode_is_topk_by_hand(relu: bool) -> None:
    sae = make_sae("topk" if relu else "topk without relu")
    acts = sae.encode(X)
    assert acts.shape == (20, F)
    n_negative = 0
    for row, x in zip(acts.tolist(), X.tolist(), strict=True):
        pre_activations = [
            sum(w * (entry - b) for w, entry, b in zip(weights, x, sae.b_dec.tolist(), strict=True)) + bias
            for weights, bias in zip(sae.W_enc.tolist(), sae.b_enc.tolist(), strict=True)
        ]
        kept = sorted(range(F), key=lambda i: pre_activations[i])[-K:]
        expected = [pre_activations[i] if i in kept else 0.0 for i in range(F)]
        n_negative += sum(value < 0 for value in expected)
        assert row == pytest.approx([max(value, 0) for value in expected] if relu else expected, rel=1e-4, abs=1e-5)
    assert n_negative > 0
    assert (acts != 0).sum(1).max() <= K


def test_encode_is_relu_or_gated_relu() -> None:
    relu, gated = make_sae("relu"), make_sae("gated")
    pre = relu.tokenized_activations(X)
    torch.testing.assert_close(relu.encode(X), pre.relu())
    assert isinstance(gated.activation, Gated)
    magnitudes = gated.activation.r_mag.exp() * (pre - gated.b_enc) + gated.activation.b_mag
    torch.testing.assert_close(gated.encode(X), (pre > 0) * magnitudes.relu())
    # Any number of features, unlike TopK.
    counts = (relu.encode(X) != 0).sum(1)
    assert counts.unique().numel() > 3


@pytest.mark.parametrize("name", list(POINTS))
def test_encode_keeps_leading_dimensions(name: str) -> None:
    sae = make_sae(name)
    acts = sae.encode(X.view(2, 10, D), TOKENS.view(2, 10))
    assert acts.shape == (2, 10, F)
    assert torch.equal(acts.view(20, F), sae.encode(X, TOKENS))
    assert torch.equal(sae.decode(acts, TOKENS.view(2, 10)).view(20, D), sae.decode(acts.view(20, F), TOKENS))
    torch.testing.assert_close(
        sae.tokenized_activations(X.view(2, 10, D), TOKENS.view(2, 10)).view(20, F),
        sae.tokenized_activations(X, TOKENS),
    )


@pytest.mark.parametrize("name", list(POINTS))
def test_decode_of_encode_is_forward(name: str) -> None:
    sae = make_sae(name)
    torch.testing.assert_close(sae.decode(sae.encode(X, TOKENS), TOKENS), sae(X, TOKENS))


def test_a_token_without_active_features_is_reconstructed_from_its_biases() -> None:
    sae = make_sae("relu")
    sae.b_enc.sub_(100)
    assert sae.W_lookup is not None
    assert not sae.encode(X).any()
    assert torch.equal(sae(X, TOKENS), sae.b_dec + sae.W_lookup[TOKENS])


@pytest.mark.parametrize("name", ["topk", "relu", "gated"])
def test_reconstruction_by_hand(name: str) -> None:
    sae = make_sae(name)
    assert sae.W_lookup is not None
    acts = sae.encode(X)
    for i in range(20):
        expected = sum(acts[i, f] * sae.W_dec[f] for f in range(F)) + sae.b_dec + sae.W_lookup[TOKENS[i]]
        torch.testing.assert_close(sae(X, TOKENS)[i], expected)


def test_a_baseline_ignores_the_tokens() -> None:
    sae = make_sae("topk, no table")
    assert torch.equal(sae(X, TOKENS), sae(X, TOKENS.flip(0)))
    assert "W_lookup" not in sae.state_dict()
    assert not torch.equal(make_sae()(X, TOKENS), make_sae()(X, TOKENS.flip(0)))


def test_tokenized_activations_are_the_pre_activations() -> None:
    sae = make_sae()
    assert torch.equal(sae.tokenized_activations(X), (X - sae.b_dec) @ sae.W_enc.T + sae.b_enc)
    active = sae.active(X).values.view(20, K)
    assert torch.equal(sae.tokenized_activations(X).topk(K).values.relu().sort().values, active.sort().values)
    without = make_sae("topk, without_unigram")
    torch.testing.assert_close(
        without.tokenized_activations(X, TOKENS), without.encoder_input(X, TOKENS) @ without.W_enc.T + without.b_enc
    )


def test_the_encoder_sees_the_centred_residual() -> None:
    sae = make_sae()
    assert torch.equal(sae.encoder_input(X, None), X - sae.b_dec)
    assert torch.equal(sae.encoder_input(X, TOKENS), X - sae.b_dec)


@pytest.mark.parametrize("name", [name for name in POINTS if "without_unigram" in name])
def test_the_encoder_does_not_see_the_unigram_direction(name: str) -> None:
    sae = make_sae(name)
    seen = sae.encoder_input(X, TOKENS) + sae.b_dec - MEAN
    cosines = (seen * UNIGRAMS[TOKENS]).sum(1) / (seen.norm(dim=1) * UNIGRAMS[TOKENS].norm(dim=1))
    assert cosines.abs().max() < 1e-6
    # All of that direction is removed, and nothing else.
    torch.testing.assert_close((X - MEAN - seen).norm(dim=1), ((X - MEAN) * normalize(UNIGRAMS[TOKENS])).sum(1).abs())
    moved = X + normal(20, 1, seed=12) * UNIGRAMS[TOKENS]
    torch.testing.assert_close(sae.encode(moved, TOKENS), sae.encode(X, TOKENS), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae(moved, TOKENS), sae(X, TOKENS), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(sae.encode(X, TOKENS), sae.encode(X, TOKENS.flip(0)))


def test_an_unigram_residual_of_zero_takes_nothing_away() -> None:
    point = POINTS["topk, without_unigram"]
    sae = SAE.initialise(point, start_of(point)._replace(unigram_directions=torch.zeros(V, D)), seed=0)
    assert torch.equal(sae.encoder_input(X, TOKENS), X - sae._centre)


def test_the_encoder_sees_what_the_table_leaves() -> None:
    sae = make_sae("topk, remainder")
    assert sae.W_lookup is not None
    torch.testing.assert_close(sae.encoder_input(X, TOKENS), X - sae.W_lookup[TOKENS] - sae.b_dec)
    moved = X + 3 * normal(20, D, seed=12)
    other = SAE(sae.point, sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec, torch.zeros(V, D))
    other.W_lookup[TOKENS[:V]] = sae.W_lookup[TOKENS[:V]] + (moved - X)[:V]  # type: ignore[index]
    torch.testing.assert_close(other.encode(moved[:V], TOKENS[:V]), sae.encode(X[:V], TOKENS[:V]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["topk, without_unigram", "topk, remainder"])
def test_an_encoder_that_needs_the_tokens_says_so(name: str) -> None:
    sae = make_sae(name)
    for call in (
        lambda: sae.encode(X),
        lambda: sae.active(X),
        lambda: sae.tokenized_activations(X),
        lambda: sae.encoder_input(X, None),
    ):
        with pytest.raises(ValueError, match=rf"needs the token ids .encoder_input: {name.split()[1]}.*give them"):
            call()


@pytest.mark.parametrize("name", list(POINTS))
def test_folding_the_centre_changes_no_activation(name: str) -> None:
    sae, folded = make_sae(name), make_sae(name)
    for one in (sae, folded):
        one.centre = normal(D, seed=13)
    folded.fold_centre_()
    assert folded.centre is None
    # The result has the paper's form, applied to what the encoder sees.
    seen = sae.encoder_input(X, TOKENS) + sae._centre
    by_hand = (seen - folded.b_dec) @ folded.W_enc.T + folded.b_enc
    torch.testing.assert_close(folded.tokenized_activations(X, TOKENS), by_hand, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(folded.encode(X, TOKENS), sae.encode(X, TOKENS), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(folded(X, TOKENS), sae(X, TOKENS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("point", [
    Point(k=2, expansion=2.5, table="none"),
    Point(k=2, expansion=2.5, table="learned"),
    Point(k=2, expansion=2.5, table="fixed", lookup_scale=2.0, encoder_scale=0.25, topk_relu=False),
    Point(k=2, expansion=2.5, table="learned", decoder_norm=0.3, centre=0.25),
    Point(k=2, expansion=2.5, table="learned", start="authors"),
    Point(k=2, expansion=2.5, table="none", start="authors"),
    Point(architecture="relu", l1=2, expansion=2.5, table="learned"),
    Point(architecture="gated", l1=2, expansion=2.5, table="none"),
    Point(k=2, expansion=2.5, table="learned", encoder_input="remainder"),
    Point(k=2, expansion=2.5, table="learned", encoder_input="without_unigram"),
    Point(k=2, expansion=2.5, table="none", encoder_input="without_unigram"),
], ids=lambda point: point.id)  # fmt: skip
def test_initialisation(point: Point) -> None:
    start = start_of(point)
    sae = SAE.initialise(point, start, seed=3)
    assert (sae.n_features, sae.point) == (15, point)
    norm, factor = {"topk-k2-x2.5-learned-centre0.25-dec0.3": (0.3, 1.0), "topk-k2-x2.5-learned-authors": (1.0, 0.5),
                    "topk-k2-x2.5-none-authors": (1.0, 1.0), "topk-k2-x2.5-fixed-lookup2-enc0.25-norelu": (0.1, 0.25)}.get(point.id, (0.1, 1.0))  # fmt: skip
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.full((15,), norm))
    torch.testing.assert_close(sae.W_enc, factor * sae.W_dec)
    assert sae.W_dec.data_ptr() != sae.W_enc.data_ptr()
    assert not sae.b_enc.any()
    if point.start == "authors":
        assert not sae.b_dec.any() and sae.centre is None
    else:
        torch.testing.assert_close(sae.b_dec, MEAN - MEAN_ROW)
        torch.testing.assert_close(sae.centre, (point.centre or 1.0) * MEAN_INPUT)
    assert sae.W_lookup is start.W_lookup and sae.unigram_directions is start.unigram_directions
    # Tables and the centre are outside autograd.
    trained = {"W_enc", "W_dec", "b_enc", "b_dec"} | (GATED if point.architecture == "gated" else set())
    assert {name for name, _ in sae.named_parameters()} == trained


def test_the_seed_decides_the_features_whatever_the_table_or_architecture() -> None:
    def features(seed: int, point: Point) -> Tensor:
        return SAE.initialise(point, start_of(point), seed).W_dec

    first = features(0, POINTS["topk"])
    for point in POINTS.values():
        assert torch.equal(features(0, point), first)
    assert not torch.equal(features(1, POINTS["topk"]), first)


@pytest.mark.parametrize("name", list(POINTS))
def test_a_loaded_sae_speaks_raw_residuals(tmp_path: Path, name: str) -> None:
    trained = make_sae(name)
    loaded = load(str(write(tmp_path, name)))
    torch.testing.assert_close(loaded(X, TOKENS), SCALE * trained(X / SCALE, TOKENS))
    torch.testing.assert_close(loaded.encode(X, TOKENS), SCALE * trained.encode(X / SCALE, TOKENS))
    assert (trained.encode(X / SCALE, TOKENS) != 0).any()
    assert (loaded.point, loaded.metadata) == (POINTS[name], make_metadata(name))
    assert (loaded.W_lookup is None) == (POINTS[name].table == "none")
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(load_last_fired(tmp_path), LAST_FIRED)


def test_loading_scales_what_has_the_units_of_residuals(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, "gated, without_unigram")).state_dict()
    for name, tensor in make_sae("gated, without_unigram").state_dict().items():
        scaled = name in ("b_enc", "b_dec", "W_lookup", "mean", "activation.b_mag")
        assert torch.equal(loaded[name], SCALE * tensor if scaled else tensor)


@pytest.mark.parametrize("name", list(POINTS))
def test_a_checkpoint_holds_the_parameters_as_trained(tmp_path: Path, name: str) -> None:
    tensors = load_tensors(write(tmp_path, name) / "sae.safetensors")
    expected = {"W_enc", "W_dec", "b_enc", "b_dec", "last_fired"}
    expected |= set() if "no table" in name else {"W_lookup"}
    expected |= {"unigram_directions", "mean"} if "without_unigram" in name else set()
    expected |= OWN.get(name.partition(",")[0], set())
    assert set(tensors) == expected
    trained = make_sae(name).state_dict() | {"last_fired": LAST_FIRED}
    for part, tensor in tensors.items():
        assert tensor.dtype == trained[part].dtype
        assert torch.equal(tensor, trained[part])


def test_tables_in_half_precision(tmp_path: Path) -> None:
    name = "gated, without_unigram"
    folder = write(tmp_path, name, torch.float16)
    tables = {"W_lookup", "unigram_directions"}
    trained, stored = make_sae(name).state_dict(), load_tensors(folder / "sae.safetensors")
    for part, tensor in trained.items():
        assert torch.equal(stored[part], tensor.half() if part in tables else tensor)
    loaded = load(folder)
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}
    assert torch.equal(loaded.W_lookup, SCALE * trained["W_lookup"].half().float())  # type: ignore[arg-type]
    torch.testing.assert_close(loaded(X, TOKENS), SCALE * make_sae(name)(X / SCALE, TOKENS), rtol=2e-2, atol=2e-2)


def rewrite(checkpoint: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_tensors(checkpoint / "sae.safetensors").items()}
    change(tensors)
    save_tensors(checkpoint / "sae.safetensors", tensors)


@pytest.mark.parametrize("name", ["sae.safetensors", "config.json"])
def test_a_missing_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(ValueError, match=f"{checkpoint}.*{name}"):
        load(checkpoint)


@pytest.mark.parametrize("name", ["sae.safetensors", "config.json"])
def test_a_truncated_file_is_named(checkpoint: Path, name: str) -> None:
    path = checkpoint / name
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=str(path)):
        load(checkpoint)


@pytest.mark.parametrize("key", ["scale", "point"])
def test_a_config_without_what_loading_needs_is_named(checkpoint: Path, key: str) -> None:
    path = checkpoint / "config.json"
    content = json.loads(path.read_text())
    del content[key]
    files.write_json(path, content)
    with pytest.raises(ValueError, match=str(path)):
        load(checkpoint)


def test_a_config_whose_point_is_none_is_named(checkpoint: Path) -> None:
    metadata = make_metadata()
    metadata["point"]["architecture"] = "relu"
    files.write_json(checkpoint / "config.json", metadata)
    with pytest.raises(ValueError, match=rf"(?s){checkpoint}/config\.json.*k says nothing about architecture relu"):
        load(checkpoint)


@pytest.mark.parametrize("part", ["W_enc", "W_dec", "b_enc", "b_dec", "W_lookup", "unigram_directions", *sorted(GATED)])
def test_a_missing_parameter_is_named(tmp_path: Path, part: str) -> None:
    checkpoint = write(tmp_path / "sae", "gated, without_unigram")
    load(checkpoint)
    rewrite(checkpoint, lambda tensors: tensors.pop(part))
    with pytest.raises(ValueError, match=rf"{checkpoint}/sae\.safetensors.*{part}"):
        load(checkpoint)


@pytest.mark.parametrize("other", ["gated", "topk, no table", "topk, without_unigram"])
def test_the_parameters_of_another_point_are_refused(checkpoint: Path, other: str) -> None:
    files.write_json(checkpoint / "config.json", make_metadata(other))
    architecture = POINTS[other].architecture
    with pytest.raises(
        ValueError, match=rf"{checkpoint}/sae\.safetensors: not the parameters of this {architecture} SAE"
    ):
        load(checkpoint)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("W_enc", (F - 1, D)),
        ("W_dec", (F, D + 1)),
        ("b_enc", (F - 1,)),
        ("b_dec", (D + 1,)),
        ("b_dec", (1,)),
        ("W_lookup", (V, D - 1)),
        ("W_lookup", (V * D,)),
        ("unigram_directions", (V, D + 1)),
        ("activation.r_mag", (F - 1,)),
        ("activation.b_mag", (1,)),
        ("last_fired", (F + 1,)),
    ],
)
def test_parameters_that_do_not_fit_together_are_refused(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    checkpoint = write(tmp_path / "sae", "gated, without_unigram")
    rewrite(checkpoint, lambda tensors: tensors.update({name: torch.zeros(shape)}))
    with pytest.raises(ValueError, match=rf"{checkpoint}/sae\.safetensors"):
        load(checkpoint)


def test_a_checkpoint_that_does_not_say_when_features_fired(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda tensors: tensors.pop("last_fired"))
    with pytest.raises(ValueError, match=rf"{checkpoint}/sae\.safetensors"):
        load_last_fired(checkpoint)
