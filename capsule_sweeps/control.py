"""Commands that change what happens to runs: cancel, retry, clean up."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from capsule_sweeps import slurm
from capsule_sweeps.config.check import check
from capsule_sweeps.runs.files import read_json
from capsule_sweeps.runs.lock import living_elsewhere, process_here
from capsule_sweeps.runs.run import Run, find_runs
from capsule_sweeps.runs.signature import science, signature
from capsule_sweeps.whereabouts import slurm_job_file

TEMPORARY = re.compile(r"\.(.+)\.(\d+)\.(\d+)\.tmp")
TEMPORARY_SECONDS = 3600  # younger ones may still be in the making


def cancel(runs_dir: Path, runs: pd.DataFrame, sweeps: Sequence[str]) -> list[str]:
    """Ask running runs to save and stop, and the launchers of these sweeps to start no more. Says what it did.

    Queued runs are taken out of the queue; jobs that go on, for other runs, find nothing to do for them.
    """
    said = []
    for name in sweeps:
        pid = process_here(runs_dir / ".sweeps" / f"{name}.json")
        if pid is not None and pid != os.getpid():
            try:
                os.kill(pid, signal.SIGTERM)
            except OSError as error:
                raise ValueError(f"{name}: its launcher, process {pid}, cannot be told ({error.strerror})") from error
            said.append(f"{name}: its launcher (process {pid}) was asked to save and stop")
        elif pid is None and (host := living_elsewhere(runs_dir / ".sweeps" / f"{name}.json")):
            said.append(f"{name}: its launcher may run on {host}, out of reach from here; cancel it there")
    emptied = set()
    for name in runs.run[runs.state.isin(["queued", "running"])]:
        run = Run(runs_dir / name)
        emptied.add(run.ticket().get("submission"))
        run.dequeue()
        if run.request_cancel():  # a job may have begun with it since we looked
            said.append(f"{name}: asked to save and stop; it is interrupted in a moment, the same command goes on")
        else:
            said.append(f"{name}: taken out of the queue")
    left = {Run(path.parent).ticket().get("submission") for path in runs_dir.glob("*/queued.json")}
    for submission in emptied - left - {None}:
        if slurm.cancel(str(submission), "--state=PENDING"):
            said.append(f"{submission}: nothing is left to do; its jobs that have not started were cancelled in SLURM")
        else:
            said.append(f"{submission}: SLURM does not answer here; its jobs find nothing to do and end by themselves")
    return said or ["nothing to cancel: none of these runs is running or queued"]


def retry(runs_dir: Path, runs: pd.DataFrame, parallel: int | str) -> bool:
    """Run the failed and interrupted among these runs again, from their stored configurations. True if all finish.

    Those that SLURM ran are given to it again, with the settings of that submission, where there is a SLURM.
    """
    from capsule_sweeps.launcher import launch, launch_on_slurm
    from capsule_sweeps.pool import make_slots
    from capsule_sweeps.runs.plan import Policy

    names = list(runs.run[runs.state.isin(["failed", "interrupted"])])
    if not names:
        raise ValueError("nothing to retry: none of these runs is failed or interrupted")
    here: dict[str, DictConfig] = {}
    queued: dict[Path, dict[str, DictConfig]] = defaultdict(dict)
    for name in names:
        path = runs_dir / name / "config.yaml"
        try:
            config = check(OmegaConf.create(OmegaConf.to_container(OmegaConf.load(path))))  # type: ignore[arg-type]
        except Exception as error:
            raise ValueError(f"{path} cannot be used ({' '.join(str(error).split())}); start the run anew") from error
        run = Run(runs_dir / name)
        run.compare(science(config), run.record())
        if signature(science(config)) != name[-8:]:
            raise ValueError(f"{path} describes another run than {name}: it was edited; bring the old one back")
        config.runs_dir = str(runs_dir)
        job = slurm_job_file(run)
        (queued[job] if job is not None and shutil.which("sbatch") else here)[name] = config
    if queued and slurm.settings() is None:
        raise ValueError("SLURM ran some of these and does not answer now; try again when it does (`scontrol ping`)")
    finished = True
    for job, configs in queued.items():
        from capsule_sweeps.submit import Settings

        cluster = Settings(**read_json(job).get("settings", {}))
        accuracies = launch_on_slurm(list(configs.values()), [[name] for name in configs], Policy(), cluster)
        finished = finished and not (cluster.wait and None in accuracies)
    if not here:
        return finished
    slots = make_slots(parallel, 1, {config.device for config in here.values()})
    accuracies = launch(list(here.values()), [[name] for name in here], Policy(), slots)
    return finished and None not in accuracies


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
            yield path, "superseded: the run was made anew with force", size_of(path)


def ended_jobs(runs_dir: Path) -> Iterator[tuple[Path, str, int]]:
    """Files of submissions with no job left and nothing unfinished, and code that no run and no such job needs.

    Code that a run in runs_dir was made with is kept: it belongs to where its numbers come from.
    """
    needed, known = set(), {run.folder.name: run for run in find_runs(runs_dir).values()}
    for run in known.values():
        needed |= {attempt.get("snapshot") for attempt in run.record().get("attempts", [])}
    for folder in sorted(path for path in (runs_dir / ".jobs").glob("*") if path.is_dir()):
        job = read_json(folder / "job.json")
        left = [name for name in map(os.path.basename, job.get("runs", [])) if name in known]
        young = time.time() - folder.stat().st_mtime < TEMPORARY_SECONDS  # perhaps about to be submitted
        if young or slurm.is_active(folder.name) or any(known[name].state() != "finished" for name in left):
            needed.add(os.path.basename(job.get("snapshot", "")))
        else:
            yield folder, "SLURM jobs that ended, all their runs are finished", size_of(folder)
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
