"""Jobs in the queue of SLURM and its settings, from squeue and scontrol; no accounting is needed."""

import getpass
import os
import pwd
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capsule_sweeps.display import counted
from capsule_sweeps.launchers.children import import_path
from capsule_sweeps.runs.queue import Entry, Refused

ASK_SECONDS = 30
SUBMIT_SECONDS = 300  # a busy controller takes its time
REMEMBER_SECONDS = 30.0  # asking more often is impolite to a controller; `forget` after a change
RECENT_SECONDS = 5.0  # for a question by whose answer a run is taken over
# What a surrounding salloc or sbatch leaves, and what would redirect our jobs, does not reach a submission
KEPT = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"}
REDIRECTING = {"ARRAY_INX", "ERROR", "EXPORT", "GET_USER_ENV", "INPUT", "JOB_NAME", "NO_REQUEUE", "OPEN_MODE", "OUTPUT"}
REDIRECTING |= {"REQUEUE", "SIGNAL", "WAIT"}
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}


@dataclass(frozen=True)
class Job:
    """A job (or array task: job_task) that is pending or running; its name is the submission it belongs to."""

    job_id: str
    name: str
    state: str
    reason: str
    node: str
    time_left: str

    def __str__(self) -> str:
        if self.state == "RUNNING":
            return f"{self.node}, {self.time_left} left"
        return self.state.lower() + (f" ({self.reason})" if self.reason not in ("", "None") else "")


_answers: dict[tuple[str, ...], tuple[float, str | None]] = {}  # command → when asked, answer


def jobs(user: str | None = None, within: float = REMEMBER_SECONDS) -> list[Job] | None:
    """A user's jobs in the queue (one's own, if nothing is said); None when there is no SLURM or it does not answer."""
    words = ("-u", user or getpass.getuser(), "-h", "-r", "-o", "%i|%j|%T|%r|%N|%L")
    text = ask_seldom("squeue", *words, within=within)
    rows = None if text is None else [line.strip().split("|", 5) for line in text.splitlines()]
    return None if rows is None else [Job(*row) for row in rows if len(row) == 6 and row[2] not in ENDED]


def ask_seldom(*command: str, within: float = REMEMBER_SECONDS) -> str | None:
    """`ask`, where the answer may be some seconds old."""
    asked, text = _answers.get(command, (float("-inf"), None))
    if (now := time.monotonic()) - asked > within:
        text = ask(*command)
        _answers[command] = now, text
    return text


def forget() -> None:
    """Ask again next time, because the queue was just changed."""
    _answers.clear()


def settings() -> dict[str, str] | None:
    """The output of `scontrol show config`; None if SLURM does not answer."""
    text = ask_seldom("scontrol", "show", "config")
    return None if text is None else dict(re.findall(r"^(\w+)\s*= (.*?)\s*$", text, re.MULTILINE))


def is_down(node: str) -> bool:
    """Whether a node is down or does not respond, which SLURM marks with a star."""
    states = (ask_seldom("sinfo", "-h", "-N", "-n", node, "-o", "%T") or "").split() if node else []
    return bool(states) and all(state.startswith("down") or state.endswith("*") for state in states)


def max_array_size() -> int:
    """How many tasks an array may have on this cluster (SLURM's own default where it does not say)."""
    return int((settings() or {}).get("MaxArraySize", "1001"))


def clean_environment() -> dict[str, str]:
    """The environment for sbatch: without the variables of a job that this process sits in, or that redirect jobs."""
    redirecting = {f"SBATCH_{name}" for name in REDIRECTING} | {"SRUN_CPUS_PER_TASK"}
    kept = {
        key: value
        for key, value in os.environ.items()
        if key in KEPT or not (key.startswith(("SLURM_", "SLURMD_", "PMI_", "PMIX_")) or key in redirecting)
    }
    return {**kept, **({"PYTHONPATH": os.pathsep.join(import_path())} if "PYTHONPATH" in kept else {})}


def requeue_if_running(job_id: str) -> None:
    """Put a job back into the queue, unless SLURM is ending it already (cancelled, out of time, requeued)."""
    if (ask("squeue", "-h", "-j", job_id, "-o", "%T") or "").strip() == "RUNNING":
        ask("scontrol", "requeue", job_id)


def ask(*command: str) -> str | None:
    """The output of a SLURM command; None when it is not installed, fails, or does not answer in time."""
    if shutil.which(command[0]) is None:
        return None
    try:
        plain = {key: value for key, value in os.environ.items() if not key.startswith(("SQUEUE_", "SCANCEL_"))}
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_SECONDS, env=plain)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def options(parameters: dict[str, Any]) -> list[str]:
    return [f"--{key}" if value is True else f"--{key}={value}" for key, value in sorted(parameters.items())]


def sbatch(*arguments: str) -> str:
    """The answer of sbatch. Raises Refused with the message of SLURM."""
    command = ["sbatch", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SUBMIT_SECONDS, env=clean_environment())
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused(str(error)) from error
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = [line.partition("error: ")[2] for line in lines if line.startswith("sbatch: error: ")]
        words = "; ".join(line.removeprefix("Batch job submission failed: ") for line in said) or " ".join(lines)
        raise Refused(words or f"sbatch ended with exit code {done.returncode}")
    return done.stdout if "--test-only" not in arguments else done.stderr


class SlurmQueue:
    """SLURM as the ledger sees it (`runs.queue.Queue`). The jobs of a submission carry its name."""

    def is_active(self, entry: Entry) -> bool:
        found = jobs(entry.user)
        return found is None or any(job.name == entry.submission for job in found)

    def cancel(self, entry: Entry) -> bool:
        answered = ask("scancel", "--me", f"--name={entry.submission}", "--state=PENDING") is not None
        forget()
        return answered

    def where(self, entry: Entry) -> str:
        found = jobs(entry.user)
        if found is None:
            return "" if entry.job else "SLURM does not answer"
        if entry.job:
            known = next((str(job) for job in found if job.job_id == entry.job), "")
            return known or f"job {entry.job} is no longer in the queue"
        ours = [job for job in found if job.name == entry.submission]
        pending = next((str(job) for job in ours if job.state == "PENDING"), "")  # any job takes any run
        return pending or (f"waits for one of {counted(len(ours), 'job')} at work" if ours else "")

    def log(self, entry: Entry) -> Path | None:
        own = entry.folder / f"{entry.job}_0_log.out"
        logs = [own] if entry.job and own.is_file() else entry.folder.glob("*_log.out")
        return max(logs, key=lambda log: log.lstat().st_mtime, default=None)

    def this_job(self) -> dict[str, Any]:
        job, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        name = f"{job}_{task}" if job and task else os.environ.get("SLURM_JOB_ID")
        if not name:
            return {}
        cluster = os.environ.get("SLURM_CLUSTER_NAME")
        restart = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        return {"job": name, "restart": restart, **({"cluster": cluster} if cluster else {})}

    def is_login_node(self) -> bool:
        return "SLURMD_NODENAME" not in os.environ and settings() is not None  # a salloc may leave its shell here

    def is_over(self, job: str, cluster: str, user: str) -> bool:
        found = jobs(user, RECENT_SECONDS) if (settings() or {}).get("ClusterName") == cluster else None
        for one in found or ():
            if one.job_id.partition("+")[0] == job:  # 1234+0 is the first part of a heterogeneous job
                return one.state == "PENDING" or is_down(one.node)
        return found is not None and user == pwd.getpwuid(os.getuid()).pw_name  # a cluster may hide jobs of others


QUEUE = SlurmQueue()
