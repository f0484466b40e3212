"""A SLURM cluster of one node, this machine, in a folder of its own: `with one_node_cluster(folder) as environment`.

`python tests/slurm/cluster.py` installs SLURM where it is missing and can be installed.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from getpass import getuser
from pathlib import Path

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client")
START_S = 30
CONFIGURATION = """\
ClusterName=tsae
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MinJobAge=86400
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory_mb} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Programs of SLURM that this machine does not have."""
    return [program for program in PROGRAMS if shutil.which(program, path=search_path()) is None]


def search_path() -> str:
    """PATH, with the folders of system programs, which not every user has in it."""
    return os.pathsep.join([os.environ["PATH"], "/usr/local/sbin", "/usr/sbin", "/sbin"])


def install() -> None:
    """Install SLURM from the distribution's packages.

    Raises:
        ValueError: it cannot be installed from here.
    """
    needed = f"a SLURM to test with is missing ({', '.join(missing())})"
    packages = " ".join(PACKAGES)
    if shutil.which("apt-get") is None:
        raise ValueError(f"{needed}; install slurmctld, slurmd, SLURM's client commands and munge")
    if os.getuid() != 0:
        raise ValueError(f"{needed}; install it: sudo apt-get install {packages}")
    print(f"Installing {packages}", flush=True)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-qq", "--yes", "--no-install-recommends", *PACKAGES],
    ):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise ValueError(f"{needed}, and `{' '.join(command)}` failed:\n{done.stdout}{done.stderr}")


@contextmanager
def one_node_cluster(folder: Path, cpus: int, memory_mb: int) -> Iterator[dict[str, str]]:
    """Run munged, slurmctld and slurmd as this user, with all their files in `folder`; stop them at the end.

    Args:
        folder: an empty folder whose path is short, since a socket is made in it.
        cpus: processors of the node.
        memory_mb: memory of the node [MB].

    Yields:
        The environment in which SLURM's commands find the cluster.

    Raises:
        RuntimeError: a daemon ended, or the node was not idle in time; the message has the logs' last lines.
    """
    folder.chmod(0o711)  # munged refuses a socket where no other user could reach it
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(
            host=socket.gethostname().split(".")[0],
            ports=free_ports(2),
            user=getuser(),
            folder=folder,
            cpus=cpus,
            memory_mb=memory_mb,
        )
    )
    environment = os.environ | {"PATH": f"{folder}/bin{os.pathsep}{search_path()}", "SLURM_CONF": str(configuration)}
    # The plugin takes SLURM's variables from a job's environment, SLURM_CONF with them, before it calls srun.
    srun = folder / "bin/srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={configuration} exec {shutil.which("srun", path=search_path())} "$@"\n')
    srun.chmod(0o755)
    subprocess.run(["mungekey", "--create", f"--keyfile={folder}/munge.key"], env=environment, check=True)
    munged = [
        "munged",
        "--foreground",
        "--force",
        f"--key-file={folder}/munge.key",
        f"--socket={folder}/munge.socket",
        f"--pid-file={folder}/munged.pid",
        f"--log-file={folder}/munged.log",
        f"--seed-file={folder}/munged.seed",
    ]
    with ExitStack() as stack:
        daemons = [stack.enter_context(daemon(munged, folder, environment))]
        wait_for(lambda: (folder / "munge.socket").exists(), daemons, folder)
        for command in (["slurmctld", "-D", "-i"], ["slurmd", "-D"]):
            daemons.append(stack.enter_context(daemon(command, folder, environment)))
        wait_for(lambda: "idle" in output_of(["sinfo", "--noheader", "--format=%T"], environment), daemons, folder)
        try:
            yield environment
        finally:
            output_of(["scancel", f"--user={getuser()}"], environment)
            wait_for(lambda: not output_of(["squeue", "--noheader"], environment).strip(), daemons, folder)


@contextmanager
def daemon(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a program in the foreground of a process of its own, and end it."""
    with (folder / f"{command[0]}.out").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(START_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(condition: Callable[[], bool], daemons: list["subprocess.Popen[bytes]"], folder: Path) -> None:
    """Wait until a condition holds, while all daemons run."""
    for _ in range(10 * START_S):
        if condition():
            return
        if any(process.poll() is not None for process in daemons):
            break
        time.sleep(0.1)
    logs = [*sorted(folder.glob("*.out")), *sorted(folder.glob("*.log"))]
    last_lines = "\n".join(f"== {log.name}\n" + "\n".join(log.read_text().splitlines()[-15:]) for log in logs)
    raise RuntimeError(f"the cluster of one node did not come up, or did not become idle:\n{last_lines}")


def output_of(command: list[str], environment: dict[str, str]) -> str:
    """What a command prints; nothing where it fails."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else ""


def free_ports(n: int) -> list[int]:
    """Ports that nothing listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


if __name__ == "__main__":
    try:
        if missing():
            install()
    except ValueError as error:
        sys.exit(f"error: {error}")
