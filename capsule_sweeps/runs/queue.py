"""What the ledger asks a queue, a scheduler that holds runs, and how it finds the queue that a queue entry names.

The queue NAME is the object QUEUE of `capsule_sweeps/launchers/NAME/queue.py`: the folder is the registry, and a name
that is not in it is never imported.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, cast

LAUNCHERS = Path(__file__).resolve().parents[1] / "launchers"
SUBMISSION = re.compile(r"\w[\w.+]{,23}-[0-9a-f]{8}-[0-9a-f]{6}", re.ASCII)  # <data set>-<sweep>-<random>
FIRST = "slurm"  # entries written before there were others do not name their queue


@dataclass(frozen=True)
class Entry:
    """How a queue knows a run: the files of a submission, which its jobs are named after, and the job that took it."""

    queue: str
    folder: Path  # <runs_dir>/.jobs/<submission>
    user: str | None = None
    job: str | None = None  # None while no job of this submission has worked on the run

    @property
    def submission(self) -> str:
        return self.folder.name


class Refused(Exception):
    """A queue does not take jobs, in its own words."""


class Queue(Protocol):
    """A scheduler that holds runs."""

    def is_active(self, entry: Entry) -> bool:
        """Whether a job of this submission waits or works; True as well when the queue does not answer."""

    def cancel(self, entry: Entry) -> bool:
        """End the jobs of this submission that have not started. False when the queue does not answer."""

    def where(self, entry: Entry) -> str:
        """Why the job waits, or its node and the time left; empty when the queue has no such job."""

    def log(self, entry: Entry) -> Path | None:
        """What the entry's job printed; before a job worked on the run, the newest log of the submission."""

    def this_job(self) -> dict[str, Any]:
        """The job that this process belongs to and how often it was started again, {job, restart}, or {}."""


class Unknown:
    """A queue that this code does not have. Like one that does not answer, it is left alone."""

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


@cache
def queue_names() -> tuple[str, ...]:
    return tuple(sorted(path.parent.name for path in LAUNCHERS.glob("*/queue.py")))


def find_queue(name: str) -> Queue:
    if name not in queue_names():
        return Unknown()
    return cast(Queue, importlib.import_module(f"capsule_sweeps.launchers.{name}.queue").QUEUE)


def this_job() -> dict[str, Any]:
    """The job, of whichever queue, that this process belongs to; {} for none."""
    return next((job for name in queue_names() if (job := find_queue(name).this_job())), {})
