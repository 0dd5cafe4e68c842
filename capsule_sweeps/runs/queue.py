"""The protocol between the ledger and a queue, a scheduler that holds runs, and the lookup of a queue by name.

The queue NAME is the object QUEUE in `capsule_sweeps/launchers/NAME/queue.py`. The folder is the registry: a name that
is not in it is never imported.
"""

import importlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, cast

LAUNCHERS = Path(__file__).resolve().parents[1] / "launchers"
SUBMISSION = re.compile(r"\w[\w.+]{,23}-[0-9a-f]{8}-[0-9a-f]{6}", re.ASCII)  # <data set>-<sweep>-<random>
FIRST = "slurm"  # queue of entries that do not name one, as written by older versions


@dataclass(frozen=True)
class Entry:
    """A run in a queue: the folder of its submission, after which the jobs are named, and the job that claimed it."""

    queue: str
    folder: Path  # <runs_dir>/.jobs/<submission>
    user: str | None = None
    job: str | None = None  # None while no job of this submission has worked on the run

    @property
    def submission(self) -> str:
        return self.folder.name


class Refused(Exception):
    """A queue refused jobs; the message is that of the queue."""


class Queue(Protocol):
    """A scheduler that holds runs."""

    def is_active(self, entry: Entry) -> bool:
        """Whether a job of this submission is pending or running; also True if the queue does not answer."""

    def cancel(self, entry: Entry) -> bool:
        """Cancel the jobs of this submission that have not started. False if the queue does not answer."""

    def where(self, entry: Entry) -> str:
        """Why the job is pending, or its node and the time left; empty if the queue has no such job."""

    def log(self, entry: Entry) -> Path | None:
        """The log of the entry's job; before a job claimed the run, the newest log of the submission."""

    def this_job(self) -> dict[str, Any]:
        """The job that this process belongs to, how often it was restarted, its cluster: {job, restart, cluster}; or
        {}."""

    def is_login_node(self) -> bool:
        """Whether this machine submits jobs and this process is in none: others work here, nothing is trained."""

    def is_over(self, job: str, cluster: str, user: str) -> bool:
        """Whether no process of this job is at work any more: it is gone, waits to be started again, or its node is
        down. False if the queue does not know, or does not answer."""


class Unknown:
    """A queue that this code does not have. It is treated like a queue that does not answer."""

    def is_active(self, entry: Entry) -> bool:
        return True

    def cancel(self, entry: Entry) -> bool:
        return False

    def where(self, entry: Entry) -> str:
        return f"unknown queue {entry.queue}"

    def log(self, entry: Entry) -> None:
        return None

    def this_job(self) -> dict[str, Any]:
        return {}

    def is_login_node(self) -> bool:
        return False

    def is_over(self, job: str, cluster: str, user: str) -> bool:
        return False


@cache
def queue_names() -> tuple[str, ...]:
    return tuple(sorted(path.parent.name for path in LAUNCHERS.glob("*/queue.py")))


def find_queue(name: str) -> Queue:
    if name not in queue_names():
        return Unknown()
    return cast(Queue, importlib.import_module(f"capsule_sweeps.launchers.{name}.queue").QUEUE)


def this_job() -> dict[str, Any]:
    """The job, of any queue, that this process belongs to; {} if there is none."""
    return next(({"queue": name, **job} for name in queue_names() if (job := find_queue(name).this_job())), {})
