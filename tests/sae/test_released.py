"""The authors' files, written here in their layout: read, refused, evaluated, and converted both ways."""

import copy
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from click.testing import CliRunner
from fixtures import ROOT
from fixtures.authors import TABLE, Authors, D, F, V, by_hand, same, state_of, write
from fixtures.evaluation import FEATURES, MIN_FIRINGS, SETTINGS, Evaluated
from fixtures.training import LAYER, Prepared
from fixtures.workflow import copy_project, planned, snakemake
from torch import Tensor, nn

from tsae.__main__ import app
from tsae.claims.ledger import load_ledger
from tsae.claims.report import measure_claims
from tsae.claims.selection import Run, SumsOf
from tsae.figures.draw import draw
from tsae.figures.inputs import Inputs
from tsae.figures.style import save as save_figure
from tsae.measure.evaluate import evaluate
from tsae.measure.measurement import Measurement
from tsae.measure.sums import DocumentSums, load_sums
from tsae.measure.table import read_table, write_table
from tsae.profile import config
from tsae.profile.point import Point
from tsae.sae.checkpoint import load, load_last_fired, save
from tsae.sae.exchange.released import (
    export_released,
    find_released,
    import_released,
    token_bias_reference,
)
from tsae.sae.exchange.released_files import read_state
from tsae.sae.sae import SAE
from tsae.store import files

# --- both ways -------------------------------------------------------------------------------------------------------


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


# --- bad files -------------------------------------------------------------------------------------------------------


class Code:
    """What a pickle may hold: a call, made when it is read."""

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, ("code-ran",)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def damage(path: Path) -> None:
    """Every entry there, and the one with the structure overwritten."""
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
    "pickled object": (having(extra=Code()), r"holds a pickled object \((posix|nt|os)\.mkdir\), and such can run code"),
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


def released_config(folder: Path, **changes: Any) -> config.Config:
    """The smoke profile with released SAEs."""
    data = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    data["model"]["compatibility_mode"] = True
    return config.parse(data | {"released": {"folder": str(folder)}} | changes)


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
    # The same before any work.
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


# --- in a profile ----------------------------------------------------------------------------------------------------


def test_a_profile_finds_its_released_saes(tmp_path: Path) -> None:
    names = [
        "gpt2_resid_pre_2_o30.pt",
        "gpt2_resid_pre_1_ot30.pt",
        "gpt2_resid_pre_1_o20.pt",
        "gpt2_resid_pre_1_ot5.pt",
    ]
    paths = {name: write(tmp_path, name) for name in names}
    (tmp_path / "README.md").write_text("left alone")
    profile = released_config(tmp_path)
    found = find_released(profile)
    assert {job: file.path.name for job, file in found.items()} == {
        "layer1/released-o20": names[2],
        "layer1/released-ot30": names[1],
        "layer1/released-ot5": names[3],
        "layer2/released-o30": names[0],
    }
    assert found["layer1/released-o20"].path == paths[names[2]]
    job = found["layer1/released-ot30"].job
    assert job.subject == "released-ot30"
    assert (job.labels["k"], job.labels["table"], job.labels["expansion"]) == (30, "learned", 1.5)
    assert [job.labels[name] for name in ("seed", "lookup_scale", "start", "encoder_scale")] == [None] * 4
    assert type(job).model_validate_json(config.to_json(job)) == job
    references = {name: token_bias_reference(profile, found, file.job).id for name, file in found.items()}
    assert references == {
        "layer1/released-o20": "layer1/released-ot30",
        "layer1/released-ot30": "layer1/released-ot30",
        "layer1/released-ot5": "layer1/released-ot5",
        "layer2/released-o30": "layer2/topk-k4-x4-learned-s0",
    }


def test_a_job_of_the_sweep_is_written_as_before() -> None:
    (job, *_) = config.load(ROOT / "config/smoke.yaml").jobs()
    assert set(json.loads(config.to_json(job))) == {"layer", "point", "seed"}


def test_every_mistake_in_the_folder_is_named_at_once(tmp_path: Path) -> None:
    write(tmp_path, "gpt2_resid_pre_1_ot30.pt")
    write(tmp_path, "other_resid_pre_1_ot30.pt")
    truncate(write(tmp_path / "init-sweep", "gpt2_resid_pre_1_ot30_i0.1.pt"))
    write(tmp_path / "old", "gpt2_resid_pre_1_t.pt")
    write(tmp_path / "my sweep", "gpt2_resid_pre_2_ot30.pt")
    with pytest.raises(ValueError) as error:
        find_released(released_config(tmp_path))
    lines = str(error.value).splitlines()
    assert [line.partition(": ")[2].partition(": ")[0] for line in lines] == [
        str(tmp_path / f"{name}.pt")
        for name in (
            "init-sweep/gpt2_resid_pre_1_ot30_i0.1",
            "my sweep/gpt2_resid_pre_2_ot30",
            "old/gpt2_resid_pre_1_t",
            "other_resid_pre_1_ot30",
        )
    ]
    for line, message in zip(
        lines, ("truncated", "call the folder something of", "not a name like", "as is "), strict=True
    ):
        assert message in line


THEIRS = (
    "gpt2-layers/gpt2_resid_pre_1_ot30.pt",
    "gpt2-layers/gpt2_resid_pre_2_ot30.pt",
    "gpt2-layers/gpt2_resid_pre_3_ot30.pt",
    "gpt2-layers/gpt2_resid_pre_2_o30.pt",
    "pareto-sweep/gpt2_resid_pre_2_ot30.pt",
    "pareto-sweep/gpt2_resid_pre_2_ot20.pt",
    "pareto-sweep/gpt2_resid_pre_2_o20.pt",
    "pareto-sweep/gpt2_resid_pre_2_t16.pt",
    "init-sweep/pythia_resid_pre_16_ot30_i0.1.pt",
    "init-sweep/gpt2_resid_pre_2_ot30_i0.1.pt",
    "expansion-sweep/gpt2_resid_pre_2_o30_x8.pt",
    "old/gpt2_resid_pre_2_t8.pt",
    "gpt2_resid_pre_2_t4.pt",
)


def test_folders_are_taken_as_they_lie(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in THEIRS:
        write(tmp_path / Path(name).parent, Path(name).name)
    # Ignored: the shadow files of an archive, hidden and deeper folders, and a damaged file of another layer.
    for name in (
        "__MACOSX/._gpt2_resid_pre_1_ot30.pt",
        ".cache/gpt2_resid_pre_1_ot5.pt",
        "a/b/gpt2_resid_pre_1_ot5.pt",
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"")
    truncate(tmp_path / THEIRS[2])
    profile = released_config(tmp_path)
    found = find_released(profile)
    assert {job: str(file.path.relative_to(tmp_path)) for job, file in found.items()} == {
        "layer1/released-gpt2-layers-ot30": THEIRS[0],
        "layer2/released-gpt2-layers-ot30": THEIRS[1],
        "layer2/released-gpt2-layers-o30": THEIRS[3],
        "layer2/released-pareto-sweep-ot30": THEIRS[4],
        "layer2/released-pareto-sweep-ot20": THEIRS[5],
        "layer2/released-pareto-sweep-o20": THEIRS[6],
        "layer2/released-pareto-sweep-t16": THEIRS[7],
        "layer2/released-init-sweep-ot30_i0.1": THEIRS[9],
        "layer2/released-expansion-sweep-o30_x8": THEIRS[10],
        "layer2/released-old-t8": THEIRS[11],
        "layer2/released-t4": THEIRS[12],
    }
    (message,) = caplog.messages
    assert "2 of 13 files in " in message and "of layers [3, 16], which the profile does not compare" in message

    def reading(job: str) -> tuple[Any, ...]:
        point = found[f"layer2/released-{job}"].job.point
        return point.architecture, point.k, point.encoder_input

    assert reading("old-t8") == reading("t4") == ("relu", None, "without_unigram")
    assert reading("pareto-sweep-t16") == ("relu", None, "residual")
    assert reading("pareto-sweep-o20") == ("topk", 20, "residual")
    labels = found["layer2/released-old-t8"].job.labels
    assert (labels["l1"], labels["k"], labels["architecture"]) == (None, None, "relu")

    def reference(job: str) -> str:
        return token_bias_reference(profile, found, found[f"layer2/released-{job}"].job).subject

    assert reference("old-t8") == "released-old-t8"
    assert reference("gpt2-layers-o30") == "released-gpt2-layers-ot30"
    assert reference("pareto-sweep-o20") == "released-pareto-sweep-ot20"
    # Its folder has no table. Of the other SAEs with k = 30 and its size, the first by name.
    assert reference("expansion-sweep-o30_x8") == "released-gpt2-layers-ot30"


def test_the_reading_of_names_without_o_is_set_by_folder(tmp_path: Path) -> None:
    for name in ("old/gpt2_resid_pre_2_t8.pt", "old/gpt2_resid_pre_2_8.pt", "new/gpt2_resid_pre_2_t8.pt"):
        write(tmp_path / Path(name).parent, Path(name).name)

    def points(**settings: Any) -> dict[str, Point]:
        profile = released_config(tmp_path, released={"folder": str(tmp_path), **settings})
        return {file.job.subject: file.job.point for file in find_released(profile).values()}

    found = points(without_o="topk", encoder_input={"new": "remainder"})
    topk = Point(k=8, expansion=F / D, table="learned", topk_relu=False)
    assert found == {
        "released-old-t8": topk,
        "released-old-8": topk.model_copy(update={"table": "none"}),
        "released-new-t8": topk.model_copy(update={"encoder_input": "remainder"}),
    }
    for wrong in ("odl", "old/", "."):
        with pytest.raises(
            ValueError, match=r"released\.encoder_input: '.*' is none of the folders .* \['new', 'old'\]"
        ):
            points(encoder_input={wrong: "remainder"})
    with pytest.raises(
        ValueError, match=r"released\.encoder_input\.old: .*'residual', 'remainder' or 'without_unigram'"
    ):
        points(encoder_input={"old": "unigram"})
    with pytest.raises(ValueError, match=r"released\.without_o: .*'relu' or 'topk'"):
        points(without_o="gated")


def test_files_of_other_layers_alone_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "gpt2-layers", "gpt2_resid_pre_3_ot30.pt")
    with pytest.raises(
        ValueError, match=r"1 of 1 files in .* are of layers \[3\], and the profile compares layers \[1, 2\]"
    ):
        find_released(released_config(tmp_path))


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"released\.folder: there is no file \*\.pt in "):
        find_released(released_config(tmp_path))
    with pytest.raises(ValueError, match=r"released\.folder: there is no folder .*absent"):
        find_released(released_config(tmp_path / "absent"))
    assert find_released(config.load(ROOT / "config/smoke.yaml")) == {}


def test_a_profile_with_released_saes_needs_their_residuals(tmp_path: Path) -> None:
    data = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    with pytest.raises(ValueError, match=r"released: .*set model\.compatibility_mode: true"):
        config.parse(data | {"released": {"folder": "somewhere"}})
    data["sweep"]["released"] = copy.deepcopy(data["sweep"]["headline"])
    with pytest.raises(ValueError, match="sweep: 'released' is the name of another table"):
        config.parse(data)


# --- evaluated -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(prepared: Prepared, evaluated: Evaluated, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Measurements of a released tokenized SAE and of its baseline, a file each, and what they are."""
    folder = tmp_path_factory.mktemp("released")
    for name in ("ot30", "o30"):
        import_released(write(folder / "files", f"gpt2_resid_pre_{LAYER}_{name}.pt"), folder / name, D, V)
    for job, file in find_released(released_config(folder / "files")).items():
        name = job.removeprefix(f"layer{LAYER}/released-")
        evaluate(
            file.job,
            folder / name,
            folder / "ot30",
            prepared.model,
            prepared.residuals,
            prepared.heldout_tokens,
            prepared.references,
            evaluated.ablations,
            SETTINGS,
            FEATURES,
            MIN_FIRINGS,
            False,
            folder / f"{name}.json",
            folder / f"{name}.parquet",
            folder / f"{name}.safetensors",
        )
    write_table(folder / "released.csv", [folder / "ot30.json", folder / "o30.json"])
    return folder


@pytest.mark.parametrize("name", ["ot30", "o30"])
def test_metrics_are_those_of_the_parameters_by_hand(evaluated: Evaluated, measured: Path, name: str) -> None:
    state = state_of(name == "ot30")
    heldout = evaluated.heldout.kept_rows()
    x = heldout.residuals.float()
    acts, x_hat = by_hand(state, 30, x, heldout.tokens.long())
    assert (acts < 0).any()
    table = read_table(measured / "released.csv")
    table = table[(table["subject"] == f"released-{name}") & (table["layer"] == LAYER)]
    value = {(m.metric, m.at, m.min_count): m.value for m in (Measurement(**row) for row in rows_of(measured, name))}
    errors = (x - x_hat).square().sum(1)
    expected = {
        "nmse": (errors / x.square().sum(1)).mean(),
        "fvu": errors.sum() / (x - x.mean(0)).square().sum(),
        "l0": (acts != 0).sum(1).float().mean(),
        "l0_original": (acts > 0).sum(1).float().mean(),
        "dead_heldout": (acts == 0).all(0).float().mean(),
    }
    for metric, by in expected.items():
        assert value[metric, None, None] == pytest.approx(by.item(), rel=1e-4), metric
        assert table.loc[table["metric"] == metric, "value"].item() == pytest.approx(by.item(), rel=1e-4)
    assert value["l0", None, None] == pytest.approx(30) and value["l0_original", None, None] < 29.9
    # Similar to rows of the released table, not of ours.
    rows, counts = state_of()[TABLE], evaluated.train.token_counts(V)
    cosine = nn.functional.normalize(state["W_dec"].T) @ nn.functional.normalize(rows[counts >= 1]).T
    similar = (cosine.amax(1) >= 0.3).float().mean().item()
    assert value["feature_token_bias_similarity", 0.3, 1] == pytest.approx(similar)
    metrics = set(table["metric"])
    assert not {"dead_training", "dead_training_original"} & metrics
    assert {"ce_added", "simple_unigram"} <= metrics
    assert ({"last_token_detection", "token_bias_unigram_cosine"} <= metrics) == (name == "ot30")
    assert table[["seed", "lookup_scale", "encoder_scale", "start"]].isna().all(axis=None)


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    fields = Measurement.__dataclass_fields__
    return [{key: row[key] for key in fields} for row in json.loads((folder / f"{name}.json").read_text())]


def test_the_ledger_measures_them_where_the_profile_has_them(measured: Path) -> None:
    ledger = load_ledger(ROOT / "config/claims.yaml")
    baselines = pd.DataFrame(
        [{"layer": LAYER, "subject": "unigram-residuals", "metric": "last_token_detection", "value": 0.5}],
        columns=read_table(measured / "released.csv").columns,
    )
    tables = {"released": read_table(measured / "released.csv"), "baselines": baselines}
    # As they lie, those that the authors recommend are in a folder of their own.
    folder = tables["released"].assign(subject=tables["released"]["subject"].str.replace("-o", "-gpt2-layers-o"))
    sums: dict[SumsOf, DocumentSums] = {
        (LAYER, f"released-{prefix}{name}", None, None): load_sums(measured / f"{name}.safetensors")
        for name in ("ot30", "o30")
        for prefix in ("", "gpt2-layers-")
    }
    flat, in_folder = (
        measure_claims(ledger, Run(tables | {"released": released}, {}, 0.5, sums))
        for released in (tables["released"], folder)
    )
    # The replicates of features are another SAE's where its name is another.
    columns = ["id", "check", "layer", "measured", "over", "verdict"]
    pd.testing.assert_frame_equal(flat[columns], in_folder[columns])
    for present in (True, False):
        checks = measure_claims(ledger, Run(tables if present else {}, {}, 0.5, sums))
        checks = checks[checks["check"].str.contains("released")]
        assert set(checks["id"]) == {"C1", "C4", "C5", "C7", "C8", "C9"}
        if not present:
            assert set(checks["verdict"]) == {"not comparable here"}
            assert set(checks["reason"]) == {"this profile has no block 'released'"}
    by_hand = tables["released"].set_index(["subject", "metric"])["value"]
    value = flat.set_index("check")["measured"]
    assert value["NMSE, released SAEs, tokenized / baseline, k = 30"] == pytest.approx(
        by_hand["released-ot30", "nmse"] / by_hand["released-o30", "nmse"], rel=1e-4
    )
    assert value["detection with token-biases, released SAEs"] == pytest.approx(
        by_hand["released-ot30", "last_token_detection"], rel=1e-4
    )
    assert value["detection, released token-biases - unigram residuals"] == pytest.approx(
        by_hand["released-ot30", "last_token_detection"] - 0.5
    )


# --- shown -----------------------------------------------------------------------------------------------------------


def drawn(figure: str, output: Path, **tables: pd.DataFrame) -> tuple[list[list[float]], str]:
    """Where a figure draws stars, and the figure as text."""
    files = {name: ROOT / f"config/{name}.yaml" for name in ("claims", "published")}
    roles = {"baseline": "ours-none", "tokenized": "ours-learned"}
    drawing = draw(figure, Inputs(tables, files, (), (), roles, simple_threshold=0.5, bootstrap=50, seed=0))
    save_figure(drawing.figure, [output], *drawing.shown)
    lines = [line for ax in drawing.figure.axes for line in ax.lines if line.get_marker() == "*"]
    return [np.asarray(line.get_xydata())[0].tolist() for line in lines], output.read_text()


@pytest.mark.parametrize(
    ("figure", "subjects", "metrics"),
    [
        ("pareto", ["o30", "ot30"], ["nmse", "ce_added"]),
        ("reconstruction_by_layer", ["o30", "ot30"], ["nmse", "fvu", "ce_added"]),
        ("last_token_detection", ["ot30"], ["last_token_detection", "last_token_detection_any_position"]),
    ],
)
def test_figures_show_them_as_stars(
    measured: Path, tmp_path: Path, figure: str, subjects: list[str], metrics: list[str]
) -> None:
    ours = [
        {"layer": layer, "subject": f"ours-{table}", "seed": 0, "architecture": "topk", "k": 30, "table": table}
        | {"expansion": F / D, "encoder_input": "residual"}
        | {"metric": metric, "value": 0.5, "low": 0.4, "high": 0.6}
        for layer in (1, LAYER)
        for table in ("none", "learned")
        for metric in ("l0", "nmse", "fvu", "ce_added", "last_token_detection", "last_token_detection_any_position")
    ]
    alone = [
        row | {"subject": subject, "seed": None, "k": None}
        for row in ours
        for subject in ("unigram-residuals", "conditional-means")
        if row["table"] == "none"
    ]
    tables = {}
    for name, rows in (("headline", ours), ("pareto", ours), ("baselines", alone)):
        files.write_json(tmp_path / f"{name}.json", rows)
        write_table(tmp_path / f"{name}.csv", [tmp_path / f"{name}.json"])
        tables[name] = read_table(tmp_path / f"{name}.csv")

    released = read_table(measured / "released.csv")
    # Not comparable with ours: another size, another encoder.
    rows = json.loads((measured / "ot30.json").read_text())
    files.write_json(
        tmp_path / "others.json",
        [
            row | {"subject": f"released-{name}", **change}
            for name, change in (("ot30_x3", {"expansion": 3.0}), ("t8", {"encoder_input": "without_unigram"}))
            for row in rows
        ],
    )
    write_table(tmp_path / "others.csv", [tmp_path / "others.json"])
    theirs = pd.concat([released, read_table(tmp_path / "others.csv")])
    stars, text = drawn(figure, tmp_path / "with.svg", released=theirs, **tables)
    assert "released by the authors" in text
    table = released.set_index(["subject", "metric"])["value"]
    percent = {"nmse": 1, "fvu": 1}
    expected = [
        table[f"released-{subject}", metric] * percent.get(metric, 100) for metric in metrics for subject in subjects
    ]
    assert sorted(y for _, y in stars) == pytest.approx(sorted(expected))
    if figure != "pareto":
        # At the second of the two layers, though theirs is there alone.
        assert all(0.5 < x < 1.5 for x, _ in stars)

    stars, text = drawn(figure, tmp_path / "without.svg", **tables)
    assert not stars and "released by the authors" not in text


# --- the DAG ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with a profile that has three released SAEs, and the same without them."""
    folder = tmp_path_factory.mktemp("project")
    copy_project(folder)
    for name in ("ot30", "o30"):
        write(folder / "results/tiny/released", f"gpt2_resid_pre_2_{name}.pt")
    write(folder / "results/tiny/released/old", "gpt2_resid_pre_2_t8.pt")
    write(folder / "results/tiny/released/old", "gpt2_resid_pre_1_t8.pt")
    data = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    data["model"]["compatibility_mode"] = True
    data["residuals"]["layers"] = [2]
    data |= {"profile": "theirs", "released": {"folder": "results/tiny/released"}}
    (folder / "theirs.yaml").write_text(yaml.safe_dump(data))
    (folder / "ours.yaml").write_text(yaml.safe_dump(data | {"released": None}))
    return folder


def test_the_dag_imports_and_evaluates_them(project: Path) -> None:
    theirs, ours = planned(project, configfile="theirs.yaml"), planned(project, configfile="ours.yaml")
    assert (theirs.pop("import_released"), theirs.pop("evaluate_released")) == (3, 3)
    assert theirs.pop("collect") == ours.pop("collect") + 1
    assert theirs == ours


def test_their_table_needs_no_training(project: Path) -> None:
    code, output = snakemake(project, "results/theirs/tables/released.csv", configfile="theirs.yaml")
    assert code == 0, output
    assert not (project / "results/theirs/saes/layer2/topk-k4-x4-none-s0").exists()
    table = read_table(project / "results/theirs/tables/released.csv")
    assert set(table["subject"]) == {"released-ot30", "released-o30", "released-old-t8"}
    topk = table["architecture"] == "topk"
    assert table.loc[topk & (table["metric"] == "l0"), "value"].tolist() == pytest.approx([30, 30])
    assert set(table.loc[~topk, "encoder_input"]) == {"without_unigram"} and table.loc[~topk, "l1"].isna().all()
    about = json.loads((project / "results/theirs/saes/layer2/released-old-t8/config.json").read_text())
    assert about["released"]["assumed"] == ["architecture", "encoder_input"]
    assert "1 of 4 files in results/tiny/released are of layers [1]" in output
    assert (table["layer"] == 2).all() and table["seed"].isna().all()


def test_a_bad_file_stops_it_before_any_job(project: Path) -> None:
    path = write(project / "results/tiny/released", "gpt2_resid_pre_2_ot4.pt")
    truncate(path)
    code, output = snakemake(project, configfile="theirs.yaml")
    path.unlink()
    assert code != 0
    assert f"released.folder: {path.relative_to(project)}: truncated" in output
    assert "Traceback" not in output and "Execute" not in output
