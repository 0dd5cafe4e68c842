"""Runs the missing runs of a sweep on this machine, in this process or, with `parallel`, in a pool of processes."""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from capsule_sweeps.config.build import where
from capsule_sweeps.console import Display, SweepProgress
from capsule_sweeps.launchers.pool import Slot, make_slots, run_pool
from capsule_sweeps.runs.lock import hold, owner
from capsule_sweeps.runs.machine import busy_hint
from capsule_sweeps.runs.plan import PlannedRun, accuracy
from capsule_sweeps.runs.run import Busy
from capsule_sweeps.runs.signals import Interrupted, Stop, abandon_late, stop_signals
from capsule_sweeps.runs.sweep import record_sweep

log = logging.getLogger(__name__)


@dataclass
class Launcher:
    """`launch.Launcher` for this machine; its fields are the settings `hydra.launcher.<name>` of local."""

    parallel: Any = 1  # a number or auto; make_slots rejects other values
    runs_per_gpu: Any = 1
    here = waits = True

    def __post_init__(self) -> None:
        self.slots: list[Slot] = []

    def num_parallel(self, todo: Sequence[PlannedRun], dry_run: bool) -> int:
        devices = {str(planned.config.device) for planned in todo}
        parallel = self.parallel
        if dry_run or not todo:  # answered without importing torch
            devices, parallel = {"cpu"}, 1 if parallel == "auto" else parallel
        self.slots = make_slots(parallel, self.runs_per_gpu, devices)
        return len(self.slots)

    def examine(self, config: DictConfig, submit: bool) -> Iterator[tuple[str, bool, str]]:
        if submit:
            raise ValueError("--submit needs a cluster: set hydra/launcher=slurm, and its settings")
        return iter(())

    def run(self, plan: Sequence[PlannedRun], todo: Sequence[PlannedRun]) -> int:
        if not todo:
            return 0
        sweep = record_sweep(plan, owner())
        with hold(todo[0].run.folder.parent / ".sweeps" / f"{sweep}.json"), stop_signals() as stop:
            if len(self.slots) == 1:
                run_here(todo, sweep, stop)
            else:
                waiting = deque(todo)
                seconds = {planned.run.folder.name: planned.seconds for planned in todo}
                progress = SweepProgress(len(todo), len(self.slots), seconds)
                run_pool(lambda: waiting.popleft() if waiting else None, progress, sweep, self.slots, stop)
        return int(stop.signum or 0)


def run_here(todo: Sequence[PlannedRun], sweep: str, stop: Stop) -> None:
    """One run after the other; a failure does not affect the others, a signal ends all."""
    import torch

    from capsule_sweeps.training.train import train

    if hint := busy_hint(torch.get_num_threads()):
        log.warning("%s", hint)
    names = {planned.run.folder.name: planned.seconds for planned in todo}
    with Display(SweepProgress(len(todo), 1, names)) as display:
        for planned in todo:
            name = planned.run.folder.name
            try:
                planned.put_old_aside()
                with abandon_late(stop):
                    train(planned.config, planned.run, sweep, display, stop)
            except Interrupted as interrupted:
                log.warning("%s: %s", name, interrupted)
            except Busy as busy:
                log.warning("%s: left alone, %s", name, busy)
            except Exception as error:
                log.error("%s: failed, %s: %s%s", name, type(error).__name__, error, where(error))
            if stop.signum:
                return
            display.end(name, accuracy(planned))
