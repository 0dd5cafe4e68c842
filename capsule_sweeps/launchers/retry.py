"""Run failed and interrupted runs again, from their stored configurations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from capsule_sweeps.config.check import check, home
from capsule_sweeps.launchers.launch import Launcher, find_launcher, launch
from capsule_sweeps.launchers.local import Launcher as LocalLauncher
from capsule_sweeps.runs.files import read_json
from capsule_sweeps.runs.plan import Policy
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.signature import signature, signed_config
from capsule_sweeps.runs.where import lost
from capsule_sweeps.tracking.base import distrust


def retry(runs_dir: Path, runs: pd.DataFrame, parallel: int | str, changes: Sequence[str] = ()) -> bool:
    """Run the failed and interrupted among these runs again, from their stored configurations. True if all finish.

    `changes` are overrides that say where the images are now: data_dir=…, dataset.root=….

    Those that a queue ran are given to it again, with the settings of that submission, where that queue is available.
    """
    states = zip(runs.run, runs.state, strict=True)
    names = [name for name, state in states if state in ("failed", "interrupted") or lost(Run(runs_dir / name))]
    if not names:
        raise ValueError("nothing to retry: none of these runs is failed or interrupted")
    here: Launcher = LocalLauncher(parallel)
    launchers: dict[Path, Launcher] = {}  # by the files of their submissions
    configs: dict[Path | None, dict[str, DictConfig]] = defaultdict(dict)
    for name in names:
        run, config = Run(runs_dir / name), stored_config(runs_dir, name)
        for change in changes:
            key, _, value = change.partition("=")
            OmegaConf.update(config, key, home(value))
        entry = run.entry()
        folder = None if entry is None else entry.folder
        if entry is not None and folder is not None and folder not in launchers:
            settings = read_json(folder / "job.json").get("settings")
            again = None if settings is None else find_launcher(entry.queue)(**settings)
            launchers[folder] = again if again is not None and again.available() else here
        configs[None if folder is None or launchers[folder] is here else folder][name] = config
    distrust([config for some in configs.values() for config in some.values()])
    finished = True
    for folder, some in sorted(configs.items(), key=lambda item: item[0] is None):  # here last: it takes its time
        launcher = here if folder is None else launchers[folder]
        accuracies = launch(list(some.values()), [[name] for name in some], Policy(), launcher)
        finished = finished and not (launcher.waits and None in accuracies)
    return finished


def stored_config(runs_dir: Path, name: str) -> DictConfig:
    """The configuration that a run was made with. Raises ValueError when it is damaged or was edited."""
    run, path = Run(runs_dir / name), runs_dir / name / "config.yaml"
    try:
        queued = run.queue_entry().get("config")  # all there is of a run whose job ended before it started
        stored = queued if queued and not path.exists() else OmegaConf.to_container(OmegaConf.load(path))
        config = check(OmegaConf.create(stored))  # type: ignore[arg-type]
    except Exception as error:
        raise ValueError(f"{path} cannot be used ({' '.join(str(error).split())}); run it from scratch") from error
    run.compare(signed_config(config), run.record())
    if signature(signed_config(config)) != name[-8:]:
        raise ValueError(f"{path} describes another run than {name}: it was edited; bring the old one back")
    config.runs_dir = str(runs_dir)
    return config
