"""Plan, then apply: show what a command asks for, run what is missing, end with the table."""

import gc
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from omegaconf import DictConfig, OmegaConf

from capsule_sweeps.console import tell
from capsule_sweeps.display import counted
from capsule_sweeps.launchers.compare_data import compare_data
from capsule_sweeps.launchers.preflight import measure_sizes, preflight
from capsule_sweeps.runs.plan import PlannedRun, Policy, accuracy, make_plan, show_plan
from capsule_sweeps.runs.plan_warnings import size_warning, sizes_matter
from capsule_sweeps.runs.queue import queue_names
from capsule_sweeps.runs.signals import Interrupted
from capsule_sweeps.runs.signature import signature, signed_config
from capsule_sweeps.tracking import base as tracking


class Launcher(Protocol):
    """Where planned runs are trained. The fields of the class are its settings `hydra.launcher.<name>`."""

    here: bool  # on this machine
    waits: bool  # `run` returns when all runs have ended

    def num_parallel(self, todo: Sequence[PlannedRun], dry_run: bool) -> int:
        """How many of these runs run at once. Raises ValueError for settings that are invalid on this machine."""

    def examine(self, config: DictConfig, submit: bool) -> Iterator[tuple[str, bool, str]]:
        """What `doctor` checks besides `preflight.examine`; with `submit` a job is sent as a probe."""

    def run(self, plan: Sequence[PlannedRun], todo: Sequence[PlannedRun]) -> int:
        """Run or submit the runs `todo` of a plan. Returns the number of the signal that ended it, or 0.

        Raises ValueError, with nothing changed in the ledger, if they cannot be run.
        """


def find_launcher(name: str) -> Any:
    """The class `Launcher` in launchers/<name>.py, or, for a queue of that name, in launchers/<name>/launcher.py.

    Raises ValueError if there is none.
    """
    module = f"{name}.launcher" if name in queue_names() else name
    path = Path(__file__).parent / f"{name}.py"
    found = None
    if module != name or (str(name).isidentifier() and path.is_file()):
        found = getattr(importlib.import_module(f"capsule_sweeps.launchers.{module}"), "Launcher", None)
    if not is_dataclass(found):  # as a Launcher that a module only imports is not
        raise ValueError(f"hydra.launcher.kind={name} is unknown: no dataclass Launcher is in {path}")
    return found


def launch(
    configs: Sequence[DictConfig],
    overrides: Sequence[Sequence[str]],
    policy: Policy,
    launcher: Launcher,
    start: Callable[[Sequence[PlannedRun]], None] = lambda plan: None,
) -> list[float | None]:
    """Run the missing runs of some points. Returns their accuracies (fractions), None for unfinished runs.

    `start` is called with the plan once all checks have passed. Raises ValueError, before any run starts, if one of
    them cannot start; SystemExit after a signal.
    """
    if any(config.debug for config in configs):
        if not launcher.here:
            raise ValueError("debug=true runs on this machine and saves nothing; remove hydra/launcher")
        with TemporaryDirectory() as folder:
            return launch([scratch(config, folder) for config in configs], overrides, policy, launcher)
    for config in configs:
        absolute(config)
    plan = make_plan(configs, overrides, policy)
    gc.freeze()  # a plan lives as long as the command: no search for cyclic garbage looks through it again
    compare_data(plan)
    todo = [planned for planned in plan if planned.to_do]
    at_once = launcher.num_parallel(todo, policy.dry_run)
    show_plan(plan, len(configs), at_once)
    if policy.dry_run:
        try:
            warn_of_sizes(plan)
        except Exception as error:  # also of a class of the user; a dry run has no preflight
            tell(f"Numbers of parameters are unknown ({' '.join(str(error).split())}).")
        return [None] * len(configs)
    if todo:
        # Device and memory of a login node are not those of a compute node
        preflight(plan, devices=launcher.here, at_once=min(at_once, len(todo)))
        warn_of_sizes(plan)
        tracking.prepare([planned.config for planned in todo])
    else:
        tracking.nothing_to_train([(planned.config, planned.run) for planned in plan])
    start(plan)
    signum = launcher.run(plan, todo)
    left = sum(planned.run.state() != "finished" for planned in plan)
    if (launcher.waits or not todo) and not (signum and left == len(plan)):  # after Ctrl-C there may be no result yet
        show_results(plan, configs[0].selection_rule)
    if signum and left:
        runs = counted(left, "run is", "runs are")
        print(f"{Interrupted(signum)}; {runs} not finished; rerun the command to resume", file=sys.stderr)
        sys.exit(128 + signum)
    accuracies = {planned.signature: accuracy(planned) for planned in plan}
    return [accuracies[signature(signed_config(config))] for config in configs]


def warn_of_sizes(plan: Sequence[PlannedRun]) -> None:
    """Print the warning about sizes that the plan, which does not import torch, could not print yet."""
    if not sizes_matter(plan):
        return
    said = size_warning(plan)
    measure_sizes(plan)
    if (warning := size_warning(plan)) != said:
        tell(warning)


def absolute(config: DictConfig) -> None:
    """Make the paths of images absolute, so that the run can be resumed from any folder."""
    if not os.path.isabs(config.data_dir):
        config.data_dir = os.path.abspath(config.data_dir)
    if config.dataset.root is not None:
        config.dataset.root = os.path.abspath(config.dataset.root)


def scratch(config: DictConfig, folder: str) -> DictConfig:
    """The config for debug=true: the same training in a temporary folder, without checkpoints and tracking."""
    changes = {"runs_dir": folder, "debug": False, "tracking": tracking.OFF, "training": {"checkpoint_epochs": 0}}
    return DictConfig(OmegaConf.merge(config, changes))


def show_results(plan: Sequence[PlannedRun], rule: str) -> None:
    """The table at the end: accuracy by dataset and num_routing over seeds, of the runs of this plan."""
    from capsule_sweeps.results.render import render
    from capsule_sweeps.results.tables import accuracy_table, for_people, notes
    from capsule_sweeps.runs.frame import runs_frame

    runs = runs_frame(planned.run for planned in plan)
    shown, caption = for_people(accuracy_table(runs, rule), runs)
    print(render(shown, "table", "Results", notes(runs, rule), caption, one_line=True))
