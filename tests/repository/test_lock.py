"""What is installed: pinned whole, and nothing that does not match its hash."""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from fixtures.locks import named
from licences import ENVS, ROOT, Pin, read_pins
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKS = sorted(path.name for path in ENVS.glob("*.lock"))
CUDA = ("cuda-", "nvidia-", "triton")


def pins(name: str) -> dict[str, Pin]:
    """Lines of a lock that this platform and Python install, by name."""
    return {pin.name: pin for pin in read_pins(ENVS / name) if pin.marker is None or pin.marker.evaluate()}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_has_a_version_and_hashes(lock: str) -> None:
    lines = read_pins(ENVS / lock)
    assert lines
    for pin in lines:
        assert pin.hashes, pin.name
        for text in pin.hashes:
            kind, _, digest = text.partition(":")
            assert kind == "sha256", pin.name
            assert len(digest) == 64 and int(digest, 16), pin.name


def test_there_is_a_lock_of_everything_that_is_listed() -> None:
    assert LOCKS == ["bench.lock", "kubernetes.lock", "lab.lock", "requirements.lock", "slurm.lock"]
    for name in ("bench", "kubernetes", "slurm"):
        listed = {(pin.name, pin.version) for pin in read_pins(ENVS / f"{name}.txt")}
        assert listed == {(pin.name, pin.version) for pin in read_pins(ENVS / f"{name}.lock")}, "run `make lock`"


def test_the_lock_pins_what_the_project_names() -> None:
    locked = pins("requirements.lock") | pins("torch.txt")
    for requirement in named():
        pin = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin.version), f"{requirement}, locked: {pin.version}; run `make lock`"


def test_the_lock_pins_what_its_packages_need() -> None:
    locked = pins("requirements.lock") | pins("torch.txt")
    for name in locked:
        for text in metadata.requires(name) or ():
            requirement = Requirement(text)
            needed = canonicalize_name(requirement.name)
            if (requirement.marker and not requirement.marker.evaluate({"extra": ""})) or needed.startswith(CUDA):
                continue
            assert requirement.specifier.contains(locked[needed].version), f"{name} requires {requirement}"


def test_jupyterlab_is_locked_beside_everything_else() -> None:
    lab, rest = pins("lab.lock"), pins("requirements.lock")
    assert "jupyterlab" in lab
    assert not lab.keys() & rest.keys()


def test_torch_alone_has_no_hash() -> None:
    (torch,) = read_pins(ENVS / "torch.txt")
    assert torch.name == "torch"
    assert f"torch=={torch.version}" in [str(requirement) for requirement in named()]
    assert not [lock for lock in LOCKS if "torch" in pins(lock)]


def test_this_environment_is_the_locked_one() -> None:
    for pin in pins("requirements.lock").values():
        assert metadata.version(pin.name) == pin.version, f"{pin.name}: run `make env`"
    assert metadata.version("torch").partition("+")[0] == pins("torch.txt")["torch"].version


def test_all_ways_to_install_are_one() -> None:
    for path in ("Makefile", "envs/Dockerfile", "envs/tsae.def", "envs/environment.yaml"):
        text = (ROOT / path).read_text()
        assert "install.sh" in text, path
        for line in text.splitlines():
            if "pip install" in line:
                assert "--require-hashes" in line or "--no-deps" in line, f"{path}: {line.strip()}"


def write_wheel(folder: Path, name: str, version: str) -> str:
    """A wheel of one empty module; its sha256."""
    info = f"{name}-{version}.dist-info"
    members = {
        f"{name}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip('=')},{len(text)}"
        for path, text in members.items()
    ]
    members[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""])
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in members.items():
            archive.writestr(path, text)
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def install(folder: Path, lock: str) -> subprocess.CompletedProcess[str]:
    """What envs/install.sh does with a lock when the package index is a folder, and the environment another one."""
    envs = folder / "envs"
    envs.mkdir()
    shutil.copy2(ENVS / "install.sh", envs)
    (envs / "torch.txt").write_text("torch==1.0\n")
    (envs / "requirements.lock").write_text(lock)
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_TARGET": str(folder / "installed")}
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return subprocess.run(
        [envs / "install.sh", sys.executable],
        env=outside | index | {"PIP_CONFIG_FILE": os.devnull},
        text=True,
        capture_output=True,
    )


def test_what_matches_its_hash_is_installed(tmp_path: Path) -> None:
    write_wheel(tmp_path, "torch", "1.0")
    sha256 = write_wheel(tmp_path, "tiny", "2.0")
    run = install(tmp_path, f"tiny==2.0 \\\n    --hash=sha256:{sha256}\n    # via tests\n")
    assert run.returncode == 0, run.stderr
    assert {path.name for path in (tmp_path / "installed").glob("*.py")} == {"tiny.py", "torch.py"}


@pytest.mark.parametrize(
    ("hashes", "message"),
    [(f" --hash=sha256:{'0' * 64}", "DO NOT MATCH THE HASHES"), ("", "Hashes are required")],
    ids=["wrong", "none"],
)
def test_what_does_not_match_its_hash_is_refused(tmp_path: Path, hashes: str, message: str) -> None:
    write_wheel(tmp_path, "torch", "1.0")
    write_wheel(tmp_path, "tiny", "2.0")
    run = install(tmp_path, f"tiny==2.0{hashes}\n")
    assert run.returncode != 0
    assert message in run.stderr
    assert "tiny==2.0" in run.stderr
    assert not (tmp_path / "installed/tiny.py").exists()


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A project without its environment, whose setting up says when it begins and ends."""
    for path in ("Makefile", "pyproject.toml", "envs/requirements.lock", "envs/torch.txt"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    # In place of pip's minutes; the Python that it leaves takes everything for installed.
    install = tmp_path / "envs/install.sh"
    install.write_text(f"#!/bin/sh\necho begins >> log; sleep 2; echo ends >> log; ln -sf {shutil.which('true')} $1\n")
    install.chmod(0o755)
    return tmp_path


def test_a_second_make_waits_for_the_environment_that_a_first_one_makes(bare: Path) -> None:
    runs = [subprocess.Popen(["make", "env", f"PYTHON={sys.executable}"], cwd=bare) for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    assert (bare / "log").read_text() == "begins\nends\n"
    assert (bare / ".venv/ready").exists()


def test_an_environment_is_made_on_a_disk_without_locks(bare: Path) -> None:
    python = bare / "python"
    python.write_text(f'#!/bin/sh\ncase "$2" in *flock*) exit 1;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    subprocess.run(["make", "env", f"PYTHON={python}"], cwd=bare, check=True)
    assert (bare / ".venv/ready").exists()
