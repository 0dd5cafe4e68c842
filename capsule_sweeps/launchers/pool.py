"""Several runs at once on this machine: each in its own process, with its own GPU or its share of the CPU threads."""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from omegaconf import OmegaConf

from capsule_sweeps.console import Display, SweepProgress
from capsule_sweeps.display import counted
from capsule_sweeps.launchers.children import child_environment, command
from capsule_sweeps.launchers.worker import BUSY
from capsule_sweeps.runs.machine import num_cores
from capsule_sweeps.runs.plan import PlannedRun, accuracy
from capsule_sweeps.runs.provenance import ROOT
from capsule_sweeps.runs.run import Busy
from capsule_sweeps.runs.signals import GRACE_SECONDS, Stop

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Slot:
    """A place for one process: a GPU (as CUDA_VISIBLE_DEVICES names it) or none, and a number of CPU threads.

    With `gpu_asked` a run with device=auto does not use a CPU. `grace`: seconds that a batch may take after SIGTERM.
    """

    gpu: str | None
    threads: int
    gpu_asked: bool = False
    grace: float = GRACE_SECONDS


def make_slots(parallel: int | str, runs_per_gpu: int, devices: set[str]) -> list[Slot]:
    """The slots for `hydra.launcher.parallel` (a number or auto) and `.runs_per_gpu`; `devices` is what runs ask for.

    Without a GPU, auto is one process a CPU core that this process may use. Raises ValueError when there are too few
    GPUs.
    """
    if not (parallel == "auto" or (isinstance(parallel, int) and not isinstance(parallel, bool) and parallel >= 1)):
        raise ValueError(f"hydra.launcher.parallel={parallel} must be a number of at least 1, or auto")
    if not isinstance(runs_per_gpu, int) or isinstance(runs_per_gpu, bool) or runs_per_gpu < 1:
        raise ValueError(f"hydra.launcher.runs_per_gpu={runs_per_gpu} must be a number of at least 1")
    if parallel == 1:
        return [Slot(None, num_cores())]
    cores = num_cores()
    named = sorted(device for device in devices if device.startswith("cuda:"))
    if named:
        raise ValueError(
            f"device={named[0]} names one GPU, but hydra.launcher.parallel shares them out; use device=cuda"
        )
    gpus = [] if devices <= {"cpu", "mps"} else visible_gpus()
    if not gpus:
        num_slots = cores if parallel == "auto" else int(parallel)
        return [Slot(None, max(1, cores // num_slots))] * num_slots
    places = [gpu for _ in range(runs_per_gpu) for gpu in gpus]
    num_slots = len(places) if parallel == "auto" else int(parallel)
    if num_slots > len(places):
        raise ValueError(
            f"hydra.launcher.parallel={num_slots} asks for more than this machine's {counted(len(gpus), 'GPU')} can "
            f"hold with {counted(runs_per_gpu, 'run')} each; ask for {len(places)}, or set hydra.launcher.runs_per_gpu"
        )
    return [Slot(gpu, max(1, cores // num_slots)) for gpu in places[:num_slots]]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES would name them."""
    import torch

    if torch.cuda.device_count() == 0:
        return []
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named or [str(index) for index in range(torch.cuda.device_count())]


class Worker:
    """A run in its own process. Its events go to a queue as (worker, event); None is the last one."""

    def __init__(self, planned: PlannedRun, sweep: str, slot: Slot, events: queue.Queue[tuple[Worker, Any]]) -> None:
        self.planned, self.slot = planned, slot
        planned.put_old_aside()
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        environment = child_environment(**({} if slot.gpu is None else {"CUDA_VISIBLE_DEVICES": slot.gpu}))
        self.process = subprocess.Popen(
            command("capsule_sweeps.launchers.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal goes only to the parent, which passes it on
        )
        config = OmegaConf.to_container(planned.config)
        task = {"config": config, "folder": str(planned.run.folder), "sweep": sweep, "threads": slot.threads}
        task |= {"code": str(ROOT), "gpu_asked": slot.gpu_asked, "grace": slot.grace}
        task["submission"] = planned.run.submission
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(task).encode() + b"\n")
        self.process.stdin.flush()
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()

    def _listen(self, events: queue.Queue[tuple[Worker, Any]]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with suppress(ValueError):  # not ours, or cut off
                event = json.loads(line)
                if isinstance(event, dict) and "event" in event:
                    events.put((self, event))
        self.process.wait()
        events.put((self, None))

    def errors_text(self) -> str:
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")

    def last_words(self) -> str:
        lines = self.errors_text().strip().splitlines()
        return lines[-1] if lines else ""

    def close(self) -> None:
        for file in (self.process.stdin, self.process.stdout, self.errors):
            if file is not None:
                file.close()


def run_pool(
    take: Callable[[], PlannedRun | None],
    progress: SweepProgress,
    sweep: str,
    slots: Sequence[Slot],
    stop: Stop,
    ended: Callable[[Worker], None] = lambda worker: None,
    active: set[Worker] | None = None,
) -> None:
    """Run the results of `take` until it returns None, one per slot at a time; a failure does not affect other runs.

    `ended` is called with each worker when its process is gone; `active` contains the workers at work, for callers;
    `progress` is for the display. A signal is passed on, and no run is started after it. KeyboardInterrupt (a second
    Ctrl-C) kills the remaining workers.
    """
    free, active = list(reversed(slots)), set() if active is None else active
    events: queue.Queue[tuple[Worker, Any]] = queue.Queue()
    passed_on = False
    with Display(progress) as display:
        try:
            while True:
                while free and not stop.signum and (planned := take()) is not None:
                    try:
                        active.add(Worker(planned, sweep, free[-1], events))
                        free.pop()
                    except (Busy, OSError) as error:
                        log.error("%s: not started, %s", planned.run.folder.name, error)
                if not active:
                    return
                if stop.signum and not passed_on:
                    passed_on = True
                    for worker in active:
                        worker.process.send_signal(signal.SIGTERM)
                try:
                    worker, event = events.get(timeout=0.2)
                except queue.Empty:
                    continue
                name = worker.planned.run.folder.name
                if event is not None:
                    display.show(name, event)
                    continue
                code = worker.process.returncode
                if not (stop.signum and code):  # a run that a signal stopped has not ended: the next command resumes it
                    display.end(name, None if code else accuracy(worker.planned))
                report(worker)
                ended(worker)
                worker.close()
                active.remove(worker)
                free.append(worker.slot)
        finally:
            for worker in active:
                worker.process.kill()
                worker.process.wait()


def report(worker: Worker) -> None:
    """Log how a run ended, unless it finished or a signal was passed on to it."""
    code, name = worker.process.returncode, worker.planned.run.folder.name
    if code == BUSY:
        log.warning("%s: left alone, %s", name, worker.last_words())
    elif code < 0:
        memory = ", perhaps because memory was short" if code == -signal.SIGKILL else ""
        killed = f"its process was killed ({signal.Signals(-code).name}{memory})"
        log.error("%s: %s; rerun the command to resume", name, killed)
    elif code == 128:
        log.warning("%s: cancelled", name)
    elif 0 < code < 128:
        log.error("%s: failed, %s", name, worker.last_words())
