"""The authors' files: their names, their tensors, and how ambiguous ones are read."""

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from fixtures.authors import TABLE, D, F, V, same, state_of
from torch import Tensor

from tsae.__main__ import app
from tsae.profile.point import Point
from tsae.sae.checkpoint import load
from tsae.sae.exchange.released import export_released, import_released
from tsae.sae.exchange.released_files import FileName, Reading, parse_name
from tsae.store.tensors import save_tensors

X = torch.randn(20, D, generator=torch.Generator().manual_seed(1))
TOKENS = torch.arange(20)
UNIGRAMS = 5 * torch.randn(V, D, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("name", "expected", "short"),
    [
        ("gpt2_resid_pre_8_ot30.pt", FileName(8, "ot", "30"), "ot30"),
        ("gpt2_resid_pre_11_o5.pt", FileName(11, "o", "5"), "o5"),
        ("pythia-1.4b_resid_pre_16_aot50.pt", FileName(16, "aot", "50"), "aot50"),
        ("gpt2_resid_pre_8_t8.pt", FileName(8, "t", "8"), "t8"),
        ("gpt2_resid_pre_8_8.pt", FileName(8, "", "8"), "8"),
        ("gpt2_resid_pre_8_t0.5.pt", FileName(8, "t", "0.5"), "t0.5"),
        ("gpt2_resid_pre_8_ot30_i0.1.pt", FileName(8, "ot", "30", "_i0.1"), "ot30_i0.1"),
        ("gpt2_resid_pre_8_o30_lr0.005.pt", FileName(8, "o", "30", "_lr0.005"), "o30_lr0.005"),
        ("gpt2_resid_pre_8_ot30x16.pt", FileName(8, "ot", "30", "x16"), "ot30x16"),
        ("pythia_resid_pre_16_o50_long.pt", FileName(16, "o", "50", "_long"), "o50_long"),
    ],
)
def test_a_name_says_layer_kind_and_number(name: str, expected: FileName, short: str) -> None:
    parsed = parse_name(Path("some") / name)
    assert parsed == expected
    assert parsed.short == short


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt2_resid_pre_8_ot.pt", "not a name like gpt2_resid_pre_8_ot30.pt"),
        ("gpt2_resid_pre_8_ot30_{x}.pt", "not a name like"),
        ("gpt2_resid_pre_8_ot30_ x.pt", "not a name like"),
        ("gpt2_resid_mid_8_ot30.pt", "not a name like"),
        ("sae.pt", "not a name like"),
        ("gpt2_resid_pre_8_ot30.pth", "not a name like"),
        (f"gpt2_resid_pre_8_t{'9' * 400}.pt", "not a name like"),
        (f"gpt2_resid_pre_{'9' * 5000}_ot30.pt", "not a name like"),
        ("gpt2_resid_pre_8_ot0.pt", "says 0 where the sparsity belongs"),
        ("gpt2_resid_pre_8_t0.0.pt", "says 0 where the sparsity belongs"),
        ("gpt2_resid_pre_8_ot0.5.pt", "says k = 0.5 active features"),
    ],
)
def test_a_name_that_does_not_say_it_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_name(Path("some") / name)
    assert str(error.value).startswith(f"some/{name}: ")
    assert message in str(error.value)


@pytest.fixture
def unigrams(tmp_path: Path) -> Path:
    save_tensors(tmp_path / "unigrams.safetensors", {"residuals": UNIGRAMS})
    return tmp_path / "unigrams.safetensors"


def imported(folder: Path, name: str, state: dict[str, Tensor], *arguments: str) -> Any:
    """The SAE that the command makes from a state dict."""
    torch.save(state, folder / name)
    command = ["import-released", "--file", str(folder / name), "--folder", str(folder / "sae"), *arguments]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0
    return load(folder / "sae")


def seen(encoder_input: str, state: dict[str, Tensor]) -> Tensor:
    """What the encoder sees of X, by hand."""
    if encoder_input == "remainder":
        return X - state[TABLE][TOKENS]
    if encoder_input == "without_unigram":
        u = UNIGRAMS[TOKENS]
        return X - (X * u).sum(1, keepdim=True) / u.square().sum(1, keepdim=True) * u
    return X


@pytest.mark.parametrize("encoder_input", ["residual", "remainder", "without_unigram"])
@pytest.mark.parametrize("without_o", ["relu", "topk"])
def test_a_name_without_o_is_read_as_is_said(
    tmp_path: Path, unigrams: Path, without_o: str, encoder_input: str
) -> None:
    state, name = state_of(), "gpt2_resid_pre_2_t8.pt"
    reading = ["--without-o", without_o, "--encoder-input", encoder_input, "--unigrams", str(unigrams)]
    sae = imported(tmp_path, name, state, *reading)
    pre = (seen(encoder_input, state) - state["b_dec"]) @ state["W_enc"].T + state["b_enc"]
    if without_o == "relu":
        acts = pre.relu()
    else:
        kept = pre.topk(8, dim=1).indices
        acts = torch.zeros_like(pre).scatter(1, kept, pre.gather(1, kept))
    torch.testing.assert_close(sae.encode(X, TOKENS), acts)
    torch.testing.assert_close(sae(X, TOKENS), acts @ state["W_dec"].T + state["b_dec"] + state[TABLE][TOKENS])
    assert sae.metadata["released"]["assumed"] == ["architecture", "encoder_input"]
    assert ("l1" in sae.metadata["unknown"]) == (without_o == "relu")
    export_released(tmp_path / "sae", tmp_path / "back" / name)
    assert same(torch.load(tmp_path / "back" / name, weights_only=True), state)


def test_a_name_with_o_leaves_nothing_to_assume(tmp_path: Path) -> None:
    reading = ["--without-o", "relu", "--encoder-input", "remainder"]
    sae = imported(tmp_path, "gpt2_resid_pre_2_ot30.pt", state_of(), *reading)
    assert sae.point == Point(k=30, expansion=F / D, table="learned", topk_relu=False)
    assert sae.metadata["released"]["assumed"] == []


def test_a_baseline_without_o_sees_the_residual(tmp_path: Path) -> None:
    sae = imported(tmp_path, "gpt2_resid_pre_2_8.pt", state_of(tokenized=False), "--encoder-input", "remainder")
    assert sae.point == Point(architecture="relu", l1=8, expansion=F / D, table="none")
    assert sae.metadata["released"]["assumed"] == ["architecture"]


def test_what_the_encoder_of_such_an_sae_sees_has_to_be_said(tmp_path: Path, unigrams: Path) -> None:
    path = tmp_path / "gpt2_resid_pre_2_t8.pt"
    torch.save(state_of(), path)
    with pytest.raises(ValueError, match="say it with --encoder-input"):
        import_released(path, tmp_path / "sae")
    with pytest.raises(ValueError, match="give those of its layer with --unigrams"):
        import_released(path, tmp_path / "sae", reading=Reading("relu", "without_unigram"))
    save_tensors(unigrams, {"residuals": UNIGRAMS[1:]})
    with pytest.raises(
        ValueError, match=r"unigram residuals of the shape \(511, 32\), and the table of .* has \(512, 32\)"
    ):
        import_released(path, tmp_path / "sae", reading=Reading("relu", "without_unigram"), unigrams=unigrams)
    with pytest.raises(ValueError, match=r"says 0\.5, which is no number of active features"):
        import_released(
            path.rename(tmp_path / "gpt2_resid_pre_2_t0.5.pt"), tmp_path / "sae", reading=Reading("topk", "residual")
        )
    assert not (tmp_path / "sae").exists()


def gated(tokenized: bool) -> dict[str, Tensor]:
    """The state dict of a gated SAE: one bias gates features, another scale and bias give their magnitude."""
    state = state_of(tokenized)
    state["W_gate"], state["b_gate"] = state.pop("W_enc"), state.pop("b_enc")
    generator = torch.Generator().manual_seed(3)
    state["r_mag"] = 0.5 * torch.randn(F, generator=generator)
    state["b_mag"] = 0.1 * torch.randn(F, generator=generator)
    return state


@pytest.mark.parametrize("name", ["gpt2_resid_pre_2_g2.pt", "gpt2_resid_pre_2_gt2.pt", "gpt2_resid_pre_2_t2.pt"])
def test_a_gated_sae_is_known_by_its_tensors(tmp_path: Path, name: str) -> None:
    tokenized = "t2." in name
    state = gated(tokenized)
    sae = imported(tmp_path, name, state, "--without-o", "topk", "--encoder-input", "residual")
    assert sae.point.architecture == "gated"
    products = (X - state["b_dec"]) @ state["W_gate"].T
    acts = (products * state["r_mag"].exp() + state["b_mag"]).relu() * (products + state["b_gate"] > 0)
    torch.testing.assert_close(sae.encode(X, TOKENS), acts)
    assert sae.metadata["released"]["assumed"] == (["encoder_input"] if tokenized else [])
    export_released(tmp_path / "sae", tmp_path / "back" / name)
    assert same(torch.load(tmp_path / "back" / name, weights_only=True), state)


def test_a_table_that_is_a_parameter_of_its_own_is_read(tmp_path: Path) -> None:
    state = state_of()
    state["lookup.W_lookup"] = state.pop(TABLE)
    sae = imported(tmp_path, "gpt2_resid_pre_2_ot30.pt", state)
    assert torch.equal(sae.W_lookup, state["lookup.W_lookup"])
    export_released(tmp_path / "sae", tmp_path / "back" / "gpt2_resid_pre_2_ot30.pt")
    assert same(torch.load(tmp_path / "back" / "gpt2_resid_pre_2_ot30.pt", weights_only=True), state)


def test_of_a_sweep_the_tensors_say_whether_an_sae_is_tokenized(tmp_path: Path) -> None:
    sae = imported(tmp_path, "gpt2_resid_pre_2_o30_lr0.005.pt", state_of())
    assert sae.point == Point(k=30, expansion=F / D, table="learned", topk_relu=False)
    baseline = imported(tmp_path, "gpt2_resid_pre_2_o30_x4.pt", state_of(tokenized=False))
    assert baseline.point.table == "none"


def without(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name != part}


@pytest.mark.parametrize(
    ("name", "state", "message"),
    [
        ("o30", state_of(), r"its name says baseline, and it holds a table \(lookup\.W_lookup\.weight\)"),
        ("8", state_of(), "its name says baseline, and it holds a table"),
        ("t8", state_of(tokenized=False), "its name says tokenized, and it holds no table"),
        ("ot30_i0.1", state_of(tokenized=False), "its name says tokenized, and it holds no table"),
        ("ot30", gated(True), r"its name says TopK \(o\), and it holds a gated SAE \(W_gate\)"),
        ("t2", without(gated(True), "r_mag"), r"it holds \[.*\] instead of \['W_dec', 'W_gate', 'b_dec', .*'r_mag'\]"),
        ("t2", gated(True) | {"b_enc": torch.zeros(F)}, "not the state dict of such an SAE"),
        (
            "t2",
            gated(True) | {"b_mag": torch.zeros(F + 1)},
            r"b_mag has the shape \(49,\) instead of \(48,\), which b_gate",
        ),
        ("t2", gated(True) | {"W_gate": torch.zeros(D, F)}, r"W_gate has the shape \(32, 48\) instead of \(48, 32\)"),
        ("ot30", state_of() | {"lookup.W_lookup": torch.zeros(V, D)}, "it holds two tables"),
        ("ot30", state_of() | {TABLE: torch.tensor(0.0)}, r"weight has the shape \(\) instead of \(32,\)"),
        ("ot30", state_of() | {"lookup.W_scale": torch.ones(V)}, "not the state dict of such an SAE; .*W_scale"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(
    tmp_path: Path, name: str, state: dict[str, Tensor], message: str
) -> None:
    path = tmp_path / f"gpt2_resid_pre_2_{name}.pt"
    torch.save(state, path)
    with pytest.raises(ValueError, match=message) as error:
        import_released(path, tmp_path / "sae", D, V, Reading("relu", "residual"))
    assert str(error.value).startswith(f"{path}: ") and len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "sae").exists()
