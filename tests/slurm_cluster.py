"""A real SLURM on this machine for the tests: two nodes with two pretended GPUs each, on loopback, as any user.

What differs between clusters is a setting of `Cluster`: accounting (slurmdbd over MariaDB), munge, preemption's signal.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

MAX_ARRAY_SIZE = 4
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/{auth}
CredType=cred/{auth}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
ReturnToService=2
KillWait=5
MinJobAge=3600
MaxArraySize={array}
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=4 RealMemory=4000 Gres=gpu:2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=debug Nodes=ALL Default=YES PriorityTier=1 GraceTime=10 State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=closed Nodes=ALL State=DOWN
"""
DBD = """
AuthType=auth/{auth}
DbdHost=localhost
DbdPort={dbd}
SlurmUser={user}
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={sql}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
"""


def missing(*commands: str) -> str:
    """What is to be installed before a cluster can be booted; empty when all is there."""
    return ", ".join(name for name in commands if shutil.which(name) is None)


class Cluster:
    """`with Cluster(folder) as cluster:`; processes started meanwhile find it through SLURM_CONF."""

    def __init__(self, folder: Path, accounting: bool = False, munge: bool = False, extra: str = "") -> None:
        self.folder, self.accounting, self.munge, self.extra = folder, accounting, munge, extra

    def __enter__(self) -> Cluster:
        ports = free_ports(6)
        words: dict[str, Any] = {
            "host": socket.gethostname().split(".")[0],
            "user": getpass.getuser(),
            "auth": "munge" if self.munge else "none",
            "folder": self.folder,
            "array": MAX_ARRAY_SIZE,
            **dict(zip(("port", "first", "last", "dbd", "sql"), ports, strict=False)),
        }
        for name in ("state", "spool-n1", "spool-n2"):
            (self.folder / name).mkdir(parents=True)
        conf = CONF.format(**words) + self.extra + "\n"
        if self.munge:
            conf += f"AuthInfo=socket={self.folder}/munge.socket\n"
            self._boot_munge()
        if self.accounting:
            conf += "AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=localhost\n"
            conf += f"AccountingStoragePort={words['dbd']}\nJobAcctGatherType=jobacct_gather/linux\n"
        (self.folder / "slurm.conf").write_text(conf)
        gpus = "".join(f"NodeName=n[1-2] Name=gpu File={file}\n" for file in ("/dev/null", "/dev/zero"))
        (self.folder / "gres.conf").write_text(gpus)
        self._before = os.environ.get("SLURM_CONF")
        os.environ["SLURM_CONF"] = str(self.folder / "slurm.conf")
        try:
            if self.accounting:
                self._boot_accounting(words)
            subprocess.run(["slurmctld"], check=True, capture_output=True)
            for node in ("n1", "n2"):
                subprocess.run(["slurmd", "-N", node], check=True, capture_output=True)
            self.until(lambda: self.ask("sinfo", "-h", "-p", "debug", "-t", "idle", "-o", "%D").strip() == "2")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(subprocess.SubprocessError):
            subprocess.run(["scancel", "--me", "--full"], capture_output=True, timeout=120)
        files = [*self.folder.glob("slurm*.pid"), *self.folder.glob("munged.pid"), *self.folder.glob("mariadb.pid")]
        pids = [int(text) for path in files if (text := path.read_text().strip())]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        for pid in pids:
            with suppress(AssertionError):
                self.until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), 120)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.accounting:
            self.database.wait(120)
        os.environ.pop("SLURM_CONF", None)
        if self._before is not None:
            os.environ["SLURM_CONF"] = self._before

    def _boot_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self.folder.chmod(0o755)
        names = {"socket": "munge.socket", "key-file": "munge.key", "log-file": "munged.log", "pid-file": "munged.pid"}
        options = [f"--{key}={self.folder / name}" for key, name in {**names, "seed-file": "munge.seed"}.items()]
        subprocess.run(["munged", "--force", *options], check=True, capture_output=True)

    def _boot_accounting(self, words: dict[str, Any]) -> None:
        data, socket_path, user = self.folder / "db", self.folder / "mariadb.sock", words["user"]
        install = ["mariadb-install-db", "--no-defaults", f"--user={user}", f"--datadir={data}", "--skip-test-db"]
        subprocess.run([*install, "--auth-root-authentication-method=socket"], check=True, capture_output=True)
        options = [f"--datadir={data}", f"--socket={socket_path}", f"--port={words['sql']}", f"--user={user}"]
        options += ["--bind-address=127.0.0.1", f"--pid-file={self.folder / 'mariadb.pid'}"]
        options += ["--innodb-buffer-pool-size=64M", f"--log-error={self.folder / 'mariadb.log'}"]
        self.database = subprocess.Popen(
            ["mariadbd", "--no-defaults", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        client = ["mariadb", "--no-defaults", f"-u{user}", "-S", str(socket_path), "-e"]
        self.until(lambda: subprocess.run([*client, "select 1"], capture_output=True).returncode == 0)
        hosts = ("127.0.0.1", "localhost")
        users = "".join(f"create user slurm@'{host}' identified by 'slurm';" for host in hosts)
        rights = "".join(f"grant all on slurm_acct.* to slurm@'{host}';" for host in hosts)
        subprocess.run([*client, f"create database slurm_acct; {users} {rights}"], check=True, capture_output=True)
        (self.folder / "slurmdbd.conf").write_text(DBD.format(**words))
        (self.folder / "slurmdbd.conf").chmod(0o600)
        subprocess.run(["slurmdbd"], check=True, capture_output=True)
        self.until(lambda: self._works("sacctmgr", "-n", "list", "cluster"))

    def _works(self, *command: str) -> bool:
        try:
            return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def ask(self, *command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    def jobs(self, name: str = "") -> dict[str, str]:
        """Job (of arrays: job_task) → its state, of all that SLURM remembers, or of one name."""
        lines = self.ask("squeue", "-h", "-r", "-t", "all", "-o", "%i %T %j").splitlines()
        return {number: state for number, state, found in map(str.split, lines) if name in ("", found)}

    def detail(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says of one."""
        text = self.ask("scontrol", "show", "job", "-o", job).splitlines()[0]
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def until(self, holds: Callable[[], Any], seconds: float = 600) -> Any:
        """What `holds` gives once it is true. Fails with the queue when that takes longer."""
        limit = time.monotonic() + seconds
        while not (found := holds()):
            assert time.monotonic() < limit, subprocess.run(
                ["squeue", "-t", "all"], capture_output=True, text=True
            ).stdout
            time.sleep(0.1)
        return found

    def drained(self) -> None:
        """Waits until no job is left; requeued ones do not wait out SLURM's two minutes."""

        def empty() -> bool:
            self.hurry()
            return not self.ask("squeue", "-h").strip()

        self.until(empty)

    def hurry(self) -> None:
        """Let requeued jobs start now."""
        for number in self.ask("squeue", "-h", "-r", "-t", "PENDING", "-o", "%i %r").splitlines():
            job, reason = number.split(maxsplit=1)
            if reason == "BeginTime":
                time.sleep(2)  # in the very second of its requeue the node refuses the job: "credential revoked"
                subprocess.run(["scontrol", "update", f"jobid={job}", "StartTime=now"], capture_output=True)


def free_ports(count: int) -> list[int]:
    """Consecutive ports on which no process listens, as SLURM wants those of its nodes."""
    for first in range(21000 + os.getpid() % 5000, 60000, 16):
        with suppress(OSError):
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return list(range(first, first + count))
    raise AssertionError("no free ports")
