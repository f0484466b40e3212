"""The documents file: its content, and resuming after an interruption."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from fixtures.corpora import file_corpus, hub_corpus, write_shards
from huggingface_hub.utils import httpx

from tsae.profile.inputs import Corpus
from tsae.store import files
from tsae.text.documents import Document, read_catalogue, read_documents
from tsae.text.write_documents import write_documents


def test_written_documents_are_read_back_without_the_empty_ones(tmp_path: Path) -> None:
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    a.write_text("one\n  \n„zwei“\u2028 drei\n", encoding="utf-8")
    b.write_text("four\nfive")
    corpus = Corpus(
        sources=(
            file_corpus("lines", a),
            file_corpus("text", b),
        )
    )
    output = tmp_path / "out" / "documents.jsonl"
    write_documents(corpus, tmp_path, output)
    assert list(read_documents(output)) == [
        Document("a.txt:1", "one"),
        Document("a.txt:3", "„zwei“\u2028 drei"),
        Document("b.txt", "four\nfive", source=1),
    ]
    first = json.loads(output.read_text(encoding="utf-8").split("\n")[0])
    assert first == {"title": "a.txt:1", "text": "one", "source": 0}


def test_documents_are_found_again_by_line(tmp_path: Path) -> None:
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    a.write_text("one\n\u201ezwei\u201c\u2028 drei\none\n", encoding="utf-8")
    b.write_text("one\ntwo\n")
    output = tmp_path / "documents.jsonl"
    write_documents(Corpus(sources=(file_corpus("lines", a), file_corpus("lines", b))), tmp_path, output)
    catalogue, documents = read_catalogue(output), list(read_documents(output))
    assert list(catalogue.read([4, 1, 1, 0])) == [documents[line] for line in (4, 1, 1, 0)]
    assert catalogue.sources.tolist() == [0, 0, 0, 1, 1]
    assert catalogue.n_characters.tolist() == [len(document.text) for document in documents] == [3, 12, 3, 3, 3]
    assert catalogue.is_first.tolist() == [True, True, False, False, True]
    output.write_text("-" + output.read_text())
    with pytest.raises(ValueError, match=r"documents\.jsonl, line 2: not a document"):
        list(catalogue.read([1]))


def test_documents_without_any_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n \n")
    corpus = Corpus(sources=(file_corpus("lines", path),))
    with pytest.raises(ValueError, match=r"corpus\.sources: every document is empty"):
        write_documents(corpus, tmp_path, tmp_path / "documents.jsonl")
    assert not (tmp_path / "documents.jsonl").exists()


def test_a_failing_source_leaves_the_old_documents(tmp_path: Path) -> None:
    output = tmp_path / "documents.jsonl"
    output.write_text("old")
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\nnot JSON\n')
    with pytest.raises(ValueError, match="line 2"):
        write_documents(Corpus(sources=(file_corpus("jsonl", path),)), tmp_path, output)
    assert output.read_text() == "old"


def test_reading_a_file_that_holds_no_documents(tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl"
    path.write_text('{"title": "a", "text": "b"}\n{"text": "b"}\n')
    with pytest.raises(ValueError, match="line 2: not a document"):
        list(read_documents(path))


@pytest.fixture
def corpus(local_dataset: Path, tmp_path: Path) -> Corpus:
    """Local files around a dataset of four shards."""
    write_shards(local_dataset)
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    sources = (
        file_corpus("lines", tmp_path / "a.txt"),
        hub_corpus(local_dataset, documents=100),
        file_corpus("text", tmp_path / "a.txt"),
    )
    return Corpus(sources=sources)


def texts(output: Path) -> list[str]:
    return [document.text for document in read_documents(output)]


def left_in(folder: Path) -> set[str]:
    """Files except the records of their sha256."""
    return {path.name for path in folder.iterdir() if path.suffix != ".sha256" or not (folder / path.stem[1:]).exists()}


WHOLE = ["one", "two", *(f"document {number}" for number in range(100)), "one\n\ntwo\n"]


def test_a_retry_resumes_where_the_stream_broke(local_dataset: Path, corpus: Corpus, tmp_path: Path) -> None:
    output = tmp_path / "out" / "documents.jsonl"
    write_documents(corpus, tmp_path, tmp_path / "at_once.jsonl")
    assert texts(tmp_path / "at_once.jsonl") == WHOLE
    shards = sorted(local_dataset.iterdir())
    intact = {shard: shard.read_bytes() for shard in shards}
    shards[2].write_bytes(intact[shards[2]][:-40])
    broken = (
        rf"dataset '{local_dataset}' stopped after 60 of 100 documents \(.*\); these are kept; run again to continue"
    )
    for _ in range(2):
        with pytest.raises(ValueError, match=broken):
            write_documents(corpus, tmp_path, output)
        assert not output.exists()
    # If a shard were read twice, this one would fail.
    shards[2].write_bytes(intact[shards[2]])
    shards[1].write_bytes(b"not what it was")
    write_documents(corpus, tmp_path, output)
    assert output.read_bytes() == (tmp_path / "at_once.jsonl").read_bytes()
    assert left_in(output.parent) == {output.name}


def test_a_connection_that_breaks_off_again_and_again(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = datasets.IterableDataset.__iter__

    def break_off(self: datasets.IterableDataset) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(read(self)):
            if number == 17:
                raise httpx.ReadError("")
            yield row

    monkeypatch.setattr(datasets.IterableDataset, "__iter__", break_off)
    output = tmp_path / "documents.jsonl"
    # The rest of a shard of 30 documents, and 17 of the next.
    for n_read in (17, 47, 77):
        with pytest.raises(ValueError, match=rf"stopped after {n_read} of 100 documents \(ReadError\); these are kept"):
            write_documents(corpus, tmp_path, output)
    write_documents(corpus, tmp_path, output)
    assert texts(output) == WHOLE


def test_other_settings_start_afresh(local_dataset: Path, corpus: Corpus, tmp_path: Path) -> None:
    output = tmp_path / "out" / "documents.jsonl"
    shards = sorted(local_dataset.iterdir())
    intact = shards[2].read_bytes()
    shards[2].write_bytes(intact[:-40])
    with pytest.raises(ValueError, match="stopped after 60 of 100"):
        write_documents(corpus, tmp_path, output)
    shards[2].write_bytes(intact)
    # The same settings, but another text.
    (tmp_path / "a.txt").write_text("one\nthree\n")
    write_documents(corpus, tmp_path, output)
    assert texts(output) == ["one", "three", *WHOLE[2:-1], "one\nthree\n"]
    assert left_in(output.parent) == {output.name}
    # A record without the documents that it counts is ignored.
    shards[2].write_bytes(intact[:-40])
    with pytest.raises(ValueError, match="stopped after 60 of 100"):
        write_documents(corpus, tmp_path, output)
    shards[2].write_bytes(intact)
    partial = tmp_path / "out/.documents.jsonl.partial"
    partial.write_bytes(partial.read_bytes()[:-1])
    write_documents(corpus, tmp_path, output)
    assert texts(output) == ["one", "three", *WHOLE[2:-1], "one\nthree\n"]


def test_damaged_documents_are_read_again(
    local_dataset: Path,
    corpus: Corpus,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    output, shard = tmp_path / "out" / "documents.jsonl", sorted(local_dataset.iterdir())[2]
    intact = shard.read_bytes()
    shard.write_bytes(intact[:-40])
    with pytest.raises(ValueError, match="stopped after 60 of 100"):
        write_documents(corpus, tmp_path, output)
    shard.write_bytes(intact)
    partial = tmp_path / "out/.documents.jsonl.partial"
    partial.write_bytes(partial.read_bytes().replace(b"document 5", b"document 4"))
    write_documents(corpus, tmp_path, output)
    assert texts(output) == WHOLE
    assert "starts over" in caplog.text and ".documents.jsonl.partial: damaged" in caplog.text
    files.check(output)


KILLED = """
import os, signal, sys
from pathlib import Path
from tsae.profile.config import Corpus
from tsae.text import write_documents as stage

class Killed(stage._Partial):
    def write(self, document):
        super().write(document)
        if self.n_written == 48:
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

stage._Partial, stage.RECORDED_EVERY = Killed, 10
stage.write_documents(Corpus.model_validate_json(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
"""


def test_a_killed_job_loses_what_was_not_recorded(corpus: Corpus, tmp_path: Path) -> None:
    output = tmp_path / "out" / "documents.jsonl"
    command = [sys.executable, "-c", KILLED, corpus.model_dump_json(), str(tmp_path), str(output)]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert not output.exists()
    progress = json.loads((tmp_path / "out/.documents.jsonl.progress.json").read_text())
    assert (progress["documents"], progress["source"], progress["position"]) == (42, 1, [40, 1, 10, 0, 0])
    assert progress["finished"] == [[3, 0, 3, 0, 1]]
    n_lines = (tmp_path / "out/.documents.jsonl.partial").read_bytes().count(b"\n")
    assert n_lines == 48
    write_documents(corpus, tmp_path, output)
    assert texts(output) == WHOLE
    assert left_in(output.parent) == {output.name}
