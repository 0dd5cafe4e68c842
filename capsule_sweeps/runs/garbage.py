"""What nobody needs any more in a runs folder."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from capsule_sweeps.runs.queue import FIRST, Entry, find_queue
from capsule_sweeps.runs.record import JOB, read_typed
from capsule_sweeps.runs.run import find_runs

TEMPORARY = re.compile(r"\.(.+)\.(\d+)\.(\d+)\.tmp")
TEMPORARY_SECONDS = 3600  # younger ones may still be in the making


def garbage(runs_dir: Path) -> Iterator[tuple[Path, str, int]]:
    """(path, why, bytes) of what nobody needs: temporary files left by killed processes, superseded folders."""
    for folder in [runs_dir, *sorted(path for path in runs_dir.iterdir() if path.is_dir() and not path.is_symlink())]:
        for path in sorted(folder.iterdir()):
            old = TEMPORARY.fullmatch(path.name) and time.time() - path.lstat().st_mtime > TEMPORARY_SECONDS
            if old:
                size = size_of(path) if path.is_dir() else path.lstat().st_size
                yield path, "temporary file of a process that was killed", size
    yield from ended_jobs(runs_dir)
    shelf = runs_dir / ".superseded"
    if shelf.is_dir() and not shelf.is_symlink():
        for path in sorted(shelf.iterdir()):
            if not (runs_dir / path.name.rpartition(".")[0] / "summary.json").exists():
                continue  # what was to take its place is not finished yet
            yield path, "superseded: the run was made again with force", size_of(path)


def ended_jobs(runs_dir: Path) -> Iterator[tuple[Path, str, int]]:
    """Files of submissions with no job left and nothing unfinished, and code that no run and no such job needs.

    Code that a run in runs_dir was made with is kept: it belongs to where its numbers come from.
    """
    needed, known = set(), {run.folder.name: run for run in find_runs(runs_dir).values()}
    for run in known.values():
        needed |= {attempt.get("snapshot") for attempt in run.record().get("attempts", [])}
    for folder in sorted(path for path in (runs_dir / ".jobs").glob("*") if path.is_dir()):
        job = read_typed(folder / "job.json", JOB)
        left = [name for name in map(os.path.basename, job.get("runs", [])) if name in known]
        entry = Entry(str(job.get("queue", FIRST)), folder)
        young = time.time() - folder.stat().st_mtime < TEMPORARY_SECONDS  # perhaps about to be submitted
        if young or find_queue(entry.queue).is_active(entry) or any(known[name].state() != "finished" for name in left):
            needed.add(os.path.basename(job.get("snapshot", "")))
        else:
            yield folder, "jobs that ended, all their runs are finished", size_of(folder)
    for folder in sorted((runs_dir / ".code").glob("*")):
        if folder.name not in needed and time.time() - folder.stat().st_mtime > TEMPORARY_SECONDS:
            yield folder, "code that no job and no run needs", size_of(folder)


def size_of(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
