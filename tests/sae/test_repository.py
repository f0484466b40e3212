import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fixtures.saes import SCALE, TOKENS, F, X, make_metadata, make_sae
from fixtures.shared import BASELINE, RATES, TOKENIZED, change_config, header_and_text, write_results

from tsae.sae.checkpoint import load, save
from tsae.sae.exchange.hub import pull, push
from tsae.sae.exchange.repository import write_repository
from tsae.sae.exchange.saelens import export_saelens
from tsae.store.files import record
from tsae.store.tensors import load_tensors


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_results(tmp_path / "results/p")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_repository_holds_every_sae_twice_and_what_was_measured(results: Path, tmp_path: Path) -> None:
    assert push([results], folder=tmp_path / "out") == str(tmp_path / "out")
    ours = {"sae.safetensors", "config.json", "history.csv", "metrics.json", "sparsity.safetensors"}
    for name, more in ((TOKENIZED, {"token_biases.safetensors"}), (BASELINE, set())):
        folder = tmp_path / "out" / name
        files = ours | more | {"cfg.json", "sae_weights.safetensors"}
        assert {path.name for path in folder.iterdir()} == files | {f".{file}.sha256" for file in files}
        for file in files:
            digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
            assert (folder / f".{file}.sha256").read_text() == f"{digest}  {file}\n"
        for file in ("sae.safetensors", "config.json", "history.csv"):
            assert (folder / file).read_bytes() == (results / "saes" / name / file).read_bytes()
        assert (folder / "metrics.json").read_bytes() == (results / f"metrics/{name}.json").read_bytes()
        export_saelens(results / "saes" / name, tmp_path / "exported" / name)
        assert contents(tmp_path / "exported" / name).items() <= contents(folder).items()
        sparsity = load_tensors(folder / "sparsity.safetensors")["sparsity"]
        np.testing.assert_allclose(10.0 ** sparsity.double().numpy(), RATES + 1e-10, rtol=1e-5)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", "layer7", "layer12"}


def test_the_same_saes_give_the_same_bytes(results: Path, tmp_path: Path) -> None:
    saes = [results / "saes" / name for name in (TOKENIZED, BASELINE)]
    write_repository(saes, tmp_path / "a", "me/saes", license="mit")
    write_repository([results], tmp_path / "b", "me/saes", license="mit")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_the_card_says_what_was_measured(results: Path, tmp_path: Path) -> None:
    write_repository([results], tmp_path / "out", "me/saes", license="mit")
    header, text = header_and_text((tmp_path / "out/README.md").read_text())
    assert yaml.safe_load(header) == {
        "library_name": "tsae",
        "tags": ["sparse-autoencoder", "saelens", "tokenized-sae"],
        "base_model": "someone/a-model",
        "license": "mit",
    }
    (row,) = [line for line in text.splitlines() if line.startswith(f"| `{TOKENIZED}`")]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        f"`{TOKENIZED}`", "12", "`blocks.12.hook_resid_pre`", "yes", "1 500 000", "4 [4, 4]", "0.246 [0.242, 0.252]",
        "0.309", "-", "0.0667 [0.01, 0.3]", "yes",
    ]  # fmt: skip
    # Layers in order of their numbers.
    assert text.index(f"| `{BASELINE}`") < text.index(f"| `{TOKENIZED}`")
    assert "- NMSE: mean over tokens of |x - x_hat|^2 / |x|^2" in text
    assert "sequences of 128 tokens that begin with BOS, whose own residual is left out" in text
    assert f'pull("me/saes/{BASELINE}")' in text and f'from_pretrained("me/saes", "{TOKENIZED}")' in text


def test_a_card_leaves_out_what_is_unknown(results: Path, tmp_path: Path) -> None:
    sae = results / "saes" / BASELINE
    change_config(sae, residuals={}, point=make_metadata("topk without relu")["point"] | {"table": "none"})
    write_repository([sae], tmp_path / "out")
    header, text = header_and_text((tmp_path / "out/README.md").read_text())
    assert yaml.safe_load(header) == {"library_name": "tsae", "tags": ["sparse-autoencoder"]}
    assert "USER/NAME" in text and "sae_lens" not in text
    assert not (tmp_path / "out" / BASELINE / "cfg.json").exists()
    write_repository([sae], tmp_path / "named", base_model="someone/other")
    assert "base_model: someone/other" in (tmp_path / "named/README.md").read_text()


def test_the_snippet_of_the_card_runs(results: Path, tmp_path: Path) -> None:
    push([results / "saes" / TOKENIZED], folder=tmp_path / "out")
    snippet = (tmp_path / "out/README.md").read_text().split("```python\n")[1].split("```")[0]
    snippet = snippet.replace(f"USER/NAME/{TOKENIZED}", str(tmp_path / "out" / TOKENIZED))
    found = {"x": X * SCALE, "tokens": TOKENS}
    exec(snippet, found)
    torch.testing.assert_close(found["x_hat"], load(results / "saes" / TOKENIZED)(X * SCALE, TOKENS))


def test_a_local_folder_is_pulled(results: Path, tmp_path: Path) -> None:
    push([results], folder=tmp_path / "out")
    sae = load(results / "saes" / TOKENIZED)
    there = pull(str(tmp_path / "out" / TOKENIZED))
    assert there == str(tmp_path / "out" / TOKENIZED)
    copy = pull(there, tmp_path / "copy")
    for folder in (there, copy):
        assert torch.equal(load(folder)(X, TOKENS), sae(X, TOKENS))
    assert "cfg.json" not in contents(tmp_path / "copy") and "history.csv" in contents(tmp_path / "copy")
    with pytest.raises(ValueError, match=rf"out: 2 SAEs; add one of {TOKENIZED}, {BASELINE}$"):
        pull(str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"copy: not empty; give --overwrite"):
        pull(there, tmp_path / "copy")
    (tmp_path / "copy/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"copy: holds notes\.txt, which `pull` does not write"):
        pull(there, tmp_path / "copy", overwrite=True)
    (tmp_path / "copy/notes.txt").unlink()
    (tmp_path / "copy/config.json").write_text("{}")
    pull(there, tmp_path / "copy", overwrite=True)
    assert load(tmp_path / "copy").metadata == sae.metadata
    shutil.rmtree(tmp_path / "out" / BASELINE)
    assert pull(str(tmp_path / "out")) == there


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\xff"), r"sae\.safetensors: damaged"),
        (Path.unlink, r"sae\.safetensors: no such file"),
        (lambda path: path.with_name(f".{path.name}.sha256").unlink(), "cannot be verified"),
        (lambda path: path.with_name(f".{path.name}.sha256").write_text("x"), r"sae\.safetensors: damaged"),
    ],
)
def test_a_damaged_file_is_not_pulled(
    results: Path, tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    push([results / "saes" / TOKENIZED], folder=tmp_path / "out")
    change(tmp_path / "out" / TOKENIZED / "sae.safetensors")
    with pytest.raises(ValueError, match=message) as error:
        pull(str(tmp_path / "out"), tmp_path / "copy")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "copy").exists()


def truncate(results: Path) -> None:
    path = results / "saes" / TOKENIZED / "sae.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def shorten(results: Path) -> None:
    path = results / "saes" / TOKENIZED
    sae = make_sae()
    sae.W_enc, sae.W_dec, sae.b_enc = (torch.nn.Parameter(part[:-1]) for part in (sae.W_enc, sae.W_dec, sae.b_enc))
    save(path, sae, make_metadata() | {"layer": 12, "hook_point": "h"}, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda results: (results / "saes" / TOKENIZED / "config.json").unlink(), "not a finished SAE"),
        (lambda results: (results / f"metrics/{TOKENIZED}.json").unlink(), r"not evaluated, .*json is missing"),
        (lambda results: (results / f"features/{TOKENIZED}.parquet").unlink(), r"not evaluated, .*parquet is missing"),
        (lambda results: change_config(results / "saes" / TOKENIZED, failed={"step": 3}), "training failed at step 3"),
        (truncate, r"sae\.safetensors: damaged"),
        (shorten, rf"{F} features, and the SAE has {F - 1}; evaluate it again"),
    ],
)
def test_what_cannot_be_shared_leaves_nothing(
    results: Path, tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    change(results)
    with pytest.raises(ValueError, match=message) as error:
        push([results], folder=tmp_path / "out")
    assert "\n" not in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"results"}


def test_a_folder_is_replaced_only_if_asked_and_only_if_it_is_ours(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    push([results], folder=out)
    before = contents(out)
    with pytest.raises(ValueError, match="out: not empty; give --overwrite to replace it"):
        push([results], folder=out)
    assert contents(out) == before
    push([results / "saes" / BASELINE], folder=out, overwrite=True)
    assert {path.name for path in out.iterdir()} == {"README.md", "layer7"}
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"holds thesis\.tex, which `push` does not write; name another folder"):
        push([results], folder=out, overwrite=True)
    assert (out / "thesis.tex").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"results", "out"}


def test_what_is_not_named_right_is_refused(results: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="say where to, with --repo USER/NAME or --folder FOLDER"):
        push([results])
    with pytest.raises(ValueError, match="no SAE to share"):
        push([], folder=tmp_path / "out")
    shutil.copytree(results, tmp_path / "results/q")
    with pytest.raises(ValueError, match=f"has the same name, {TOKENIZED}; share one of them"):
        push([results, tmp_path / "results/q/saes" / TOKENIZED], folder=tmp_path / "out")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(results / "saes" / TOKENIZED, elsewhere)
    record(elsewhere / "config.json")
    with pytest.raises(ValueError, match="elsewhere: not the folder of an SAE in a profile's results"):
        push([elsewhere], folder=tmp_path / "out")
