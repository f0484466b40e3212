"""What a user is told when a stage fails: one line, unless it is a mistake of the program."""

import errno
import os
import subprocess
import sys

import pytest

from tsae.__main__ import describe


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    """An exception as it is caught."""
    try:
        raise error from cause
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("layer 9 is not in the model"), "layer 9 is not in the model"),
        (FloatingPointError("the loss is nan at step 3"), "the loss is nan at step 3"),
        (PermissionError(errno.EACCES, "Permission denied", "a.json"), "[Errno 13] Permission denied: 'a.json'"),
    ],
)
def test_the_input_and_the_disk_are_named(error: Exception, message: str) -> None:
    assert describe(raised(error)) == message


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("unable to mmap 8 bytes from file <a>: Cannot allocate memory (12)"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), "a.json"),
    ],
)
def test_memory_is_named_whoever_asked_for_it(error: Exception) -> None:
    for caught in (raised(error), raised(ValueError("the model could not be loaded"), error)):
        assert str(describe(caught)).startswith("out of memory (")


@pytest.mark.parametrize("error", [KeyError("layer"), RuntimeError("shapes differ"), SystemError("bad call")])
def test_a_mistake_of_the_program_is_not_taken_for_one_of_the_user(error: Exception) -> None:
    assert describe(raised(error)) is None


def test_an_exception_that_lost_its_reason_where_no_memory_is_left() -> None:
    code = """
import resource
from tsae.__main__ import describe
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 1_000_000, used + 1_000_000))
print(describe(SystemError("error return without exception set")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("out of memory (an allocation failed); give this job more")
