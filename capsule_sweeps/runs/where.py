"""Where queued and running runs are according to their queues, and the logs of their jobs."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from capsule_sweeps.runs.queue import find_queue
from capsule_sweeps.runs.run import Run


def where(runs_dir: Path, runs: pd.DataFrame) -> list[str]:
    """For each run the status of its job: why it is pending, or its node and the time left; empty without a job."""
    if not (runs_dir / ".jobs").is_dir():
        return [""] * len(runs)
    return [_where(Run(runs_dir / name), state) for name, state in zip(runs.run, runs.state, strict=True)]


def _where(run: Run, state: str) -> str:
    entry = run.entry() if state in ("queued", "running") else None
    if entry is None:
        return lost(run)
    return find_queue(entry.queue).where(replace(entry, job=None) if state == "queued" else entry)


def lost(run: Run) -> str:
    """A sentence about a run with a queue entry but without a job; empty for all others."""
    if not run.queue_entry() or run.state() not in ("new", "interrupted"):
        return ""
    log = queue_log(run)
    return f"its job ended without finishing it, see {log}" if log else "its job ended before it wrote anything"


def queue_log(run: Run) -> Path | None:
    """The log of the last job of a run; None if the run never was in a queue."""
    entry = run.entry()
    return None if entry is None else find_queue(entry.queue).log(entry)
