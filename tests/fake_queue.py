"""A queue in this process for tests: it remembers what it was asked, and jobs do what a test says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from capsule_sweeps.launchers.submit import QueueLauncher
from capsule_sweeps.runs.queue import Entry, Refused


@dataclass
class FakeQueue:
    jobs: dict[str, str] = field(default_factory=dict)  # submission → what the queue says of its jobs
    refusals: list[str] = field(default_factory=list)  # for the next calls of `send`; "" takes the jobs

    def is_active(self, entry: Entry) -> bool:
        return entry.submission in self.jobs

    def cancel(self, entry: Entry) -> bool:
        self.jobs.pop(entry.submission, None)
        return True

    def where(self, entry: Entry) -> str:
        return self.jobs.get(entry.submission, "")

    def log(self, entry: Entry) -> Path | None:
        return max(entry.folder.glob("*_log.out"), default=None)

    def this_job(self) -> dict[str, Any]:
        return {}

    def is_login_node(self) -> bool:
        return False

    def is_over(self, job: str, cluster: str, user: str) -> bool:
        return False


QUEUE = FakeQueue()


@dataclass
class Launcher(QueueLauncher):
    wait: bool = False
    max_parallel: int = 1000
    queue = "fake"

    def settings(self) -> dict[str, Any]:
        return {"wait": self.wait, "max_parallel": self.max_parallel}

    def num_jobs(self, num_runs: int) -> int:
        return min(num_runs, self.max_parallel)

    def max_jobs(self) -> int:
        return 2

    def send(self, job: dict[str, Any], folder: Path, num_jobs: int) -> str:
        if QUEUE.refusals and (words := QUEUE.refusals.pop(0)):
            raise Refused(words)
        QUEUE.jobs[folder.name] = "pending (Priority)"
        return str(len(job["job_ids"]) + 1)
