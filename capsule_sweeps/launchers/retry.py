"""Run failed and interrupted runs again, from their stored configurations."""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from capsule_sweeps.config.check import check
from capsule_sweeps.launchers.slurm import queue as slurm
from capsule_sweeps.launchers.slurm.where import slurm_job_file
from capsule_sweeps.runs.files import read_json
from capsule_sweeps.runs.run import Run
from capsule_sweeps.runs.signature import science, signature


def retry(runs_dir: Path, runs: pd.DataFrame, parallel: int | str) -> bool:
    """Run the failed and interrupted among these runs again, from their stored configurations. True if all finish.

    Those that SLURM ran are given to it again, with the settings of that submission, where there is a SLURM.
    """
    from capsule_sweeps.launchers.launch import launch, launch_on_slurm
    from capsule_sweeps.launchers.pool import make_slots
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
        from capsule_sweeps.launchers.slurm.settings import Settings

        cluster = Settings(**read_json(job).get("settings", {}))
        accuracies = launch_on_slurm(list(configs.values()), [[name] for name in configs], Policy(), cluster)
        finished = finished and not (cluster.wait and None in accuracies)
    if not here:
        return finished
    slots = make_slots(parallel, 1, {config.device for config in here.values()})
    accuracies = launch(list(here.values()), [[name] for name in here], Policy(), slots)
    return finished and None not in accuracies
