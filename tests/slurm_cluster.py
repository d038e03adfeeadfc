"""A real SLURM of two nodes on one machine: everything it writes is in one folder, and it ends with its context."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from runs import environment

PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmstepd", "sbatch", "srun", "scontrol", "squeue", "scancel")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

CONFIGURATION = """
ClusterName=fedsim
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# A job that is queued again waits until its credentials have run out, two minutes if nothing is said.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=1,sched_interval=2
GresTypes=gpu
KillWait=10
# What ended is forgotten after five minutes if nothing is said; a test may ask later.
MinJobAge=7200
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 Gres=gpu:3 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 Gres=gpu:3 State=UNKNOWN
PartitionName=both Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def missing() -> str:
    """Install what is not there, as root where there is apt; return what still is not there, empty if nothing."""
    if not absent() or os.geteuid() != 0 or not shutil.which("apt-get"):
        return absent()
    quiet = {"check": False, "capture_output": True, "timeout": 600}
    subprocess.run(["apt-get", "update"], **quiet)
    install = ["apt-get", "install", "--yes", "--no-install-recommends", "slurm-wlm", "munge"]
    # RUNLEVEL=1 keeps Debian from starting the services, which would be the machine's and not this test's
    subprocess.run(install, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}, **quiet)
    return absent()


def absent() -> str:
    """Return the programs that are not installed."""
    return " ".join(name for name in PROGRAMS if not shutil.which(name, path=PATH))


def until(found: Callable[[], object], seconds: float, what: Callable[[], str]) -> None:
    """Wait until something is found; `what` says what was waited for, and how things are."""
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, f"after {seconds} s: {what()}"
        time.sleep(0.3)


@dataclass
class Cluster:
    """The commands of a running cluster."""

    folder: Path
    processes: list[subprocess.Popen] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What a user of this cluster has in the environment."""
        kept = {name: value for name, value in environment().items() if not name.startswith("SLURM")}
        return kept | {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": PATH}

    def start(self, *command: object) -> None:
        """Start a daemon in the foreground; its output goes to a file of its name."""
        name = Path(str(command[0])).name
        with (self.folder / f"{name}-{len(self.processes)}.out").open("w") as out:
            self.processes.append(
                subprocess.Popen([*map(str, command)], env=self.environment, stdout=out, stderr=out, cwd=self.folder)
            )

    def run(self, *command: object, cwd: Path | None = None, **variables: str) -> str:
        """Run a command of SLURM and return what it printed."""
        done = subprocess.run(
            [*map(str, command)], env=self.environment | variables, cwd=cwd, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """Return what `scontrol show job` says."""
        text = self.run("scontrol", "show", "--oneliner", "job", number)
        return dict(part.split("=", 1) for part in text.split() if "=" in part)

    def wait(self, number: str, *states: str, seconds: float = 900) -> dict[str, str]:
        """Wait until a job is in one of the states, and return what is said of it."""
        until(lambda: self.job(number)["JobState"] in states, seconds, lambda: f"not {states}: {self.job(number)}")
        return self.job(number)

    def logs(self) -> str:
        """Return the ends of all logs, for a message."""
        files = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in files)

    def cancel(self) -> None:
        """End the jobs that are left."""
        own = ("--user", getpass.getuser())
        for how in (("--full", "--signal=KILL"), ()):
            subprocess.run(["scancel", *own, *how], env=self.environment, timeout=60, check=False)
        until(lambda: not self.run("squeue", "--noheader"), 30, self.logs)

    def stop(self) -> None:
        """End jobs and daemons and what does not want to go, and nothing else."""
        try:
            if len(self.processes) > 1:
                self.cancel()
        finally:
            for process in reversed(self.processes):
                process.terminate()
            for process in self.processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(15)
            for pid in self.descendants():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in self.processes:
                process.wait(15)

    def descendants(self) -> list[int]:
        """Return the processes that have this cluster's configuration in their environment, so were started by it."""
        mark, found = f"SLURM_CONF={self.folder}/".encode(), []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                found += [int(path.parent.name)] if mark in path.read_bytes() else []
        return found


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Start munged, slurmctld and two slurmd; end them, and the jobs that are left, whatever happens inside."""
    folder = Path(tempfile.mkdtemp(prefix="fedsim-slurm-"))  # short: a socket's path has at most 107 characters
    here = Cluster(folder)
    try:
        begin(here)
        yield here
    finally:
        try:
            here.stop()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def begin(here: Cluster) -> None:
    """Write keys and configuration, start the daemons and wait until both nodes are idle."""
    folder, host = here.folder, socket.gethostname().split(".")[0]
    folder.chmod(0o755)
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    ports = free_ports(3)
    text = CONFIGURATION.format(folder=folder, host=host, user=getpass.getuser(), ports=ports)
    (folder / "slurm.conf").write_text(text.lstrip())
    for gpu, device in enumerate(("null", "zero", "full")):  # SLURM only wants to know that they are devices
        (folder / f"gpu{gpu}").symlink_to(f"/dev/{device}")
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-2]\n")
    files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid"}
    files |= {"log-file": "munged.log", "seed-file": "munged.seed"}
    here.start("munged", "--foreground", "--force", *(f"--{name}={folder / file}" for name, file in files.items()))
    until((folder / "munge.socket").exists, 30, here.logs)
    here.start("slurmctld", "-D")
    for node in ("n1", "n2"):
        here.start("slurmd", "-D", "-N", node)
    idle = ("sinfo", "--noheader", "--Node", "--format=%T")
    ask = lambda: subprocess.run(idle, env=here.environment, capture_output=True, text=True).stdout.split()  # noqa: E731
    until(lambda: ask() == ["idle", "idle"], 90, here.logs)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports
