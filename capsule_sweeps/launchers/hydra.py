"""The sweeper and launchers that Hydra finds through hydra_plugins. Imported at every start: no heavy imports."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log, env_override
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from capsule_sweeps.config.compose import compose_points, store_settings
from capsule_sweeps.config.errors import one_sentence
from capsule_sweeps.config.points import MAX_RUNS, sweep_points
from capsule_sweeps.config.selection_rules import find_rule
from capsule_sweeps.console import missing_package
from capsule_sweeps.display import terminal
from capsule_sweeps.launchers.launch import Launcher as RunLauncher
from capsule_sweeps.launchers.launch import find_launcher, launch
from capsule_sweeps.launchers.seed_units import MAX_SEEDS, MIN_SEEDS, Procedure
from capsule_sweeps.launchers.seeds import group_seeds, launch_seeds
from capsule_sweeps.runs.plan import Policy
from capsule_sweeps.runs.run import Busy, Run
from capsule_sweeps.runs.signature import run_name, signature, signed_config

log = logging.getLogger(__name__)

for kind, cls in (("local", "LocalLauncher"), ("slurm", "SlurmLauncher")):
    store_settings(kind, f"hydra_plugins.capsule_sweeps.{cls}", Policy, find_launcher(kind))


class NotFinished(RuntimeError):
    """The result of a run without an accuracy, for sweepers that learn from results."""


def plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


class GridSweeper(Sweeper):
    """Every combination of the values given, in one batch. Unlike Hydra's own it writes no files of its own.

    `params` and `points` (hydra.sweeper.params and points, which an experiment sets): see `sweep_points`.
    """

    def __init__(
        self,
        params: Any = None,
        points: Any = None,
        max_runs: int = MAX_RUNS,
        half_width: float | None = None,
        min_seeds: int = MIN_SEEDS,
        max_seeds: int = MAX_SEEDS,
        resolve: str | None = None,
    ) -> None:
        self.params, self.points, self.max_runs = plain(params or {}), plain(points or []), max_runs
        self.half_width = half_width
        self.more: dict[str, Any] = {"min_seeds": min_seeds, "max_seeds": max_seeds, "resolve": resolve}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader = hydra_context.config_loader
        self.launcher: SweepLauncher = Plugins.instance().instantiate_launcher(  # type: ignore[assignment]
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        with user_errors():
            points = sweep_points(arguments, self.params, self.points, self.loader, self.max_runs)
            experiments = {word for point in points for word in point if word.lstrip("+").startswith("experiment=")}
            if len(experiments) > 1:
                raise ValueError("experiment takes one name: each experiment is a sweep of its own")
            self.launcher.procedure = procedure = self.procedure()
            if procedure and (runs := len(group_seeds(points, procedure)) * procedure.max_seeds) > self.max_runs:
                raise ValueError(
                    f"this sweep may have {runs} runs with hydra.sweeper.max_seeds={procedure.max_seeds}, more than "
                    f"hydra.sweeper.max_runs={self.max_runs}: set one of them to another number"
                )
        jobs = self.launcher.launch(points, initial_job_idx=0)
        if any(job.status == JobStatus.FAILED for job in jobs):
            sys.exit(1)
        return jobs

    def procedure(self) -> Procedure | None:
        """The procedure that chooses the number of seeds; None for the seeds of the sweep. Raises ValueError."""
        if self.half_width is not None:
            return Procedure(self.half_width, **self.more)
        for name, value in self.more.items():
            if value != {"min_seeds": MIN_SEEDS, "max_seeds": MAX_SEEDS}.get(name):
                raise ValueError(f"hydra.sweeper.{name}={value} has no effect: set hydra.sweeper.half_width=… as well")
        return None


class SweepLauncher(Launcher):
    """Composes and checks the points of a sweep, then hands over to `launch`.

    `kind`, which an option of conf/hydra/launcher may set, says where they run: launchers/<kind>.py, or
    launchers/<kind>/ for a queue.
    """

    kind = "local"
    procedure: Procedure | None = None  # a sweeper may set how many seeds each point gets

    def __init__(self, **settings: Any) -> None:
        self.settings = {key: plain(value) for key, value in settings.items()}

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
            policy, launcher = make_launcher({**self.settings, "kind": self.settings.get("kind") or self.kind})
            compose = partial(compose_points, self.loader, self.master)
            sweeper = str(self.master.hydra.sweeper._target_)
            if not launcher.waits and not sweeper.endswith("GridSweeper"):
                raise ValueError(f"{sweeper} learns from results: set hydra.launcher.wait=true")
            if self.procedure:
                made = launch_seeds(job_overrides, compose, policy, launcher, self.procedure)
                job_overrides, configs, accuracies = made
            else:
                configs = compose(job_overrides)
                if initial_job_idx == 0 and not sweeper.endswith(("GridSweeper", "BasicSweeper")):
                    warn_of_test_images(configs[0].selection_rule)
                accuracies = launch(configs, job_overrides, policy, launcher)
        if policy.dry_run:
            sys.exit(0)  # a sweeper has nothing to learn from it
        missing = JobStatus.FAILED if launcher.waits else JobStatus.UNKNOWN
        ended = []
        for overrides, config, accuracy in zip(job_overrides, configs, accuracies, strict=True):
            result: Any = NotFinished(unfinished(config)) if accuracy is None else accuracy
            status = missing if accuracy is None else JobStatus.COMPLETED
            ended.append(JobReturn(overrides=overrides, cfg=config, status=status, _return_value=result))
        return ended


class LocalLauncher(SweepLauncher):
    """Runs the missing runs of a sweep on this machine, in this process or, with `parallel`, in a pool of processes."""


class SlurmLauncher(SweepLauncher):
    """Submits the missing runs of a sweep to SLURM and returns, or follows them with `wait`."""

    kind = "slurm"


def warn_of_test_images(rule: str) -> None:
    """For sweepers that choose settings by the accuracies of earlier runs."""
    if find_rule(rule).images == "test":
        log.warning(
            "this search chooses settings by test images (selection_rule=%s), so its best accuracy is too high; set "
            "dataset.val_size=… selection_rule=val_last",
            rule,
        )


def unfinished(config: DictConfig) -> str:
    """Why a run has no accuracy, for sweepers that learn from results."""
    signed = signed_config(config)
    run = Run(Path(config.runs_dir) / run_name(config, signature(signed)))
    record = run.record()
    why = " ".join(str(record.get("error") or record.get("failure") or "").split()[:40])
    return f"{run.folder.name} is {run.state(record)}" + (f": {why}" if why else "")


def make_launcher(settings: dict[str, Any]) -> tuple[Policy, RunLauncher]:
    """The policy and the launcher of the settings `hydra.launcher`; `kind`, or else `_target_`, names the launcher.

    Raises ValueError for an unknown setting.
    """
    settings = dict(settings)
    target = settings.pop("_target_", None)
    kind = settings.pop("kind", None) or cast(type[SweepLauncher], get_class(target)).kind
    chosen = find_launcher(kind)
    names = {entry.name for entry in fields(Policy)}
    own = {entry.name for entry in fields(chosen)}
    if others := sorted(settings.keys() - names - own):
        known = ", ".join(sorted(names | own))
        raise ValueError(f"hydra.launcher.{others[0]} is unknown; settings are {known}")
    policy = Policy(**{name: value for name, value in settings.items() if name in names})
    return policy, chosen(**{name: value for name, value in settings.items() if name in own})


@contextmanager
def user_errors() -> Iterator[None]:
    """While open, errors that the user can fix end the program with one sentence, and so does Ctrl-C."""
    try:
        with one_sentence():
            yield
    except ModuleNotFoundError as error:
        sys.exit(f"Error: {missing_package(error)}")
    except (ValueError, OSError, Busy) as error:
        sys.exit(f"Error: {terminal(error)}")
    except KeyboardInterrupt:
        sys.exit(130)
