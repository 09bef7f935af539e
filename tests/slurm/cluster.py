"""A real SLURM on this machine for the tests: munged, slurmctld, a few slurmd, with or without
accounting. No systemd, no cgroups, nothing under /etc; all of it in one folder, all of it ended by
`Cluster.stop`.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
ACCOUNTING_PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db", "sacct", "sacctmgr")
PARTITIONS = """
PartitionName=DEFAULT Nodes=ALL MaxTime=INFINITE DefaultTime=60 State=UP
PartitionName=main Default=YES PriorityTier=1 PreemptMode=OFF
PartitionName=low PriorityTier=1 PreemptMode=REQUEUE GraceTime=4
PartitionName=high PriorityTier=9 PreemptMode=OFF
"""
# SLURM counts a zombie as a running process. Process 1 of a container may reap late, so each slurmd
# has a parent that adopts and reaps the orphans of its jobs at once.
ADOPTING_PARENT = """
import ctypes, os, sys
PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
daemon = os.spawnvp(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
while True:
    ended, status = os.wait()
    if ended == daemon:
        sys.exit(0)
"""


def missing_programs(*, accounting: bool) -> list[str]:
    """Return the programs that are not installed."""
    path = search_path()
    wanted = PROGRAMS + (ACCOUNTING_PROGRAMS if accounting else ())
    return [name for name in wanted if shutil.which(name, path=path) is None]


def search_path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])


class Cluster:
    """Daemons of one cluster.

    Parameters
    ----------
    folder : Path
        Its state; a short path, because sockets lie in it.
    accounting : bool
        Whether `sacct` works.
    nodes, cpus, memory_mb, gpus : int
        Of the virtual nodes; more than the machine has is fine.
    """

    def __init__(
        self,
        folder: Path,
        *,
        accounting: bool,
        nodes: int = 2,
        cpus: int = 4,
        memory_mb: int = 8000,
        gpus: int = 2,
    ) -> None:
        self.folder = folder
        self.accounting = accounting
        self.nodes = [f"n{i + 1}" for i in range(nodes)]
        self.shape = (cpus, memory_mb, gpus)
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.config = folder / "slurm.conf"
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))},
            "PATH": search_path(),
            "SLURM_CONF": str(self.config),
        }
        self.first_port = _free_ports(4 + nodes)

    def start(self) -> None:
        """Start every daemon and wait until all nodes are idle."""
        for name in ("spool", "state", "log", "dev"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for node in self.nodes:
            (self.folder / "spool" / node).mkdir(exist_ok=True)
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        self.folder.chmod(0o755)
        self._write_config()
        socket_path = self.folder / "munge.sock"
        self._spawn(
            "munged",
            ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={socket_path}"]
            + [f"--{word}-file={self.folder}/munged.{word}" for word in ("pid", "log", "seed")],
        )
        wait_until(socket_path.exists, "munged's socket", 60)
        if self.accounting:
            self._start_database()
        self.revive("slurmctld")
        for node in self.nodes:
            self._start_node(node)
        wait_until(lambda: self._idle_nodes() == len(self.nodes), "idle nodes", 240)

    def stop(self) -> None:
        """Cancel all jobs and end every daemon that was started here, by its pid."""
        self.cancel_all()
        for node in self.nodes:
            self.kill(node)
        for name in ("slurmctld", "slurmdbd", "mariadbd", "munged"):
            daemon = self.daemons.pop(name, None)
            if daemon is None:
                continue
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def cancel_all(self) -> None:
        """End every job at once, without its grace period."""
        if "slurmctld" in self.daemons:
            user = f"--user={getpass.getuser()}"
            with contextlib.suppress(subprocess.SubprocessError):
                self.command("scancel", user, timeout=60)
                self.command("scancel", "--signal=KILL", user, timeout=60)

    def logs(self, n_lines: int = 5) -> str:
        """Return the last lines of every daemon's log."""
        tails = {
            path.name: path.read_text(errors="replace").splitlines()[-n_lines:]
            for path in sorted((self.folder / "log").glob("*"))
        }
        return "\n".join(f"{name}: {line}" for name, lines in tails.items() for line in lines)

    def command(self, *words: str, timeout: float = 120) -> str:
        """Run one of SLURM's commands and return what it prints."""
        answer = subprocess.run(
            words,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=True,
        )
        return answer.stdout

    def kill(self, name: str) -> None:
        """Kill a daemon as a power cut would; the jobs of a node die with it."""
        daemon = self.daemons.pop(name, None)
        if daemon is None:
            return
        below = [daemon.pid, *_descendants(daemon.pid), *self._step_managers(name)]
        for pid in dict.fromkeys([*below, *(p for b in below for p in _descendants(b))]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        daemon.wait()

    def revive(self, name: str) -> None:
        """Start a killed daemon again and wait until it answers."""
        if name != "slurmctld":
            self._start_node(name)
            wait_until(lambda: self._idle_nodes() == len(self.nodes), f"node {name}", 240)
            return
        is_first = not any((self.folder / "state").iterdir())
        words = ["slurmctld", "-D", *(["-i"] if is_first else []), "-f", str(self.config)]
        self._spawn("slurmctld", words)

        def answers() -> bool:
            with contextlib.suppress(subprocess.SubprocessError):
                return "UP" in self.command("scontrol", "ping", timeout=30)
            return False

        wait_until(answers, "slurmctld", 240)

    def _spawn(self, name: str, words: list[str]) -> None:
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                words,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _start_node(self, node: str) -> None:
        parent = [sys.executable, "-S", "-E", "-c", ADOPTING_PARENT]
        self._spawn(node, [*parent, "slurmd", "-D", "-N", node, "-f", str(self.config)])

    def _idle_nodes(self) -> int:
        try:
            text = self.command("sinfo", "-hN", "-p", "main", "-t", "idle,mix,alloc", "-o", "%N")
        except subprocess.SubprocessError:
            return 0
        return len(set(text.split()))

    def _step_managers(self, node: str) -> Iterator[int]:
        """Yield the slurmstepd processes of a node, identified by their open log file."""
        log = str(self.folder / "log" / f"slurmd-{node}.log")
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if b"slurmstepd" not in (entry / "cmdline").read_bytes():
                    continue
                if any(os.readlink(fd) == log for fd in (entry / "fd").iterdir()):
                    yield int(entry.name)

    def _start_database(self) -> None:
        data = self.folder / "db"
        user, password = getpass.getuser(), secrets.token_hex(12)
        common = ["--no-defaults", f"--user={user}", f"--datadir={data}"]
        data.mkdir()
        subprocess.run(
            ["mariadb-install-db", *common, "--auth-root-authentication-method=normal"],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        init = self.folder / "init.sql"
        init.touch(mode=0o600)
        init.write_text(
            "CREATE DATABASE slurm_acct_db;\n"
            f"CREATE USER 'slurm'@'127.0.0.1' IDENTIFIED BY '{password}';\n"
            f"CREATE USER 'slurm'@'localhost' IDENTIFIED BY '{password}';\n"
            "GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1';\n"
            "GRANT ALL ON slurm_acct_db.* TO 'slurm'@'localhost';\n"
        )
        port = self.first_port + 2
        self._spawn(
            "mariadbd",
            [
                "mariadbd",
                *common,
                f"--socket={self.folder}/db.sock",
                f"--init-file={init}",
                f"--pid-file={self.folder}/db.pid",
                f"--tmpdir={self.folder}",
                "--bind-address=127.0.0.1",
                f"--port={port}",
                "--skip-log-bin",
                "--performance-schema=OFF",
                "--innodb-buffer-pool-size=64M",
                "--innodb-flush-log-at-trx-commit=0",
                "--innodb-lock-wait-timeout=900",
            ],
        )
        wait_until(lambda: _is_listening(port), "MariaDB", 240)
        config = self.folder / "slurmdbd.conf"
        config.touch(mode=0o600)
        config.write_text(
            f"AuthType=auth/munge\nAuthInfo=socket={self.folder}/munge.sock\nDbdHost=localhost\n"
            f"DbdAddr=127.0.0.1\nDbdPort={self.first_port + 1}\nSlurmUser={user}\n"
            f"LogFile={self.folder}/log/slurmdbd.log\nPidFile={self.folder}/slurmdbd.pid\n"
            f"StorageType=accounting_storage/mysql\nStorageHost=127.0.0.1\nStoragePort={port}\n"
            f"StorageUser=slurm\nStoragePass={password}\nStorageLoc=slurm_acct_db\n"
        )
        self._spawn("slurmdbd", ["slurmdbd", "-D"])
        wait_until(lambda: _is_listening(self.first_port + 1), "slurmdbd", 240)
        # Added before slurmctld registers; otherwise sacct would miss the first jobs.
        for words in (
            ["cluster", "tests"],
            ["account", "lab", "cluster=tests"],
            ["user", user, "account=lab", "adminlevel=admin"],
        ):
            self.command("sacctmgr", "-i", "-Q", "add", *words)

    def _write_config(self) -> None:
        folder, user = self.folder, getpass.getuser()
        cpus, memory_mb, gpus = self.shape
        host = socket.gethostname().partition(".")[0]
        count, first = len(self.nodes), self.first_port + 4
        for gpu in range(gpus):
            # SLURM needs a character device for each GPU but does not open it.
            (self.folder / "dev" / f"gpu{gpu}").symlink_to("/dev/null")
        accounting = (
            f"AccountingStorageType=accounting_storage/slurmdbd\n"
            f"AccountingStorageHost=127.0.0.1\nAccountingStoragePort={self.first_port + 1}\n"
            f"AccountingStoragePass={folder}/munge.sock\nAccountingStorageTRES=gres/gpu\n"
            if self.accounting
            else "AccountingStorageType=accounting_storage/none\n"
        )
        self.config.write_text(
            f"ClusterName=tests\nSlurmctldHost={host}(127.0.0.1)\n"
            f"SlurmctldPort={self.first_port}\nSlurmUser={user}\nSlurmdUser={user}\n"
            f"AuthType=auth/munge\nCredType=cred/munge\n"
            # SLURM holds a requeued job for the lifetime of a credential, 120 s by default.
            f"AuthInfo=socket={folder}/munge.sock,cred_expire=5\n"
            f"StateSaveLocation={folder}/state\nSlurmdSpoolDir={folder}/spool/%n\n"
            f"SlurmctldPidFile={folder}/slurmctld.pid\nSlurmdPidFile={folder}/slurmd-%n.pid\n"
            f"SlurmctldLogFile={folder}/log/slurmctld.log\n"
            f"SlurmdLogFile={folder}/log/slurmd-%n.log\n"
            "SlurmdParameters=config_overrides\nProctrackType=proctrack/pgid\nMailProg=/bin/true\n"
            "MpiDefault=none\nPropagateResourceLimits=NONE\nReturnToService=2\nJobRequeue=1\n"
            "KillWait=3\nSlurmctldTimeout=10\nSlurmdTimeout=8\nMessageTimeout=10\nTCPTimeout=3\n"
            "UnkillableStepTimeout=10\nInactiveLimit=0\nMinJobAge=600\nMaxArraySize=1001\n"
            "SchedulerType=sched/backfill\nSchedulerParameters=batch_sched_delay=0,sched_interval=1,"
            "bf_interval=1,sched_min_interval=2,default_queue_depth=1000\n"
            "SelectType=select/cons_tres\nSelectTypeParameters=CR_CPU_Memory\n"
            "PriorityType=priority/basic\nPreemptType=preempt/partition_prio\n"
            "PreemptMode=REQUEUE\n"
            f"{self._user_signal_line()}"
            "JobAcctGatherType=jobacct_gather/linux\nJobAcctGatherFrequency=task=1\n"
            f"{accounting}GresTypes=gpu\n"
            f"NodeName=DEFAULT CPUs={cpus} RealMemory={memory_mb} Gres=gpu:{gpus} State=UNKNOWN\n"
            f"NodeName=n[1-{count}] NodeHostname={host} NodeAddr=127.0.0.1 "
            f"Port=[{first}-{first + count - 1}]\n{PARTITIONS}"
        )
        (self.folder / "gres.conf").write_text(
            f"NodeName=n[1-{count}] Name=gpu Count={gpus} File={folder}/dev/gpu[0-{gpus - 1}]\n"
        )

    def _user_signal_line(self) -> str:
        """Return the option that sends a job's signal on preemption; it was renamed in 23.02."""
        version = self.command_version()
        name = "PreemptParameters" if version >= (23, 2) else "SlurmctldParameters"
        value = "send_user_signal" if version >= (23, 2) else "preempt_send_user_signal"
        return f"{name}={value}\n"

    def command_version(self) -> tuple[int, int]:
        text = subprocess.run(
            ["slurmctld", "-V"], env=self.environment, capture_output=True, text=True, check=True
        ).stdout
        major, minor, *_ = text.split()[-1].split(".")
        return int(major), int(minor)


def wait_until(holds: Callable[[], bool], what: str, seconds: float) -> None:
    """Wait for a condition; fail with its name after the timeout."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} within {seconds:g} s")
        time.sleep(0.1)


def _descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = entry.read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found, front = [], [pid]
    while front:
        front = [child for parent in front for child in parents.get(parent, [])]
        found += front
    return found


def _is_listening(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_ports(count: int) -> int:
    for first in range(23417 + os.getpid() % 1000, 32000, 50):
        if not any(_is_listening(port) for port in range(first, first + count)):
            return first
    raise OSError("no free block of ports")


def main() -> None:
    """Start a cluster, run a job and stop it, to check whether the tests can run here."""
    missing = missing_programs(accounting=True)
    if missing:
        sys.exit(f"no SLURM: {', '.join(missing)} not installed")
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        cluster = Cluster(Path(folder), accounting=True)
        try:
            cluster.start()
            words = ("srun", "-N2", "--export=ALL", "true")
            cluster.command(*words, timeout=300)
        except (OSError, subprocess.SubprocessError) as error:
            sys.exit(f"no SLURM, though it is installed: {error}\n{cluster.logs()}")
        finally:
            cluster.stop()


if __name__ == "__main__":
    main()
