"""Files and locks survive kills, full disks and damaged records."""

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from fixtures.faults import Fault, Run, flip_a_bit, stage_of, words

from tsae.store import files
from tsae.store import verify as artefacts
from tsae.store.clocks import lower_times
from tsae.store.locks import hold
from tsae.store.tensors import load_metadata, load_tensors, save_tensors

HOLD = """
import sys, time
from pathlib import Path
from tsae.store.locks import hold
results, *to_fetch = map(Path, sys.argv[1:])
hold(results, to_fetch)
(results / "held").touch()
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def holding(results: Path, *to_fetch: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that locks a profile."""
    command = [sys.executable, "-c", HOLD, str(results), *map(str, to_fetch)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    with holding(tmp_path) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"\.lock: process {first.pid} on .* is running this profile here; wait"):
            hold(tmp_path)
    hold(tmp_path)


def test_two_profiles_do_not_fetch_one_file_at_once(tmp_path: Path) -> None:
    file, other = tmp_path / "sources/model.gguf", tmp_path / "sources/corpus.bz2"
    with holding(tmp_path / "one", file) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        hold(tmp_path / "two", [other])
        with pytest.raises(ValueError, match=rf"/\.model\.gguf\.lock: process {first.pid} on .* fetches this file"):
            hold(tmp_path / "three", [file])


def test_a_run_waits_for_what_a_killed_one_left_at_work(tmp_path: Path) -> None:
    # The shell and all that it starts hold the lock: here `sleep`, after the shell is killed.
    script = f"exec 9>> {tmp_path}/.jobs; {sys.executable} -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_SH)'; sleep 60 & echo $!; wait"
    shell = subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, text=True)
    assert shell.stdout is not None
    orphan = int(shell.stdout.readline())
    shell.kill()
    shell.wait()
    try:
        with holding(tmp_path) as run:
            assert run.stdout is not None
            assert run.stdout.readline().endswith("jobs of a run that was killed are still at work; waiting for them\n")
            time.sleep(0.5)
            assert not (tmp_path / "held").exists()
            os.kill(orphan, signal.SIGKILL)
            assert run.stdout.readline() == "held\n"
            # The run's own jobs can take their lock.
            with (tmp_path / ".jobs").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    finally:
        shell.stdout.close()


@pytest.mark.faults
def test_what_an_orphaned_job_writes_does_not_outlive_changed_settings(tmp_path: Path, faults: list[Fault]) -> None:
    run = Run(tmp_path)
    target = "results/smoke/tokens/train.safetensors"
    command = ("snakemake", "--configfile", run.configfile, "--cores", "1", "--", target)
    first = run.start(*command, output=subprocess.DEVNULL)
    while not (
        jobs := [job for job in psutil.Process(first.pid).children(recursive=True) if stage_of(job) == "tokenize"]
    ):
        assert first.poll() is None
        time.sleep(0.05)
    jobs[0].suspend()
    for each in [*psutil.Process(first.pid).children(recursive=True), psutil.Process(first.pid)]:
        if any(word.endswith("snakemake") for word in words(each)[:3]):
            each.kill()
    first.wait()
    configfile = run.folder / run.configfile
    configfile.write_text(configfile.read_text().replace("tokens:\n", "tokens:\n  seed: 7\n", 1))
    with (tmp_path / "said").open("w") as said:
        second = run.start(*command, output=said)
        while "waiting for them" not in (tmp_path / "said").read_text():
            assert second.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.1)
        assert jobs[0].is_running()
        jobs[0].resume()
        assert second.wait() == 0
    assert load_metadata(run.folder / target)["seed"] == 7
    faults.append(
        Fault(
            "kill -9 of Snakemake alone, and run again with other settings while its job still runs", 1, 1, "none", None
        )
    )


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_no_reason_to_stop(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    hold(tmp_path)
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}: no locks on this disk ({os.strerror(code)}); make sure that only one run writes there"
    ]


def test_a_lock_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()  # root may write to read-only files
    with pytest.raises(ValueError, match=rf"^{tmp_path}/\.lock: cannot be written \(.*\); a run must be able to$"):
        hold(tmp_path)


def test_a_file_is_what_was_recorded(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "what was written")
    assert files.read_text(path) == "what was written"
    flip_a_bit(path)
    with pytest.raises(ValueError, match=r"a\.txt: damaged, its sha256"):
        files.read_text(path)
    flip_a_bit(path)
    files.check(path)
    path.write_text(path.read_text()[:-1])
    with pytest.raises(ValueError, match=r"a\.txt: damaged"):
        files.check(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        files.read_text(path)


def test_a_file_is_compared_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, note = tmp_path / "a.txt", tmp_path / ".a.txt.verified"
    files.write_text(path, "what was written")
    files.check_once(path)
    assert not note.exists()  # it may yet change without a change of its times
    monkeypatch.setattr(files, "SETTLED", -1)
    files.check_once(path)
    whole = note.read_text()
    before = path.stat()
    flip_a_bit(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    with pytest.raises(files.DamagedError, match=r"a\.txt: damaged"):
        files.check_once(path)
    assert note.read_text() == whole
    # What a disk does behind the file system's back is found by those who read all bytes.
    note.write_text(json.dumps(json.loads(whole) | {"ctime_ns": path.stat().st_ctime_ns}))
    files.check_once(path)
    with pytest.raises(files.DamagedError):
        files.check(path)
    assert artefacts.verify([tmp_path], {}).damaged == [path]
    # A new file, a damaged note, and none.
    files.write_text(path, "what is written")
    files.check_once(path)
    assert note.read_text() != whole
    for content in ("", "{", "[]", "\0"):
        note.write_text(content)
        files.check_once(path)
        assert json.loads(note.read_text())["sha256"] == [files.sha256(path)]
    files.remove(path)
    assert list(tmp_path.iterdir()) == []
    files.check_once(path)
    path.write_text("of another program")
    files.check_once(path)
    assert not note.exists()


def test_processes_that_compare_a_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.arange(1 << 20)})
    code = "import sys, pathlib; from tsae.store import files; files.SETTLED = -1; files.check_once(pathlib.Path(sys.argv[1]))"
    processes = [subprocess.Popen([sys.executable, "-c", code, path]) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        ".a.safetensors.sha256",
        ".a.safetensors.verified",
        "a.safetensors",
    ]
    assert json.loads(files.verified_of(path).read_text())["sha256"] == [files.sha256(path)]


@pytest.mark.parametrize("content", ["", "\n", "\0" * 80, "{digest}", "{half}  a.txt\n"])
def test_only_without_a_record_a_file_passes_unread(content: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "whole")
    digest = files.sha256(path)
    files.record_of(path).write_text(content.format(digest=digest, half=digest[:32]))
    with pytest.raises(ValueError, match=r"a\.txt: its record \.a\.txt\.sha256 is damaged"):
        files.check(path)
    files.record_of(path).unlink()
    files.check(path)
    files.write_text(path, "whole")
    files.record_of(path).write_text("")
    files.write_text(path, "written over a damaged record")
    assert files.read_text(path) == "written over a damaged record"


# Ends the process at a rename: of the record, of the file, or of the record again.
KILLED = """
import os, sys
from pathlib import Path
from tsae.store import files
from tsae.store import verify as artefacts

rename, calls = os.replace, []

def replace(*paths):
    calls.append(paths)
    if len(calls) == int(sys.argv[2]) and sys.argv[3] == "before":
        os._exit(9)
    rename(*paths)
    if len(calls) == int(sys.argv[2]):
        os._exit(9)

os.replace = replace
files.write_text(Path(sys.argv[1]), "new")
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_kill_while_a_file_is_replaced_loses_none(call: int, when: str, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    files.write_text(path, "old")
    assert subprocess.run([sys.executable, "-c", KILLED, path, str(call), when]).returncode == 9
    assert files.read_text(path) == ("old" if call == 1 or (call, when) == (2, "before") else "new")
    flip_a_bit(path)
    with pytest.raises(ValueError, match="damaged"):
        files.check(path)
    flip_a_bit(path)
    files.write_text(path, "newest")
    assert files.read_text(path) == "newest"
    assert sorted(each.name for each in tmp_path.iterdir()) == [".state.json.sha256", "state.json"]
    subprocess.run(["sha256sum", "--check", "--strict", ".state.json.sha256"], cwd=tmp_path, check=True)


@pytest.mark.parametrize(("call", "when"), [(1, "before"), (1, "after"), (2, "before")])
def test_a_kill_while_a_file_is_first_written_leaves_none(call: int, when: str, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    assert subprocess.run([sys.executable, "-c", KILLED, path, str(call), when]).returncode == 9
    assert not path.exists()
    # Another file under that name does not match the record.
    if files.record_of(path).exists():
        path.write_text("by hand")
        with pytest.raises(ValueError, match="damaged"):
            files.check(path)


def test_an_error_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(ZeroDivisionError), files.replacing(path) as temporary:
        temporary.write_text("ne")
        raise ZeroDivisionError
    assert files.read_text(path) == "old"
    assert {each.name for each in tmp_path.iterdir()} == {"a.txt", ".a.txt.sha256"}


def test_what_killed_processes_left_is_removed_and_what_others_write_is_not(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = tmp_path / f".a.txt.{files.HOST}-{ended.pid}.tmp"
    folder = tmp_path / f".model.{files.HOST}-{ended.pid}.tmp"
    kept = [tmp_path / f".a.txt.{name}.tmp" for name in (f"{files.HOST}-{os.getppid()}", f"elsewhere-{ended.pid}")]
    folder.mkdir()
    for path in (left, *kept, folder / "part"):
        path.write_text("")
    files.write_text(tmp_path / "a.txt", "whole")
    files.temporary_of(tmp_path / "model")
    assert not left.exists() and not folder.exists()
    assert all(path.exists() for path in kept)


def test_times_in_the_future_end_now_in_their_order_and_others_stay(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    now = time.time()
    for name, then in (("a/old", now - 500), ("a/new", now + 500), ("newer", now + 900), ("as new", now + 900)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (then, then))
    (tmp_path / "a/nowhere").symlink_to(tmp_path / "missing")
    lower_times([tmp_path, tmp_path / "missing"])
    old, new, newer, as_new = ((tmp_path / name).stat().st_mtime for name in ("a/old", "a/new", "newer", "as new"))
    assert old == pytest.approx(now - 500)
    assert now - 1 < new < newer == as_new <= time.time()


def test_tensors_are_recorded_like_text(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.arange(8)}, {"step": 3})
    assert load_metadata(path) == {"step": 3}
    flip_a_bit(path)
    with pytest.raises(ValueError, match=r"a\.safetensors: damaged"):
        load_tensors(path)
    assert re.fullmatch(r"[0-9a-f]{64}  a\.safetensors\n", files.record_of(path).read_text())
