"""Where a run is, or was last at work, in SLURM: its submission, its job's log, and what the queue says of it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from capsule_sweeps import slurm
from capsule_sweeps.store import Run


def slurm_job_file(run: Run) -> Path | None:
    """The job.json of the submission under which a run was last at work; None when SLURM had no part in it."""
    attempts = run.record().get("attempts", [])
    submission = attempts[-1].get("submission") if attempts else None
    path = run.folder.parent / ".jobs" / str(submission) / "job.json"
    return path if submission and path.is_file() else None


def slurm_log(run: Run) -> Path | None:
    """What the SLURM job that last worked on a run printed."""
    path, attempts = slurm_job_file(run), run.record().get("attempts", [])
    log = None if path is None else path.with_name(f"{attempts[-1].get('job')}_0_log.out")
    return log if log is not None and log.is_file() else None


def whereabouts(runs_dir: Path, runs: pd.DataFrame) -> list[str]:
    """For each run what SLURM says of its job: why it waits, or its node and the time left. Empty for all others."""
    if not (runs_dir / ".jobs").is_dir():
        return [""] * len(runs)
    jobs = slurm.jobs() or []
    names, numbers = {job.name: job for job in reversed(jobs)}, {job.job_id: job for job in jobs}
    told = []
    for name, state in zip(runs.run, runs.state, strict=True):
        run, job = Run(runs_dir / name), None
        if state == "queued":
            job = names.get(str(run.ticket().get("submission")))
        elif state == "running":
            attempts = run.record().get("attempts", [])
            job = numbers.get(str(attempts[-1].get("job"))) if attempts else None
        told.append("" if job is None else str(job))
    return told
