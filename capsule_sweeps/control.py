"""Commands that change what happens to runs: cancel, retry, clean up."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from omegaconf import OmegaConf

from capsule_sweeps.config import check
from capsule_sweeps.owner import living_elsewhere, process_here
from capsule_sweeps.store import Run, science, signature

TEMPORARY = re.compile(r"\.(.+)\.(\d+)\.(\d+)\.tmp")
TEMPORARY_SECONDS = 3600  # younger ones may still be in the making


def cancel(runs_dir: Path, runs: pd.DataFrame, sweeps: Sequence[str]) -> list[str]:
    """Ask running runs to save and stop, and the launchers of these sweeps to start no more. Says what it did."""
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
    for name in runs.run[runs.state == "running"]:
        if Run(runs_dir / name).request_cancel():
            said.append(f"{name}: asked to save and stop; it is interrupted in a moment, the same command goes on")
    return said or ["nothing to cancel: none of these runs is running"]


def retry(runs_dir: Path, runs: pd.DataFrame, parallel: int | str) -> bool:
    """Run the failed and interrupted among these runs again, from their stored configurations. True if all finish."""
    from capsule_sweeps.launcher import launch
    from capsule_sweeps.plan import Policy
    from capsule_sweeps.pool import make_slots

    names = list(runs.run[runs.state.isin(["failed", "interrupted"])])
    if not names:
        raise ValueError("nothing to retry: none of these runs is failed or interrupted")
    configs = []
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
        configs.append(config)
    slots = make_slots(parallel, 1, {config.device for config in configs})
    accuracies = launch(configs, [[name] for name in names], Policy(), slots)
    return all(accuracy is not None for accuracy in accuracies)


def garbage(runs_dir: Path) -> Iterator[tuple[Path, str, int]]:
    """(path, why, bytes) of what nobody needs: temporary files left by killed processes, superseded folders."""
    for folder in [runs_dir, *sorted(path for path in runs_dir.iterdir() if path.is_dir() and not path.is_symlink())]:
        for path in sorted(folder.iterdir()):
            old = TEMPORARY.fullmatch(path.name) and time.time() - path.lstat().st_mtime > TEMPORARY_SECONDS
            if old and path.is_file():
                yield path, "temporary file of a process that was killed", path.lstat().st_size
    shelf = runs_dir / ".superseded"
    if shelf.is_dir() and not shelf.is_symlink():
        for path in sorted(shelf.iterdir()):
            if not (runs_dir / path.name.rpartition(".")[0] / "summary.json").exists():
                continue  # what was to take its place is not finished yet
            size = sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())
            yield path, "superseded: the run was made anew with force", size


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
