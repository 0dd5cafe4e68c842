"""The sweeper and launchers that Hydra finds through hydra_plugins. Imported at every start: no heavy imports."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log, env_override
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from capsule_sweeps.config.check import check
from capsule_sweeps.config.compose import MAX_RUNS, compose_points, one_sentence, store_settings, sweep_points
from capsule_sweeps.launchers.launch import launch, launch_on_slurm
from capsule_sweeps.launchers.pool import make_slots
from capsule_sweeps.launchers.slurm.settings import Settings
from capsule_sweeps.runs.plan import Policy
from capsule_sweeps.runs.run import Busy

log = logging.getLogger(__name__)


@dataclass
class LocalSettings:
    """The launcher `local`'s own settings, beside the Policy: runs at once, and how many may share a GPU."""

    parallel: Any = 1  # a number or auto, which make_slots checks
    runs_per_gpu: Any = 1


store_settings("local", "hydra_plugins.capsule_sweeps.LocalLauncher", Policy, LocalSettings)
store_settings("slurm", "hydra_plugins.capsule_sweeps.SlurmLauncher", Policy, Settings)


class GridSweeper(Sweeper):
    """Every combination of the values given, in one batch. Unlike Hydra's own it writes no files of its own.

    `params` (hydra.sweeper.params, which an experiment sets) are overrides as well; those of the command line win.
    """

    def __init__(self, params: dict[str, Any] | None = None, max_runs: int = MAX_RUNS) -> None:
        self.params, self.max_runs = params or {}, max_runs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader = hydra_context.config_loader
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        with user_errors():
            params = [f"{key}={value}" for key, value in self.params.items()]
            points = sweep_points(arguments, params, self.loader, self.max_runs)
            experiments = {word for point in points for word in point if word.lstrip("+").startswith("experiment=")}
            if len(experiments) > 1:
                raise ValueError("experiment takes one name: each experiment is a sweep of its own")
        jobs = self.launcher.launch(points, initial_job_idx=0)
        if any(job.status == JobStatus.FAILED for job in jobs):
            sys.exit(1)
        return jobs


class SweepLauncher(Launcher):
    """Composes and checks the points of a sweep; `apply` plans and runs them, with the launcher's own `settings`."""

    def __init__(self, **settings: Any) -> None:
        self.settings = {
            key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for key, value in settings.items()
        }

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader, self.master = hydra_context.config_loader, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        HydraConfig.instance().set_config(self.master)
        configure_log(self.master.hydra.job_logging, self.master.hydra.verbose)
        if callbacks := list(self.master.hydra.get("callbacks") or {}):
            log.warning(
                "hydra.callbacks.%s: a sweep calls on_multirun_start and on_multirun_end, no callback of its jobs",
                callbacks[0],
            )
        with user_errors(), env_override(self.master.hydra.job.env_set):
            policy, settings = split_settings(self.settings, self.known())
            configs = compose_points(self.loader, self.master, job_overrides)
            accuracies = self.apply(configs, job_overrides, policy, settings)
        if policy.dry_run:
            sys.exit(0)  # a sweeper has nothing to learn from it
        return [
            JobReturn(overrides=overrides, cfg=config, status=JobStatus.COMPLETED, _return_value=accuracy)
            if accuracy is not None
            else JobReturn(
                overrides=overrides, cfg=config, status=self.missing, _return_value=RuntimeError("not finished")
            )
            for overrides, config, accuracy in zip(job_overrides, configs, accuracies, strict=True)
        ]

    @property
    def missing(self) -> JobStatus:
        """What it means, when all is done, that a run has no accuracy."""
        return JobStatus.FAILED

    def known(self) -> set[str]:
        """The names of the launcher's own settings."""
        raise NotImplementedError

    def apply(
        self,
        configs: Sequence[DictConfig],
        overrides: Sequence[Sequence[str]],
        policy: Policy,
        settings: dict[str, Any],
    ) -> list[float | None]:
        """The accuracies (fractions) of these points, None where a run is not finished."""
        raise NotImplementedError


class LocalLauncher(SweepLauncher):
    """Runs what is missing of a sweep on this machine, in this process or, with `parallel`, in a pool of processes."""

    def known(self) -> set[str]:
        return {entry.name for entry in fields(LocalSettings)}

    def apply(
        self,
        configs: Sequence[DictConfig],
        overrides: Sequence[Sequence[str]],
        policy: Policy,
        settings: dict[str, Any],
    ) -> list[float | None]:
        parallel, devices = settings.get("parallel", 1), {str(config.device) for config in configs}
        if policy.dry_run:  # nothing that needs torch to be answered
            parallel, devices = 1 if parallel == "auto" else parallel, {"cpu"}
        return launch(configs, overrides, policy, make_slots(parallel, settings.get("runs_per_gpu", 1), devices))


class SlurmLauncher(SweepLauncher):
    """Gives what is missing of a sweep to SLURM and returns, or follows it with `wait`."""

    def known(self) -> set[str]:
        return {entry.name for entry in fields(Settings)}

    @property
    def missing(self) -> JobStatus:
        return JobStatus.FAILED if self.settings.get("wait") else JobStatus.UNKNOWN

    def apply(
        self,
        configs: Sequence[DictConfig],
        overrides: Sequence[Sequence[str]],
        policy: Policy,
        settings: dict[str, Any],
    ) -> list[float | None]:
        cluster = Settings(**settings)
        sweeper = str(self.master.hydra.sweeper._target_)
        if not cluster.wait and not sweeper.endswith("GridSweeper"):
            raise ValueError(f"{sweeper} learns from results: set hydra.launcher.wait=true")
        return launch_on_slurm(configs, overrides, policy, cluster)


def split_settings(settings: dict[str, Any], own: set[str]) -> tuple[Policy, dict[str, Any]]:
    """A launcher's settings: the Policy, and the launcher's own. Raises ValueError for an unknown one."""
    names = {entry.name for entry in fields(Policy)}
    if unknown := sorted(settings.keys() - names - own):
        known = ", ".join(sorted(names | own))
        raise ValueError(f"hydra.launcher.{unknown[0]} is unknown; there are {known}")
    policy = Policy(**{name: value for name, value in settings.items() if name in names})
    return policy, {name: value for name, value in settings.items() if name in own}


def launch_one(config: DictConfig) -> float | None:
    """One run: its accuracy under config.selection_rule. Ends the program when the run does not finish."""
    hydra = HydraConfig.get()
    with user_errors():
        launcher = hydra.runtime.choices["hydra/launcher"]
        if hydra.mode == RunMode.MULTIRUN:  # our launchers plan sweeps, and start no jobs of Hydra's
            raise ValueError(
                f"hydra/launcher={launcher} is not available for sweeps: set hydra/launcher=local "
                "(hydra.launcher.parallel=N for N runs at once) or hydra/launcher=slurm"
            )
        if launcher != "local":
            raise ValueError(f"hydra/launcher={launcher} is for sweeps: add -m behind launch.py")
        policy = Policy(**{entry.name: hydra.launcher[entry.name] for entry in fields(Policy)})
        (accuracy,) = launch([check(config)], [hydra.overrides.task], policy, make_slots(1, 1, set()))
    if accuracy is None and not policy.dry_run:
        sys.exit(1)
    return accuracy


@contextmanager
def user_errors() -> Iterator[None]:
    """While open, what a user can mend ends the program with its sentence alone, and so does Ctrl-C."""
    try:
        with one_sentence():
            yield
    except (ValueError, OSError, Busy) as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


@contextmanager
def hydra_errors() -> Iterator[None]:
    """The same for what Hydra raises before it calls us, unless HYDRA_FULL_ERROR=1 asks for tracebacks."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        yield
        return
    try:
        with env_override({"HYDRA_FULL_ERROR": "1"}), one_sentence():  # else Hydra prints it, in its own words
            yield
    except ValueError as error:
        if not isinstance(error.__cause__, HydraException | OmegaConfBaseException | RecursionError):
            raise
        sys.exit(f"Error: {error}")
