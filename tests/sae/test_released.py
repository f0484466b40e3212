"""The authors' files, written here in their layout: converted both ways, and refused."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from fixtures.authors import TABLE, Authors, D, F, V, by_hand, released_config, same, state_of, truncate, write
from torch import Tensor

from tsae.__main__ import app
from tsae.profile.point import Point
from tsae.sae.checkpoint import load, load_last_fired, save
from tsae.sae.exchange.released import (
    export_released,
    find_released,
    import_released,
)
from tsae.sae.exchange.released_files import read_state
from tsae.sae.sae import SAE
from tsae.store import files


def transposed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"W_dec": state["W_dec"].T.contiguous()}


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"W_enc": state["W_enc"].bfloat16(), TABLE: state[TABLE].half()}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gpt2_resid_pre_2_ot30.pt", dict),
        ("gpt2_resid_pre_2_ot30.pt", transposed),
        ("gpt2_resid_pre_2_ot30.pt", halved),
        ("gpt2_resid_pre_2_o30.pt", dict),
        ("gpt2_resid_pre_2_o30.pt", transposed),
    ],
)
def test_theirs_to_ours_and_back_is_the_same_to_the_bit(tmp_path: Path, name: str, change: Callable) -> None:
    state = change(state_of("_ot" in name))
    torch.save(state, tmp_path / name)
    import_released(tmp_path / name, tmp_path / "sae", D, V)
    export_released(tmp_path / "sae", tmp_path / "back" / name)
    assert same(torch.load(tmp_path / "back" / name, weights_only=True), state)
    export_released(tmp_path / "sae", tmp_path / "again" / name)
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "back" / name).read_bytes()


@pytest.mark.parametrize("layout", ["d, F", "F, d"])
def test_an_imported_sae_holds_their_parameters(tmp_path: Path, layout: str) -> None:
    state = state_of()
    path = tmp_path / "gpt2_resid_pre_2_ot30.pt"
    torch.save(transposed(state) if layout == "F, d" else state, path)
    import_released(path, tmp_path / "sae")
    sae = load(tmp_path / "sae")
    expected = {"W_enc": state["W_enc"], "W_dec": state["W_dec"].T, "b_enc": state["b_enc"], "b_dec": state["b_dec"]}
    assert same(dict(sae.state_dict()), expected | {"W_lookup": state[TABLE]})
    assert sae.point == Point(k=30, expansion=1.5, table="learned", topk_relu=False)
    about = sae.metadata
    assert (about["layer"], about["scale"], about["released"]["W_dec"]) == (2, 1.0, layout)
    assert about["released"]["sha256"] == files.sha256(path)
    assert "tokens_trained" not in about and {"seed", "lookup_scale", "start"} <= set(about["unknown"])
    with pytest.raises(ValueError, match="last_fired"):
        load_last_fired(tmp_path / "sae")


def test_a_square_decoder_is_taken_for_theirs(tmp_path: Path) -> None:
    state = state_of(n_features=D)
    torch.save(state, tmp_path / "gpt2_resid_pre_2_ot30.pt")
    import_released(tmp_path / "gpt2_resid_pre_2_ot30.pt", tmp_path / "sae")
    assert torch.equal(load(tmp_path / "sae").W_dec, state["W_dec"].T)


def trained_here(folder: Path, **settings: Any) -> SAE:
    """An SAE like one trained here, in residuals a third as long."""
    table = settings.pop("table", "learned")
    point = Point(k=30, expansion=F / D, table=table, **({"topk_relu": False} | settings))
    state = state_of()
    lookup = None if table == "none" else state[TABLE]
    sae = SAE(point, state["W_enc"], state["W_dec"].T.contiguous(), state["b_enc"], state["b_dec"], lookup)
    metadata = {"point": point.model_dump(mode="json"), "scale": 3.0, "layer": 2, "tokens_trained": 100}
    save(folder, sae, metadata, torch.zeros(F, dtype=torch.int64))
    return load(folder)


@pytest.mark.parametrize("table", ["none", "learned"])
def test_ours_to_theirs_and_back_is_the_same_to_the_bit(tmp_path: Path, table: str) -> None:
    ours = trained_here(tmp_path / "ours", table=table)
    name = f"gpt2_resid_pre_2_o{'t' if table == 'learned' else ''}30.pt"
    for command, arguments in (
        ("export-released", ["--folder", str(tmp_path / "ours"), "--file", str(tmp_path / name)]),
        ("import-released", ["--file", str(tmp_path / name), "--folder", str(tmp_path / "back"), "--d-model", str(D)]),
    ):
        assert CliRunner().invoke(app, [command, *arguments], catch_exceptions=False).exit_code == 0
    back = load(tmp_path / "back")
    assert same(dict(back.state_dict()), dict(ours.state_dict()))
    x, tokens = torch.randn(20, D, generator=torch.Generator().manual_seed(1)), torch.arange(20)
    assert torch.equal(back(x, tokens), ours(x, tokens))
    torch.testing.assert_close(
        by_hand(torch.load(tmp_path / name, weights_only=True), 30, x, tokens)[1], ours(x, tokens)
    )


@pytest.mark.parametrize(
    ("settings", "name", "message"),
    [
        ({"topk_relu": True}, "gpt2_resid_pre_2_ot30.pt", "topk-k30-x1.5-learned cannot be written in their layout"),
        ({}, "gpt2_resid_pre_2_ot31.pt", "is called MODEL_resid_pre_2_ot30.pt"),
        ({}, "gpt2_resid_pre_3_ot30.pt", "is called MODEL_resid_pre_2_ot30.pt"),
        ({"table": "none"}, "gpt2_resid_pre_2_ot30.pt", "is called MODEL_resid_pre_2_o30.pt"),
    ],
)
def test_an_sae_that_their_layout_cannot_say_is_not_written(
    tmp_path: Path, settings: dict[str, Any], name: str, message: str
) -> None:
    trained_here(tmp_path / "ours", **settings)
    with pytest.raises(ValueError, match=message):
        export_released(tmp_path / "ours", tmp_path / name)
    assert not (tmp_path / name).exists()


class Code:
    """A pickle that makes a call when it is read."""

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, ("code-ran",)


def damage(path: Path) -> None:
    """Overwrite the entry with the structure; keep the others."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, b"nothing" if name.endswith("data.pkl") else content)


def having(**parts: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(state_of() | parts, path)


def lacking(part: str) -> Callable[[Path], None]:
    return lambda path: torch.save({name: tensor for name, tensor in state_of().items() if name != part}, path)


BAD = {
    "pickled object": (having(extra=Code()), r"holds a pickled object \((posix|nt|os)\.mkdir\), which can run code"),
    "object alone": (lambda path: torch.save(Code(), path), "holds a pickled object"),
    "module": (lambda path: torch.save(Authors(True), path), r"holds a pickled object \(fixtures\.authors\.Authors\)"),
    "truncated": (truncate, "truncated, its end is missing; download or copy it again"),
    "empty": (lambda path: path.write_bytes(b""), "not a file of torch.save since PyTorch 1.6"),
    "bare pickle": (lambda path: path.write_bytes(b"cos\nmkdir\n(S'code-ran'\ntR."), "not a file of torch.save"),
    "damaged": (damage, "holds something that is neither a name nor a tensor"),
    "not a dictionary": (lambda path: torch.save([torch.zeros(3)], path), "holds a list, not a state dict"),
    "nested": (lambda path: torch.save({"state": state_of()}, path), "entry 'state' is a OrderedDict"),
    "number inside": (having(step=3), "not a state dict, its entry 'step' is a int and no tensor"),
    "part missing": (lacking("b_dec"), r"it holds \[.*\] instead of \['W_dec', 'W_enc', 'b_dec', 'b_enc', 'lookup"),
    "part too many": (having(threshold=torch.zeros(F)), "not the state dict of such an SAE; .*threshold"),
    "no table": (lacking(TABLE), r"its name says tokenized, and it holds no table \(lookup\.W_lookup\.weight\)"),
    "W_enc": (having(W_enc=torch.zeros(D, F)), r"W_enc has the shape \(32, 48\) instead of \(48, 32\)"),
    "W_dec": (
        having(W_dec=torch.zeros(D, F + 1)),
        r"W_dec has the shape \(32, 49\) instead of \(32, 48\) or \(48, 32\)",
    ),
    "b_enc": (having(b_enc=torch.zeros(1, F)), "are to have one dimension each"),
    "table": (having(**{TABLE: torch.zeros(V, D + 1)}), r"lookup\.W_lookup\.weight has the shape \(512, 33\)"),
    "integers": (having(b_enc=torch.zeros(F, dtype=torch.int64)), r"b_enc is torch\.int64"),
    "sparse": (having(W_enc=torch.zeros(F, D).to_sparse()), r"W_enc is torch\.float32 \(torch\.sparse_coo\)"),
    "another width": (
        lambda path: torch.save(state_of(d_model=24), path),
        r"of width 24, and the model's are 32 wide \(model\.d_model\); it is of another model",
    ),
    "another vocabulary": (
        lambda path: torch.save(state_of(vocab_size=500), path),
        r"its table has 500 tokens, and the model's vocabulary 512 \(model\.vocab_size\)",
    ),
    "k": (lambda path: torch.save(state_of(n_features=29), path), "says k = 30 active features, and it has 29"),
}


@pytest.mark.refused("released SAEs: pickled objects, wrong shapes, truncated files")
@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(tmp_path)
    make, message = BAD[case]
    path = write(tmp_path / "released")
    make(path)
    with pytest.raises(ValueError, match=message) as error:
        import_released(path, tmp_path / "sae", D, V)
    assert str(error.value).startswith(f"{path}: ") and len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "sae").exists()
    # A profile refuses it too, before any work.
    with pytest.raises(ValueError, match=message) as error:
        find_released(released_config(tmp_path / "released"))
    assert str(error.value).startswith(f"released.folder: {path}: ") and len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "code-ran").exists()


def test_the_pickled_object_would_have_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    having(extra=Code())(tmp_path / "file.pt")
    torch.load(tmp_path / "file.pt", weights_only=False)
    assert (tmp_path / "code-ran").is_dir()


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    having(b_enc=torch.full((F,), torch.nan))(path)
    with pytest.raises(ValueError, match=r"b_enc has values that are not finite"):
        import_released(path, tmp_path / "sae")


def test_a_changed_value_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path)
    content = bytearray(path.read_bytes())
    content[content.find(state_of()[TABLE].numpy().tobytes()) + 1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"damaged \(BadZipFile: the checksum of \S+ is wrong\); download or copy it again"
    ):
        import_released(path, tmp_path / "sae")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read_state(tmp_path / "gpt2_resid_pre_2_ot30.pt")
