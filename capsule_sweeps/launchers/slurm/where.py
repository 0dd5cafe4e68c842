"""Where a run is, or was last at work, in SLURM: its submission, its job's log, and what the queue says of it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from capsule_sweeps.launchers.slurm import queue as slurm
from capsule_sweeps.runs.run import Run


def slurm_job_file(run: Run) -> Path | None:
    """The job.json of the submission under which a run was last queued or at work; None if SLURM had no part in it."""
    attempts = run.record().get("attempts", [])
    submission = run.ticket().get("submission") or (attempts[-1].get("submission") if attempts else None)
    path = run.folder.parent / ".jobs" / str(submission) / "job.json"
    return path if submission and path.is_file() else None


def slurm_log(run: Run) -> Path | None:
    """What the SLURM job that last worked on a run printed; before any did, the newest log of its submission."""
    path = slurm_job_file(run)
    if path is None:
        return None
    attempt = (run.record().get("attempts") or [{}])[-1]
    own = path.with_name(f"{attempt.get('job')}_0_log.out")
    if attempt.get("submission") == path.parent.name and own.is_file():
        return own
    return max(path.parent.glob("*_log.out"), key=lambda log: log.stat().st_mtime, default=None)


def lost(run: Run) -> str:
    """A sentence on a run whose ticket no job in SLURM answers to any more; empty for all others."""
    if not run.ticket() or run.state() not in ("new", "interrupted"):
        return ""
    log = slurm_log(run)
    return f"its job ended without finishing it, see {log}" if log else "its job ended before it wrote anything"


def whereabouts(runs_dir: Path, runs: pd.DataFrame) -> list[str]:
    """For each run what SLURM says of its job: why it waits, or its node and the time left. Empty for all others."""
    if not (runs_dir / ".jobs").is_dir():
        return [""] * len(runs)
    jobs = slurm.jobs()
    if jobs is None:
        return ["SLURM does not answer" if state == "queued" else "" for state in runs.state]
    names, numbers = {job.name: job for job in reversed(jobs)}, {job.job_id: job for job in jobs}
    told = []
    for name, state in zip(runs.run, runs.state, strict=True):
        run, job = Run(runs_dir / name), None
        if state == "queued":
            job = names.get(str(run.ticket().get("submission")))
        elif state == "running":
            attempts = run.record().get("attempts", [])
            job = numbers.get(str(attempts[-1].get("job"))) if attempts else None
        told.append(lost(run) if job is None else str(job))
    return told
