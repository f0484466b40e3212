"""Rows that are no documents: null, without the field, blank, or of another shape."""

import json
import logging
from pathlib import Path

import pytest
from fixtures.corpora import file_corpus, hub_corpus

from tsae.profile.inputs import Corpus
from tsae.text import corpus as corpus_module
from tsae.text.corpus import documents_of
from tsae.text.documents import Document, read_documents
from tsae.text.write_documents import write_documents

ODD = ['{"text": null}', '{"body": "two"}', '{"text": 2}', '{"text": ["a"]}', "[1]", "null", '"text"', "{}"]


def texts(output: Path) -> list[str]:
    return [document.text for document in read_documents(output)]


def test_odd_rows_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="tsae")
    path, output = tmp_path / "a.jsonl", tmp_path / "documents.jsonl"
    rows = [*ODD, '{"text": "one"}', "", "   ", '{"text": ""}', '{"text": " \\n\\t\\u3000"}', '{"text": "two"}']
    path.write_text("\n".join(rows) + "\n")
    write_documents(Corpus(sources=(file_corpus("jsonl", path), file_corpus("lines", path))), tmp_path, output)
    assert list(read_documents(output))[:2] == [Document("a.jsonl:9", "one"), Document("a.jsonl:14", "two")]
    messages = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert messages == [
        "corpus.sources.0: 2 documents; left out: 4 empty, 8 without text in 'text'",
        "corpus.sources.1: 12 documents; left out: 2 empty",
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"body": "a"}', '{"body": "b", "n": 1}'], r"'text' in any of 2 rows \(fields of the last: 'body', 'n'\)"),
        (['{"text": null}'] * 3, r"'text' in any of 3 rows \(fields of the last: 'text'\)"),
        (["1", "[2]"], r"'text' in any of 2 rows \(fields of the last: none, it is no object\)"),
        (['{"text": "one"}', "{"], r"a\.jsonl, line 2: not JSON \(.*\); each line is one object; correct or remove"),
    ],
)
def test_a_source_without_any_text_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message) as raised:
        list(documents_of(file_corpus("jsonl", path), tmp_path))
    assert len(str(raised.value).splitlines()) == 1


def test_a_wrong_field_is_found_without_reading_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_module, "TRIED", 10)
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "a"}\n' * 10 + "not JSON\n")
    with pytest.raises(ValueError, match="no text in the field 'text' in any of 10 rows"):
        list(documents_of(file_corpus("jsonl", path), tmp_path))
    # Nulls at the start do not mean that the field is wrong.
    path.write_text('{"text": null}\n' * 20 + '{"text": "one"}\n')
    assert [document.text for document in documents_of(file_corpus("jsonl", path), tmp_path)] == ["one"]


def test_null_rows_of_a_dataset(local_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="tsae")
    (local_dataset / "train.jsonl").unlink()
    for shard in range(3):
        rows: list[dict[str, str | None]] = [{"text": f"document {shard}.{row}"} for row in range(4)]
        rows[shard] = {"text": None}
        rows[3] = {"text": " "}
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (local_dataset / f"train-{shard:05d}-of-00003.jsonl").write_text(lines)
    output, source = tmp_path / "documents.jsonl", hub_corpus(local_dataset, documents=11)
    write_documents(Corpus(sources=(source,)), tmp_path, output)
    expected = [f"document {shard}.{row}" for shard in range(3) for row in range(3) if row != shard]
    assert texts(output) == expected
    assert "corpus.sources.0: 6 documents; left out: 2 empty, 3 without text in 'text'" in caplog.text
    # Resuming after any document gives the others, and the same counts.
    stream, n_read = documents_of(source, tmp_path), 0
    for document in stream:
        n_read += bool(document.text.strip())
        rest = documents_of(source, tmp_path, stream.position)
        assert [document.text for document in rest if document.text.strip()] == expected[n_read:]
        assert rest.position[3:] == (3, 2)


def test_only_null_rows_of_a_dataset(local_dataset: Path, tmp_path: Path) -> None:
    (local_dataset / "train.jsonl").write_text('{"text": null, "n": 1}\n' * 3)
    with pytest.raises(
        ValueError, match=r"no text in the field 'text' in any of 3 rows \(fields of the last: 'text', 'n'"
    ):
        list(documents_of(hub_corpus(local_dataset), tmp_path))


def test_counts_outlive_an_interruption(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="tsae")
    a, b, output = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "documents.jsonl"
    a.write_text('{"text": null}\n{"text": "one"}\n\n')
    b.write_text('{"text": "two"}\n{"text": null}\n{"text": "three"}\n')
    corpus = Corpus(sources=(file_corpus("jsonl", a), file_corpus("jsonl", b)))
    intact = b.read_bytes()
    # The same file at both calls, or reading would start over; so the first call fails in the second source by a lack of space.
    progress = tmp_path / ".documents.jsonl.progress.json"

    class FullError(ValueError):
        pass

    def fail_once(document: Document) -> Document:
        if document.text == "three":
            raise FullError
        return document

    stream_next = corpus_module.DocumentStream.__next__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_module.DocumentStream, "__next__", lambda self: fail_once(stream_next(self)))
        with pytest.raises(FullError):
            write_documents(corpus, tmp_path, output)
    assert json.loads(progress.read_text())["finished"] == [[3, 0, 3, 1, 1]]
    assert b.read_bytes() == intact
    write_documents(corpus, tmp_path, output)
    assert "corpus.sources.0: 1 documents; left out: 1 empty, 1 without text in 'text'" in caplog.text


def test_only_line_ends_end_lines(tmp_path: Path) -> None:
    """Unicode has more separators, which occur inside of sentences."""
    inside = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"
    path, output = tmp_path / "a.txt", tmp_path / "documents.jsonl"
    path.write_text(f"{inside}\n{inside} again\n", encoding="utf-8")
    entries = tmp_path / "b.jsonl"
    entries.write_text(json.dumps({"text": inside + " twice"}, ensure_ascii=False) + "\n", encoding="utf-8")
    corpus = Corpus(sources=(file_corpus("lines", path), file_corpus("jsonl", entries)))
    write_documents(corpus, tmp_path, output)
    assert texts(output) == [inside, f"{inside} again", f"{inside} twice"]


@pytest.mark.parametrize(
    "text", ['[\n  {"text": "one"},\n  {"text": "two"}\n]\n', '[{"text": "one"}, {"text": "two"}]', " [ {"]
)
def test_a_json_array_is_refused_with_the_way_to_convert_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(
        ValueError, match=r"a\.json, line 1: one JSON array, .* one object per line; .* `jq -c '\.\[\]' a\.json`"
    ):
        list(documents_of(file_corpus("jsonl", path), tmp_path))


@pytest.mark.parametrize("format", ["text", "lines", "jsonl"])
def test_an_empty_file_among_others(tmp_path: Path, format: str) -> None:
    folder, output = tmp_path / "texts", tmp_path / "documents.jsonl"
    folder.mkdir()
    for name, text in (("a", ""), ("b", '{"text": "one"}'), ("c", "\n")):
        (folder / name).write_text(text)
    write_documents(Corpus(sources=(file_corpus(format, folder),)), tmp_path, output)
    assert texts(output) == ["one" if format == "jsonl" else '{"text": "one"}']
