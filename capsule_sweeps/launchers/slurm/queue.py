"""What SLURM knows: jobs in its queue, and how it is set up. Asks squeue and scontrol; no accounting is needed."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass

ASK_SECONDS = 30
REMEMBER_SECONDS = 2.0
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
        return f"{self.state.lower()} ({self.reason})"


_remembered: dict[str, tuple[float, list[Job] | None]] = {}  # user → when asked, answer


def jobs(user: str | None = None) -> list[Job] | None:
    """A user's jobs in the queue (one's own, if nothing is said); None when there is no SLURM or it does not answer.

    Answers are remembered for a moment.
    """
    user = user or getpass.getuser()
    asked, found = _remembered.get(user, (float("-inf"), None))
    if time.monotonic() - asked > REMEMBER_SECONDS:
        text = ask("squeue", "-u", user, "-h", "-r", "-o", "%i|%j|%T|%r|%N|%L")
        rows = None if text is None else [line.strip().split("|", 5) for line in text.splitlines()]
        found = None if rows is None else [Job(*row) for row in rows if len(row) == 6 and row[2] not in ENDED]
        _remembered[user] = time.monotonic(), found
    return found


def forget() -> None:
    """Ask anew at the next question: the queue was just changed."""
    _remembered.clear()


def is_active(submission: str, user: str | None = None) -> bool:
    """Whether a job of this submission is in the queue; True as well when SLURM cannot be asked at this moment."""
    found = jobs(user)
    return found is None or any(job.name == submission for job in found)


def settings() -> dict[str, str] | None:
    """What `scontrol show config` says; None when SLURM does not answer."""
    text = ask("scontrol", "show", "config")
    return None if text is None else dict(re.findall(r"^(\w+)\s*= (.*?)\s*$", text, re.MULTILINE))


def max_array_size() -> int:
    """How many tasks an array may have on this cluster (SLURM's own default where it does not say)."""
    return int((settings() or {}).get("MaxArraySize", "1001"))


def cancel(submission: str, *options: str) -> bool:
    """End one's own jobs of a submission (those pending, with --state=PENDING). False when SLURM does not answer."""
    answered = ask("scancel", "--me", f"--name={submission}", *options) is not None
    forget()
    return answered


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
