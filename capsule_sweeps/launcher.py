"""Plan, then apply: shows what a command asks for, runs what is missing, ends with the table.

Hydra finds the classes through hydra_plugins; it imports this file at every start, so nothing heavy stands at its top.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from capsule_sweeps.config.check import check
from capsule_sweeps.pool import Slot, make_slots, run_pool
from capsule_sweeps.progress import Display
from capsule_sweeps.runs.files import read_json, write_json
from capsule_sweeps.runs.lock import owner
from capsule_sweeps.runs.plan import Point, Policy, compose_points, make_plan, show_plan
from capsule_sweeps.runs.run import Busy, check_runs_dir
from capsule_sweeps.runs.signals import Interrupted, Stop, stop_signals
from capsule_sweeps.runs.signature import science, signature
from capsule_sweeps.tracking.wandb import agent_id, choose_mode

if TYPE_CHECKING:
    from capsule_sweeps.submit import Settings

log = logging.getLogger(__name__)


class GridSweeper(Sweeper):
    """Every combination of the values given, in one batch. Unlike Hydra's own it writes no files of its own.

    `params` (hydra.sweeper.params, which an experiment sets) are overrides, too; those of the command line win.
    """

    def __init__(self, params: dict[str, Any] | None = None) -> None:
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader = hydra_context.config_loader
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
        from hydra.core.override_parser.overrides_parser import OverridesParser

        parser = OverridesParser.create(config_loader=self.loader)
        overrides = parser.parse_overrides(arguments)
        given = {override.key_or_group for override in overrides}
        if any(override.key_or_group == "experiment" and override.is_sweep_override() for override in overrides):
            sys.exit("Error: experiment takes one name: each experiment is a sweep of its own")
        params = [f"{key}={value}" for key, value in self.params.items() if key not in given]
        overrides = [*parser.parse_overrides(params), *overrides]
        (points,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
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
        with user_errors():
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
        return {"parallel", "runs_per_gpu"}

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
        from capsule_sweeps.submit import Settings

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
        from capsule_sweeps.submit import Settings

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
        if hydra.runtime.choices["hydra/launcher"] != "local":
            raise ValueError(
                f"hydra/launcher={hydra.runtime.choices['hydra/launcher']} is for sweeps: add -m behind launch.py"
            )
        policy = Policy(**{entry.name: hydra.launcher[entry.name] for entry in fields(Policy)})
        (accuracy,) = launch([check(config)], [hydra.overrides.task], policy, make_slots(1, 1, set()))
    if accuracy is None and not policy.dry_run:
        sys.exit(1)
    return accuracy


def launch(
    configs: Sequence[DictConfig], overrides: Sequence[Sequence[str]], policy: Policy, slots: Sequence[Slot]
) -> list[float | None]:
    """Run what is missing of some points. Returns their accuracies (fractions), None where a run did not finish.

    Raises ValueError, before any run starts, when one of them cannot; SystemExit after a signal.
    """
    if any(config.debug for config in configs):
        with TemporaryDirectory() as folder:
            return launch([scratch(config, folder) for config in configs], overrides, policy, slots)
    plan = make_plan(configs, overrides, policy)
    show_plan(plan, len(configs), len(slots))
    todo = [point for point in plan if point.to_do]
    if policy.dry_run:
        return [None] * len(configs)
    if todo:
        preflight(plan)
        choose_mode([point.config for point in todo])
        sweep = record_sweep(plan, owner())
        with stop_signals() as stop:
            if len(slots) == 1:
                run_here(todo, sweep, stop)
            else:
                waiting = deque(todo)
                run_pool(lambda: waiting.popleft() if waiting else None, len(todo), sweep, slots, stop)
    elif agent_id():
        show_agent(plan)
    show_results(plan, configs[0].selection_rule)
    left = sum(point.run.state() != "finished" for point in plan)
    if todo and stop.signum and left:
        print(f"{Interrupted(stop.signum)}; {left} runs are not finished: the same command goes on", file=sys.stderr)
        sys.exit(128 + stop.signum)
    accuracies = {point.signature: accuracy(point) for point in plan}
    return [accuracies[signature(science(config))] for config in configs]


def launch_on_slurm(
    configs: Sequence[DictConfig], overrides: Sequence[Sequence[str]], policy: Policy, cluster: Settings
) -> list[float | None]:
    """Queue what is missing of some points. Returns the accuracies of those that are finished (all, with `wait`).

    Raises ValueError, with nothing changed in the ledger, when something is wrong here or SLURM refuses.
    """
    from capsule_sweeps.submit import follow, submit

    if any(config.debug for config in configs):
        raise ValueError("debug=true runs here and leaves nothing: leave out hydra/launcher")
    plan = make_plan(configs, overrides, policy)
    todo = [point for point in plan if point.to_do]
    show_plan(plan, len(configs), cluster.num_parallel(len(todo)))
    if policy.dry_run:
        return [None] * len(configs)
    if todo:
        preflight(plan, devices=False)  # those of a login node are not those of a compute node
        choose_mode([point.config for point in todo])
        submit(todo, sweep_name(plan), cluster)
    record_sweep(plan, {})
    if cluster.wait:
        follow(plan)
    if cluster.wait or not todo:
        show_results(plan, configs[0].selection_rule)
    accuracies = {point.signature: accuracy(point) for point in plan}
    return [accuracies[signature(science(config))] for config in configs]


def show_agent(plan: Sequence[Point]) -> None:
    """W&B's agent asked for a run that is finished: it gets its own copy in W&B, or would wait for it in vain."""
    from capsule_sweeps.tracking.wandb_sync import show_finished

    choose_mode([point.config for point in plan])
    for point in plan:
        show_finished(point.config, point.run)


def scratch(config: DictConfig, folder: str) -> DictConfig:
    """The config for debug=true: the same training in a folder that is thrown away, without checkpoints and W&B."""
    changes = {"runs_dir": folder, "debug": False, "tracking": {"name": "none"}, "training": {"checkpoint_epochs": 0}}
    return DictConfig(OmegaConf.merge(config, changes))


def preflight(plan: Sequence[Point], devices: bool = True) -> None:
    """Raises ValueError for whatever would keep a run from starting: folders, device, stack, data. Starts nothing.

    The data that are opened for it must be those of the runs of this plan that exist already.
    """
    import torch

    from capsule_sweeps.data.load import load_data
    from capsule_sweeps.networks.build import build_model
    from capsule_sweeps.training.execution import choose_device

    configs = [point.config for point in plan if point.to_do]
    for runs_dir in {str(config.runs_dir) for config in configs}:
        check_runs_dir(Path(runs_dir))
    for device in {str(config.device) for config in configs} if devices else set():
        choose_device(device)
    with torch.device("meta"):
        for config in _distinct(configs, "model", "dataset"):
            build_model(config)
    for config in _distinct(configs, "dataset", "data_dir"):
        data = load_data(config.dataset, Path(config.data_dir), torch.device("cpu"))
        for point in plan:
            same = all(point.config[key] == config[key] for key in ("dataset", "data_dir"))
            if same and point.to_do:
                check_batch_size(point.config, len(data.train))
            if same and point.action != "run anew":
                point.run.compare_data(data.sha256)


def check_batch_size(config: DictConfig, num_images: int) -> None:
    """Raises ValueError for batches larger than the data set: an epoch would be one step, of whatever size is asked."""
    if config.training.batch_size > num_images:
        raise ValueError(
            f"training.batch_size={config.training.batch_size} is more than the {num_images} training images of "
            f"{config.dataset.name}: set it to {num_images} or less"
        )


def _distinct(configs: Sequence[DictConfig], *keys: str) -> list[DictConfig]:
    """The first config of each combination of values of some keys."""
    return list({repr([config[key] for key in keys]): config for config in reversed(configs)}.values())


def run_here(todo: Sequence[Point], sweep: str, stop: Stop) -> None:
    """One run after the other; what ends one leaves the others alone, except a signal."""
    from capsule_sweeps.training.train import train

    with Display() as display:
        for point in todo:
            try:
                point.clear()
                train(point.config, point.run, sweep, display, stop)
            except Interrupted as interrupted:
                log.warning("%s: %s", point.run.folder.name, interrupted)
            except Busy as busy:
                log.warning("%s: left alone, %s", point.run.folder.name, busy)
            except Exception as error:
                log.error("%s: failed, %s: %s", point.run.folder.name, type(error).__name__, error)
            if stop.signum:
                return


def show_results(plan: Sequence[Point], rule: str) -> None:
    """The table at the end: accuracy by dataset and num_routing over seeds, of the runs of this plan."""
    from capsule_sweeps.results import accuracy_table, notes, render, runs_frame

    runs = runs_frame(point.run for point in plan)
    print(render(accuracy_table(runs, rule), "table", title="Results", note=notes(runs, rule)))


def accuracy(point: Point) -> float | None:
    return read_json(point.run.folder / "summary.json").get(f"accuracy_{point.config.selection_rule}")


def sweep_name(plan: Sequence[Point]) -> str:
    """The same for the same set of runs."""
    signatures = sorted(point.signature for point in plan)
    return "sweep-" + hashlib.sha256(" ".join(signatures).encode()).hexdigest()[:8]


def record_sweep(plan: Sequence[Point], launcher: dict[str, Any]) -> str:
    """Write to `.sweeps/<name>.json` which runs a sweep has and which process launches them. Returns its name."""
    name, signatures = sweep_name(plan), sorted(point.signature for point in plan)
    folder = plan[0].run.folder.parent / ".sweeps"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", {"sweep": name, "command": sys.argv, "signatures": signatures, **launcher})
    return name


@contextmanager
def user_errors() -> Iterator[None]:
    """While open, what a user can mend ends the program with its sentence alone, and so does Ctrl-C."""
    try:
        yield
    except (ValueError, OSError, Busy) as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
