"""Files in a runs folder that are no longer needed."""

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from capsule_sweeps.runs.files import TEMPORARY
from capsule_sweeps.runs.folders import RUN_NAME, run_folders
from capsule_sweeps.runs.queue import FIRST, SUBMISSION, Entry, find_queue
from capsule_sweeps.runs.record import JOB, read_typed

TEMPORARY_SECONDS = 3600  # younger files may still be in use
JOBS = re.compile(SUBMISSION.pattern + r"|doctor-[0-9a-f]{6}", re.ASCII)
SNAPSHOT = re.compile(r"[0-9a-f]{16}(-\d+)?|\.staged-\w+")  # with a user's number if several users submit
RELEASED = re.compile(r"attempt-\d+\.released")
SUPERSEDED = re.compile(rf"({RUN_NAME.pattern})\.\d+")


def garbage(runs_dir: Path) -> Iterator[tuple[Path, str, int]]:
    """(path, reason, bytes) of files that are no longer needed: temporary files of killed processes, superseded
    folders."""
    for folder in [runs_dir, *sorted(path for path in runs_dir.iterdir() if path.is_dir() and not path.is_symlink())]:
        finished = RUN_NAME.fullmatch(folder.name) and (folder / "summary.json").exists()
        for path in sorted(folder.iterdir()):
            if finished and RELEASED.fullmatch(path.name):
                yield path, "lock of an attempt that has ended", 0
            old = TEMPORARY.fullmatch(path.name) and time.time() - path.lstat().st_mtime > TEMPORARY_SECONDS
            if old:
                size = size_of(path) if path.is_dir() else path.lstat().st_size
                yield path, "temporary file of a process that was killed", size
    yield from ended_jobs(runs_dir)
    for path in our_folders(runs_dir / ".superseded", SUPERSEDED):
        if not (runs_dir / path.name.rpartition(".")[0] / "summary.json").exists():
            continue  # its replacement is not finished yet
        yield path, "superseded: the run was repeated with force", size_of(path)


def ended_jobs(runs_dir: Path) -> Iterator[tuple[Path, str, int]]:
    """Files of submissions without jobs and unfinished runs, and snapshots of code that no run and no job needs.

    Snapshots with which a run in runs_dir was made are kept, as a part of its provenance.
    """
    needed, known = set(), {run.folder.name: run for run in run_folders(runs_dir)}
    for run in known.values():
        needed |= {attempt.get("snapshot") for attempt in run.record().get("attempts", [])}
    for folder in our_folders(runs_dir / ".jobs", JOBS):
        job = read_typed(folder / "job.json", JOB)
        left = [name for name in map(os.path.basename, job.get("runs", [])) if name in known]
        entry = Entry(str(job.get("queue", FIRST)), folder)
        young = time.time() - folder.stat().st_mtime < TEMPORARY_SECONDS  # may be about to be submitted
        if young or find_queue(entry.queue).is_active(entry) or any(known[name].state() != "finished" for name in left):
            needed.add(os.path.basename(job.get("snapshot", "")))
        else:
            yield folder, "its jobs have ended and all runs are finished", size_of(folder)
    for folder in our_folders(runs_dir / ".code", SNAPSHOT):
        if folder.name not in needed and time.time() - folder.stat().st_mtime > TEMPORARY_SECONDS:
            yield folder, "code that no job and no run needs", size_of(folder)


def our_folders(shelf: Path, names: re.Pattern[str]) -> list[Path]:
    """The folders in a shelf of runs_dir whose names have our pattern. Links are not followed."""
    if not shelf.is_dir() or shelf.is_symlink():
        return []
    with os.scandir(shelf) as entries:
        found = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False) and names.fullmatch(entry.name)]
    return [shelf / name for name in sorted(found)]


def size_of(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())


def remove(path: Path, runs_dir: Path) -> None:
    """Remove a path that `garbage` listed. Raises ValueError if it is no longer inside runs_dir."""
    if not path.parent.resolve().is_relative_to(runs_dir.resolve()):
        raise ValueError(f"{path} leads out of runs_dir={runs_dir}: nothing there is removed")
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)  # by directory handles: no link that appears meanwhile is followed
    else:
        path.unlink(missing_ok=True)
