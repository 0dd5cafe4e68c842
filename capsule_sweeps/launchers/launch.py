"""Plan, then apply: show what a command asks for, run what is missing, end with the table."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections import deque
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from capsule_sweeps.console import Display
from capsule_sweeps.launchers.pool import Slot, run_pool
from capsule_sweeps.runs.files import read_json, write_json
from capsule_sweeps.runs.lock import owner
from capsule_sweeps.runs.plan import Point, Policy, make_plan, show_plan
from capsule_sweeps.runs.run import Busy
from capsule_sweeps.runs.signals import Interrupted, Stop, stop_signals
from capsule_sweeps.runs.signature import science, signature
from capsule_sweeps.tracking import base as tracking

if TYPE_CHECKING:
    from capsule_sweeps.launchers.slurm.settings import Settings

from capsule_sweeps.launchers.preflight import preflight

log = logging.getLogger(__name__)


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
        tracking.prepare([point.config for point in todo])
        sweep = record_sweep(plan, owner())
        with stop_signals() as stop:
            if len(slots) == 1:
                run_here(todo, sweep, stop)
            else:
                waiting = deque(todo)
                run_pool(lambda: waiting.popleft() if waiting else None, len(todo), sweep, slots, stop)
    else:
        tracking.nothing_to_train([(point.config, point.run) for point in plan])
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
    from capsule_sweeps.launchers.slurm.submit import follow, submit

    if any(config.debug for config in configs):
        raise ValueError("debug=true runs here and leaves nothing: leave out hydra/launcher")
    plan = make_plan(configs, overrides, policy)
    todo = [point for point in plan if point.to_do]
    show_plan(plan, len(configs), cluster.num_parallel(len(todo)))
    if policy.dry_run:
        return [None] * len(configs)
    if todo:
        preflight(plan, devices=False)  # those of a login node are not those of a compute node
        tracking.prepare([point.config for point in todo])
        submit(todo, sweep_name(plan), cluster)
    record_sweep(plan, {})
    if cluster.wait:
        follow(plan)
    if cluster.wait or not todo:
        show_results(plan, configs[0].selection_rule)
    accuracies = {point.signature: accuracy(point) for point in plan}
    return [accuracies[signature(science(config))] for config in configs]


def scratch(config: DictConfig, folder: str) -> DictConfig:
    """The config for debug=true: the same training in a temporary folder, without checkpoints and tracking."""
    changes = {"runs_dir": folder, "debug": False, "tracking": tracking.OFF, "training": {"checkpoint_epochs": 0}}
    return DictConfig(OmegaConf.merge(config, changes))


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
    from capsule_sweeps.results.render import render
    from capsule_sweeps.results.tables import accuracy_table, notes
    from capsule_sweeps.runs.frame import runs_frame

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
