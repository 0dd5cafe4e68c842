"""Run failed and interrupted runs again, from their stored configurations."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from capsule_sweeps.config.check import check, home
from capsule_sweeps.display import say
from capsule_sweeps.launchers.launch import Launcher, find_launcher, launch
from capsule_sweeps.launchers.local import Launcher as LocalLauncher
from capsule_sweeps.launchers.snapshot import is_private
from capsule_sweeps.launchers.submit import QueueLauncher
from capsule_sweeps.runs.files import read_json
from capsule_sweeps.runs.plan import Policy
from capsule_sweeps.runs.queue import SUBMISSION, Entry
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.signature import signature, signed_config
from capsule_sweeps.runs.stored import plain_config
from capsule_sweeps.runs.where import lost
from capsule_sweeps.tracking.base import distrust


def retry(
    runs_dir: Path, runs: pd.DataFrame, parallel: int | str, changes: Sequence[str] = (), dry_run: bool = False
) -> bool:
    """Run the failed and interrupted among these runs again, from their stored configurations. True if all finish.

    `changes` are overrides for images that have moved: data_dir=…, dataset.root=…. With `dry_run` only plans are shown.

    Runs of a queue are submitted to it again, with the settings of that submission, if the queue is available.
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
            again = same_launcher(entry, name)
            launchers[folder] = again if again is not None and again.available() else here
        configs[None if folder is None or launchers[folder] is here else folder][name] = config
    distrust([config for some in configs.values() for config in some.values()])
    finished = True
    for folder, some in sorted(configs.items(), key=lambda item: item[0] is None):  # here last: it takes its time
        launcher = here if folder is None else launchers[folder]
        accuracies = launch(list(some.values()), [[name] for name in some], Policy(dry_run), launcher)
        finished = finished and not (launcher.waits and None in accuracies)
    return finished


def same_launcher(entry: Entry, name: str) -> QueueLauncher | None:
    """The launcher of a submission with its settings, which are printed; None if the submission is gone.

    Raises ValueError if other users may have written the settings, because `setup` is shell code.
    """
    path = entry.folder / "job.json"
    if not SUBMISSION.fullmatch(entry.submission) or not path.exists():
        return None
    found = find_launcher(entry.queue)
    if not found().available():
        return None
    if not is_private(entry.folder):
        raise ValueError(
            f"{name} was given to {entry.queue} by another user, or others can write {entry.folder}: settings from "
            f"there are not used; run it with launch.py and settings of your own, hydra/launcher={entry.queue}"
        )
    try:
        launcher = found(**read_json(path)["settings"])
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}); run {name} with launch.py") from error
    usual = found().settings()
    changed = ", ".join(f"{key}={value}" for key, value in launcher.settings().items() if value != usual[key])
    say(f"Settings of {entry.submission}: {changed or 'the usual ones'}")
    return cast(QueueLauncher, launcher)


def stored_config(runs_dir: Path, name: str) -> DictConfig:
    """The configuration of a run. Raises ValueError if it is damaged or was edited."""
    run = Run(runs_dir / name)
    queued = run.queue_entry().get("config")  # the only source if the job ended before the run started
    config = check(plain_config(queued)) if queued and not (run.folder / "config.yaml").exists() else run.config()
    run.compare(signed_config(config), run.record())
    if signature(signed_config(config)) != name[-8:]:
        raise ValueError(f"{run.folder / 'queued.json'} describes another run than {name}: run it from scratch")
    config.runs_dir = str(runs_dir)
    return config
