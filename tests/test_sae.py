import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tsae import files
from tsae.sae import SAE, load, load_last_fired, save
from tsae.sweep import Point

D, F, V, K = 6, 15, 9, 4
SCALE = 2.5


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_sae(tokenized: bool = True, relu: bool = True) -> SAE:
    sae = SAE(
        W_enc=normal(F, D, seed=0),
        W_dec=normal(F, D, seed=1),
        b_enc=normal(F, seed=2) - 1,
        b_dec=normal(D, seed=3),
        W_lookup=normal(V, D, seed=4) if tokenized else None,
        k=K,
        relu=relu,
    )
    return sae.requires_grad_(False)


def make_metadata(tokenized: bool = True, relu: bool = True) -> dict:
    point = Point(k=K, expansion=F / D, table="learned" if tokenized else "none", topk_relu=relu)
    return {"scale": SCALE, "point": point.model_dump(mode="json"), "seed": 7}


MEAN, MEAN_UNIGRAM = normal(D, seed=6), normal(D, seed=7)
X, TOKENS = normal(20, D, seed=5), torch.arange(20) % V
LAST_FIRED = torch.arange(F) - 1


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save(tmp_path / "sae", make_sae(), make_metadata(), LAST_FIRED)
    return tmp_path / "sae"


@pytest.mark.parametrize("relu", [True, False])
def test_encode_is_topk_by_hand(relu: bool) -> None:
    sae = make_sae(relu=relu)
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


def test_encode_keeps_leading_dimensions() -> None:
    sae = make_sae()
    acts = sae.encode(X.view(2, 10, D))
    assert torch.equal(acts.view(20, F), sae.encode(X))
    assert torch.equal(sae.decode(acts, TOKENS.view(2, 10)).view(20, D), sae.decode(acts.view(20, F), TOKENS))


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("tokenized", [True, False])
def test_decode_of_encode_is_forward(tokenized: bool, relu: bool) -> None:
    sae = make_sae(tokenized, relu)
    torch.testing.assert_close(sae.decode(sae.encode(X), TOKENS), sae(X, TOKENS))


def test_reconstruction_by_hand() -> None:
    sae = make_sae()
    assert sae.W_lookup is not None
    acts = sae.encode(X)
    for i in range(20):
        expected = sum(acts[i, f] * sae.W_dec[f] for f in range(F)) + sae.b_dec + sae.W_lookup[TOKENS[i]]
        torch.testing.assert_close(sae(X, TOKENS)[i], expected)


def test_a_baseline_ignores_the_tokens() -> None:
    sae = make_sae(tokenized=False)
    assert torch.equal(sae(X, TOKENS), sae(X, TOKENS.flip(0)))
    assert "W_lookup" not in sae.state_dict()
    assert not torch.equal(make_sae()(X, TOKENS), make_sae()(X, TOKENS.flip(0)))


def test_tokenized_activations_are_the_pre_activations() -> None:
    sae = make_sae()
    assert torch.equal(sae.tokenized_activations(X), (X - sae.b_dec) @ sae.W_enc.T + sae.b_enc)
    assert torch.equal(sae.tokenized_activations(X).topk(K).values.relu().sort().values, sae.active(X).values.sort()[0])


# --- initialisation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "factor"),
    [
        (Point(k=2, expansion=2.5, table="none"), 1.0),
        (Point(k=2, expansion=2.5, table="learned"), 0.5),
        (Point(k=2, expansion=2.5, table="fixed", lookup_scale=0.3), 0.7),
        (Point(k=2, expansion=2.5, table="fixed", lookup_scale=2.0, encoder_scale=0.25, topk_relu=False), 0.25),
        (Point(k=2, expansion=2.5, table="learned", b_dec="zero"), 0.5),
    ],
)
def test_initialisation(point: Point, factor: float) -> None:
    unigrams = normal(V, D, seed=9)
    sae = SAE.initialise(point, unigrams, MEAN, MEAN_UNIGRAM, seed=3)
    assert (sae.n_features, sae.k, sae.relu) == (15, 2, point.topk_relu)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(15))
    torch.testing.assert_close(sae.W_enc, factor * sae.W_dec)
    assert not sae.b_enc.any()
    scale = 0.0 if point.table == "none" else point.lookup_scale
    torch.testing.assert_close(sae.b_dec, MEAN - scale * MEAN_UNIGRAM if point.b_dec == "mean" else torch.zeros(D))
    assert sae.W_dec.data_ptr() != sae.W_enc.data_ptr()
    if point.table == "none":
        assert sae.W_lookup is None
    else:
        assert torch.equal(sae.W_lookup, point.lookup_scale * unigrams)  # type: ignore[arg-type]


def test_the_seed_decides_the_features_whatever_the_table() -> None:
    unigrams = normal(V, D, seed=9)

    def features(table: str, seed: int) -> Tensor:
        return SAE.initialise(Point(k=2, expansion=2, table=table), unigrams, MEAN, MEAN_UNIGRAM, seed).W_dec

    assert torch.equal(features("none", 0), features("learned", 0))
    assert torch.equal(features("none", 0), features("fixed", 0))
    assert not torch.equal(features("none", 0), features("none", 1))


def test_initialisation_leaves_the_unigram_residuals_alone() -> None:
    unigrams = normal(V, D, seed=9)
    sae = SAE.initialise(
        Point(k=2, expansion=2, table="learned", lookup_scale=1.0), unigrams, MEAN, MEAN_UNIGRAM, seed=0
    )
    assert sae.W_lookup is not None
    sae.W_lookup.zero_()
    assert torch.equal(unigrams, normal(V, D, seed=9))


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("tokenized", [True, False])
def test_a_loaded_sae_speaks_raw_residuals(tmp_path: Path, tokenized: bool, relu: bool) -> None:
    trained = make_sae(tokenized, relu)
    save(tmp_path, trained, make_metadata(tokenized, relu), LAST_FIRED)
    loaded = load(str(tmp_path))
    torch.testing.assert_close(loaded(X, TOKENS), SCALE * trained(X / SCALE, TOKENS))
    torch.testing.assert_close(loaded.encode(X), SCALE * trained.encode(X / SCALE))
    assert (loaded.k, loaded.relu, loaded.metadata) == (K, relu, make_metadata(tokenized, relu))
    assert (loaded.W_lookup is None) == (not tokenized)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(load_last_fired(tmp_path), LAST_FIRED)


def test_a_checkpoint_holds_the_parameters_as_trained(checkpoint: Path) -> None:
    tensors = files.load_tensors(checkpoint / "sae.safetensors")
    assert set(tensors) == {"W_enc", "W_dec", "b_enc", "b_dec", "W_lookup", "last_fired"}
    for name, tensor in tensors.items():
        assert torch.equal(tensor, LAST_FIRED if name == "last_fired" else getattr(make_sae(), name))


def rewrite(checkpoint: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in files.load_tensors(checkpoint / "sae.safetensors").items()}
    change(tensors)
    files.save_tensors(checkpoint / "sae.safetensors", tensors)


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


@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec"])
def test_a_missing_parameter_is_named(checkpoint: Path, name: str) -> None:
    rewrite(checkpoint, lambda tensors: tensors.pop(name))
    with pytest.raises(ValueError, match=rf"{checkpoint}/sae\.safetensors.*{name}"):
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
    ],
)
def test_parameters_that_do_not_fit_together_are_refused(checkpoint: Path, name: str, shape: tuple[int, ...]) -> None:
    rewrite(checkpoint, lambda tensors: tensors.update({name: torch.zeros(shape)}))
    with pytest.raises(ValueError, match=rf"{checkpoint}/sae\.safetensors"):
        load(checkpoint)


def test_a_checkpoint_that_does_not_say_when_features_fired(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda tensors: tensors.pop("last_fired"))
    with pytest.raises(ValueError, match=rf"{checkpoint}/sae\.safetensors"):
        load_last_fired(checkpoint)
