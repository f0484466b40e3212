"""One SAE of one's own model and text, in one call."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tsae
from tsae.sae.exchange.repository import write_repository
from tsae.sae.sae import SAE

SETTINGS: dict[str, Any] = {
    "tokens": {"n_ctx": 32, "heldout_documents": 20, "heldout_share": 0.2},
    "training": {"batch_size": 64, "lr": 3e-3, "buffer_tokens": 4000, "history_tokens": 500},
    "evaluation": {"ce_sequences": 10, "bootstrap": 20, "detection_tokens": 100},
    "ngrams": {"common": 20, "per_length": 10},
}
SIZES: dict[str, Any] = {"k": 4, "tokens": 6000, "heldout": 1000}


def train(model: Any, texts: Any, **more: Any) -> SAE:
    return tsae.train(model, texts, settings=SETTINGS, **(SIZES | more))


@pytest.fixture(scope="module")
def texts(tiny_corpus: Path) -> list[str]:
    return tiny_corpus.read_text().splitlines()


@pytest.fixture(scope="module")
def trained(tiny_gpt2: Path, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work") / "mine"
    train(tiny_gpt2, texts, layer=1, folder=folder)
    return folder


def test_an_sae_explains_the_heldout_text(trained: Path) -> None:
    (path,) = (trained / "saes").glob("*/*")
    sae = tsae.load(path)
    x, tokens = tsae.heldout(trained)
    assert len(x) == len(tokens) > 800
    acts = sae.encode(x, tokens)
    assert (acts != 0).sum(1).max() == 4
    x_hat = sae.decode(acts, tokens)
    assert (x - x_hat).pow(2).sum() < 0.7 * (x - x.mean(0)).pow(2).sum()


def test_it_is_evaluated_like_those_of_a_profile(trained: Path) -> None:
    table = tsae.evaluate(trained)
    x, tokens = tsae.heldout(trained)
    (path,) = (trained / "saes").glob("*/*")
    sae = tsae.load(path)
    x_hat = sae(x, tokens)
    nmse = ((x - x_hat).pow(2).sum(1) / x.pow(2).sum(1)).mean()
    value = table.loc[table["metric"] == "nmse", "value"].item()
    assert value == pytest.approx(float(nmse), rel=1e-3)
    assert {"ce_added", "token_bias_unigram_cosine", "feature_token_bias_similarity"} <= set(table["metric"])


def test_it_is_shared_like_those_of_a_profile(trained: Path, tmp_path: Path) -> None:
    tsae.evaluate(trained)
    (name,) = write_repository([trained], tmp_path / "shared")
    x, tokens = tsae.heldout(trained)
    (path,) = (trained / "saes").glob("*/*")
    assert torch.equal(tsae.load(tmp_path / "shared" / name)(x, tokens), tsae.load(path)(x, tokens))


def test_what_is_there_is_not_made_again(trained: Path, tiny_gpt2: Path, texts: list[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}
    train(tiny_gpt2, texts, layer=1, folder=trained)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(ValueError, match=r"mine holds a training with other settings \(sweep\); choose another folder"):
        train(tiny_gpt2, texts, layer=1, folder=trained, k=8)
    with pytest.raises(ValueError, match=r"texts\.jsonl holds other texts"):
        train(tiny_gpt2, texts[1:], layer=1, folder=trained)


def test_the_same_seed_gives_the_same_sae_after_an_interruption(
    trained: Path, tiny_gpt2: Path, texts: list[str], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    train(tiny_gpt2, texts, layer=1, folder=other)
    for folder in ("saes", "unigrams"):
        shutil.rmtree(other / folder)
    train(tiny_gpt2, texts, layer=1, folder=other)
    (first,), (again,) = ((folder / "saes").glob("*/*/sae.safetensors") for folder in (trained, other))
    assert first.read_bytes() == again.read_bytes()


def test_a_loaded_model_and_any_iterable(tiny_gpt2: Path, texts: list[str], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2)

    def read() -> Iterator[str]:
        yield from texts

    with pytest.raises(ValueError, match="tokenizer: a loaded model needs its tokenizer"):
        train(model, read(), folder=tmp_path / "none")
    sae = train(model, read(), table="none", tokenizer=AutoTokenizer.from_pretrained(tiny_gpt2))
    assert sae.W_lookup is None
    assert sae.metadata["layer"] == model.config.num_hidden_layers // 2
    assert torch.isfinite(sae.W_dec).all()


def test_a_folder_is_for_one_loaded_model(tiny_gpt2: Path, texts: list[str], tmp_path: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_gpt2), AutoTokenizer.from_pretrained(tiny_gpt2)
    first = train(model, texts, tokenizer=tokenizer, folder=tmp_path)
    again = train(model, texts, tokenizer=tokenizer, folder=tmp_path)
    assert torch.equal(first.W_dec, again.W_dec)
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    with pytest.raises(ValueError, match="loaded-model holds another model; choose another folder"):
        train(model, texts, tokenizer=tokenizer, folder=tmp_path)


def test_a_folder_is_for_files_as_they_were(tiny_gpt2: Path, texts: list[str], tmp_path: Path) -> None:
    book, model = tmp_path / "book.txt", shutil.copytree(tiny_gpt2, tmp_path / "model")
    book.write_text("\n\n".join(texts))
    train(model, [book], folder=tmp_path / "mine")
    for path in (book, model / "config.json"):
        text = path.read_text()
        path.write_text(text + "\n")
        with pytest.raises(
            ValueError, match=rf"mine holds a training from other files \(.*{path.name} is not what it was\)"
        ):
            train(model, [book], folder=tmp_path / "mine")
        path.write_text(text)
    train(model, [book], folder=tmp_path / "mine")


def test_less_text_than_a_batch_is_told_before_the_model_runs(
    tiny_gpt2: Path, texts: list[str], tmp_path: Path
) -> None:
    settings = SETTINGS | {"training": SETTINGS["training"] | {"batch_size": 50_000}}
    few = texts[: 2 * SETTINGS["tokens"]["heldout_documents"] + 1]
    with pytest.raises(ValueError, match=r"less than a batch \(training\.batch_size: 50000\)"):
        tsae.train(
            tiny_gpt2, few, settings=settings, folder=tmp_path / "work", **(SIZES | {"tokens": 50_000, "heldout": 200})
        )
    assert not (tmp_path / "work/residuals").exists()


@pytest.mark.parametrize(
    ("model", "texts", "message"),
    [
        ("./nowhere", ["a"], r"model: there is no folder \./nowhere"),
        ("tiny", "a text", "texts: a single string; give documents as a list of strings, or files as paths"),
        ("tiny", ["a", None], "texts: document 1 is of type NoneType; give strings"),
        ("tiny", [Path("a.jsonl"), Path("b.txt")], r"texts: \.jsonl and other files together"),
        ("tiny", [Path("nowhere.txt")], r"there is no file .*nowhere\.txt"),
    ],
)
def test_a_mistake_is_told_before_any_work(
    model: str, texts: Any, message: str, tiny_gpt2: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train(tiny_gpt2 if model == "tiny" else model, texts, folder=tmp_path / "work")
    assert not (tmp_path / "work" / "model").exists()


def test_a_book_on_the_command_line(tiny_gpt2: Path, texts: list[str], tmp_path: Path) -> None:
    book, settings = tmp_path / "book.txt", tmp_path / "settings.yaml"
    book.write_text("\n\n".join(texts))
    settings.write_text(str(SETTINGS))

    def call(*words: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tsae", *map(str, words)], capture_output=True, text=True, cwd=tmp_path
        )

    made = call(
        *("train", "--model", tiny_gpt2, "--folder", "mine", "--k", 4, "--tokens", 6000, "--heldout", 1000),
        *("--settings", settings, book),
    )
    assert made.returncode == 0, made.stderr
    assert "next: tsae evaluate --folder mine" in made.stdout
    printed = call("evaluate", "--folder", "mine")
    assert printed.returncode == 0, printed.stderr
    assert "nmse" in printed.stdout and "ce_added" in printed.stdout
    refused = call("evaluate", "--folder", "elsewhere")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1 and "elsewhere has no profile.yaml" in refused.stderr
