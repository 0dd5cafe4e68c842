"""Submits the missing runs of a sweep to a queue, as jobs that all work through them, and follows them with `wait`.

Everything a job needs is in `<runs_dir>/.jobs/<submission>/` and `.code/` before the queue is called, so it does not
matter if this process dies right after. A submission's name is the name of its jobs: by it the ledger asks the queue.
"""

import getpass
import logging
import os
import re
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from omegaconf import DictConfig, OmegaConf
from rich.live import Live
from rich.table import Table

from capsule_sweeps.console import console, tell
from capsule_sweeps.display import counted, rich
from capsule_sweeps.launchers.snapshot import check_others, take_snapshot
from capsule_sweeps.runs.files import make_folder, write_json
from capsule_sweeps.runs.folders import check_runs_dir
from capsule_sweeps.runs.lock import owner
from capsule_sweeps.runs.plan import PlannedRun
from capsule_sweeps.runs.queue import Entry, Refused, find_queue
from capsule_sweeps.runs.run import Busy
from capsule_sweeps.runs.signature import columns, signed_config
from capsule_sweeps.runs.stored import digest
from capsule_sweeps.runs.sweep import record_sweep, sweep_name
from capsule_sweeps.runs.where import lost

log = logging.getLogger(__name__)
SECONDS_BETWEEN_LOOKS = 2


class QueueLauncher:
    """`launch.Launcher` for a queue. A subclass defines the calls of the queue and the number of jobs."""

    queue = ""
    here = waits = False

    def settings(self) -> dict[str, Any]:
        """The settings from which `retry` makes this launcher again, and which jobs get."""
        return {}

    def included(self) -> Sequence[str]:
        """Patterns of files that jobs need besides the code."""
        return ()

    def available(self) -> bool:
        """Whether the queue can be reached from this machine."""
        return True

    def check(self, runs_dir: Path) -> None:
        """Raises ValueError when nothing can be submitted from here."""

    def examine(self, config: DictConfig, submit: bool) -> Iterator[tuple[str, bool, str]]:
        """What `doctor` checks of the queue, as `preflight.examine`; `submit` also sends a probe."""
        yield from ()

    def num_jobs(self, num_runs: int) -> int:
        return num_runs

    def max_jobs(self) -> int:
        """How many jobs one call of `send` may ask for."""
        return sys.maxsize

    def send(self, job: dict[str, Any], folder: Path, num_jobs: int) -> str:
        """Ask the queue for jobs that do what `folder`/job.json says. Returns their number. Raises Refused."""
        raise NotImplementedError

    def num_parallel(self, todo: Sequence[PlannedRun], dry_run: bool) -> int:
        return self.num_jobs(len(todo))

    def run(self, plan: Sequence[PlannedRun], todo: Sequence[PlannedRun]) -> int:
        if todo:
            submit(todo, sweep_name(plan), self)
        record_sweep(plan, {})
        if self.waits:
            follow(plan)
        return 0


def submit(todo: Sequence[PlannedRun], sweep: str, launcher: QueueLauncher) -> str:
    """Queue some runs. Returns the name of the submission.

    Raises ValueError with the message of the queue if it refuses; the ledger is then unchanged.
    """
    runs_dir = todo[0].run.folder.parent.resolve()
    check_runs_dir(runs_dir, (".jobs", ".code"))
    launcher.check(runs_dir)
    submission = submission_name([planned.config.dataset.name for planned in todo], sweep)
    folder = runs_dir / ".jobs" / submission
    with ExitStack() as undo:
        undo.callback(remove, folder)
        make_folder(folder.parent)
        folder.mkdir()
        folder.chmod(0o755)  # its job.pkl is executed by this user's jobs, also where a group shares its runs
        write_json(folder / "launching.json", owner())
        snapshot = take_snapshot(runs_dir, launcher.included())  # never undone: another launcher may use the same one
        check_others(snapshot, [planned.signed for planned in todo])
        queued = {planned.run.folder: enqueue(planned, submission, launcher.queue, undo) for planned in todo}
        todo = [planned for planned in todo if queued[planned.run.folder]]
        if not todo:
            undo.close()
            return ""
        job: dict[str, Any] = {
            "queue": launcher.queue,
            "submission": submission,
            "sweep": sweep,
            "runs": [str(planned.run.folder.resolve()) for planned in todo],
            "configs": [queued[planned.run.folder] for planned in todo],
            "snapshot": str(snapshot),
            "settings": launcher.settings(),
            "command": sys.argv,
            "submitted": time.time(),
            "job_ids": [],
        }
        write_own(folder / "job.json", job)
        num_jobs = send(job, folder, launcher, undo)
    (folder / "launching.json").unlink()
    numbers = ", ".join(job["job_ids"])
    tell(
        f"{counted(len(todo), 'run')} queued in {counted(num_jobs, 'job')} ({numbers}): {submission}. "
        f"Follow with `python -m capsule_sweeps status --runs-dir {shlex.quote(os.path.relpath(runs_dir))} --watch`."
    )
    return submission


def send(job: dict[str, Any], folder: Path, launcher: QueueLauncher, undo: ExitStack) -> int:
    """Ask the queue for the jobs of a submission, in as many pieces as it takes. Returns how many jobs it accepted.

    Once it has accepted one, nothing is undone. Raises ValueError if it refuses the first piece.
    """
    num_jobs = left = launcher.num_jobs(len(job["runs"]))
    while left:
        piece = min(left, launcher.max_jobs())
        try:
            job["job_ids"].append(launcher.send(job, folder, piece))
        except BaseException as error:
            if not job["job_ids"]:  # after a lost answer or Ctrl-C, the queue may have accepted the jobs
                find_queue(launcher.queue).cancel(Entry(launcher.queue, folder))
            if not isinstance(error, Refused):
                raise
            if not job["job_ids"]:
                raise ValueError(refusal(launcher, error)) from error
            log.warning("the queue accepted no more jobs; the accepted jobs do all runs: %s", error)
            break
        undo.pop_all()  # there is no way back once a job is in the queue
        left -= piece
        write_own(folder / "job.json", job)
    return num_jobs - left


def submission_name(datasets: Sequence[str], sweep: str) -> str:
    """Begins with what is trained on, because squeue shows the first 8 letters; matches `queue.SUBMISSION`."""
    readable = re.sub(r"[^A-Za-z0-9_.+]", "_", "+".join(dict.fromkeys(datasets)))[:24]
    return f"{re.sub('^[^A-Za-z0-9_]', '_', readable)}-{sweep.removeprefix('sweep-')}-{uuid4().hex[:6]}"


def write_own(path: Path, value: dict[str, Any]) -> None:
    """Write a file that only this user can write, whatever the umask, because jobs trust it."""
    write_json(path, value)
    path.chmod(0o644)


def refusal(launcher: QueueLauncher, error: Refused) -> str:
    text = f"{launcher.queue.upper()} refused the jobs: {error}"
    if "limit" in str(error).lower():
        text += "; hydra.launcher.max_parallel=N asks for fewer jobs, which do all runs"
    names = ("partition", "account", "qos", "constraint", "gpus", "cpus", "mem_gb", "time", "sbatch")
    asked = {name: value for name in names if (value := launcher.settings().get(name)) is not None}
    said = ", ".join(f"{name}={value}" for name, value in asked.items())
    return f"{text} (settings hydra.launcher.…: {said})" if said else text


def enqueue(planned: PlannedRun, submission: str, queue: str, undo: ExitStack) -> str:
    """Write the queue entry, which contains all that a job needs to run the planned run. Returns the hash of its
    configuration, by which the job notices that others changed it.

    Returns "" if another process has run or queued the run since it was planned.
    """
    run = planned.run
    if run.state() in ("running", "queued"):
        log.warning("%s: left out, another launcher took it first", run.folder.name)
        return ""
    if planned.action == "rerun":
        undo.callback(restore, run.put_aside(), run.folder)
    config = planned.config.copy()
    config.runs_dir, config.data_dir = str(Path(config.runs_dir).absolute()), str(Path(config.data_dir).absolute())
    if config.dataset.root is not None:
        config.dataset.root = str(Path(config.dataset.root).absolute())
    entry = {
        "queue": queue,
        "submission": submission,
        "user": getpass.getuser(),
        "config": OmegaConf.to_container(config),
        "columns": columns(config),
        "signed_config": signed_config(config),
        "attempts": len(run.record().get("attempts", [])),
    }
    undo.callback(run.dequeue, submission)
    try:
        run.enqueue(entry)
    except Busy as busy:
        log.warning("%s: left alone, %s", run.folder.name, busy)
        return ""
    return digest(entry["config"])


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()


def restore(aside: Path, folder: Path) -> None:
    aside.rename(folder)
    with suppress(OSError):
        aside.parent.rmdir()


def follow(plan: Sequence[PlannedRun]) -> None:
    """A live table until none of these runs is queued or running. Ctrl-C ends it; the jobs keep running."""
    said: dict[str, str] = {}
    try:
        with Live(console=console(), auto_refresh=False, transient=True) as live:
            while True:
                states = {planned.run.folder.name: planned.run.state() for planned in plan}
                if console().is_terminal:
                    live.update(_states_table(plan, states), refresh=True)
                else:
                    for name, state in states.items():
                        if said.get(name) != state:
                            tell(f"{name}: {state}")
                said = states
                if not {"queued", "running"} & set(states.values()):
                    break
                time.sleep(SECONDS_BETWEEN_LOOKS)
    except KeyboardInterrupt:
        counts = Counter(said.values())
        counted = ", ".join(f"{count} {state}" for state, count in counts.items())
        sys.exit(
            f"The jobs keep running ({counted}); `status` shows them, `cancel` ends them, and the same command follows "
            "them again."
        )
    for planned in plan:
        if words := lost(planned.run):
            log.warning("%s: %s", planned.run.folder.name, words)


def _states_table(plan: Sequence[PlannedRun], states: dict[str, str]) -> Table:
    table = Table(title="Runs", title_justify="left")
    for name in ("run", "state", "epochs", "accuracy of the last epoch"):
        table.add_column(name, overflow="fold")
    for planned in plan:
        name = planned.run.folder.name
        record = planned.run.record()
        done, of = record.get("epochs_done", 0), planned.config.training.epochs
        accuracy = record.get("accuracy_last")
        shown = f"{accuracy:.1%}" if isinstance(accuracy, float) else "–"
        table.add_row(rich(name), states[name], f"{done}/{of}", shown)
    return table
