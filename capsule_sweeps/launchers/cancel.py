"""Ask runs to save and stop, here, in a pool or in a queue."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from capsule_sweeps.runs.lock import launcher_here, other_host
from capsule_sweeps.runs.queue import find_queue
from capsule_sweeps.runs.run import Run


def cancel(runs_dir: Path, runs: pd.DataFrame, sweeps: Sequence[str]) -> list[str]:
    """Ask running runs to save and stop, and the launchers of these sweeps to start no more. Says what it did.

    Queued runs are removed from the queue; jobs that continue with other runs skip them.
    """
    said = []
    for name in sweeps:
        pid = launcher_here(runs_dir / ".sweeps" / f"{name}.json")
        if pid is not None and pid != os.getpid():
            try:
                os.kill(pid, signal.SIGTERM)
            except OSError as error:
                raise ValueError(
                    f"{name}: its launcher, process {pid}, does not take our signal ({error.strerror})"
                ) from error
            said.append(f"{name}: its launcher (process {pid}) was asked to save and stop")
        elif pid is None and (host := other_host(runs_dir / ".sweeps" / f"{name}.json")):
            said.append(f"{name}: its launcher may run on {host}, out of reach from here; cancel it there")
    emptied = {}
    for name in runs.run[runs.state.isin(["queued", "running"])]:
        run = Run(runs_dir / name)
        if run.queue_entry() and (entry := run.entry()):
            emptied[entry.submission] = entry
        run.dequeue()
        if run.request_cancel():  # a job may have begun with it since we looked
            said.append(f"{name}: stopping after the current batch; rerun the command to resume")
        else:
            said.append(f"{name}: taken out of the queue; rerun the command to run it")
    left = {Run(path.parent).queue_entry().get("submission") for path in runs_dir.glob("*/queued.json")}
    for entry in (entry for submission, entry in emptied.items() if submission not in left):
        if find_queue(entry.queue).cancel(entry):
            said.append(f"{entry.submission}: nothing is left to do; its jobs that have not started were cancelled")
        else:
            said.append(
                f"{entry.submission}: {entry.queue.upper()} does not answer here; its jobs find nothing to do and end "
                "by themselves"
            )
    return said or ["nothing to cancel: none of these runs is running or queued"]
