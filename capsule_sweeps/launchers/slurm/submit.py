"""Gives the missing runs of a sweep to SLURM, as one job array, through submitit, and follows them if asked to.

Everything a job needs lies under `<runs_dir>/.jobs/<submission>/` and `.code/` before sbatch is called, so it does not
matter if this process dies right after. A submission's name is the name of its jobs: by it the ledger asks the queue.
"""

from __future__ import annotations

import getpass
import io
import logging
import os
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stderr, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

from omegaconf import OmegaConf
from rich.live import Live
from rich.table import Table
from submitit import SlurmExecutor
from submitit.core.utils import DelayedSubmission, FailedJobError

from capsule_sweeps.console import console, plain_text
from capsule_sweeps.launchers.slurm import queue as slurm
from capsule_sweeps.launchers.slurm.job import SlurmJob
from capsule_sweeps.launchers.slurm.settings import Settings
from capsule_sweeps.launchers.slurm.where import lost
from capsule_sweeps.launchers.snapshot import take_snapshot
from capsule_sweeps.runs.files import write_json
from capsule_sweeps.runs.lock import owner
from capsule_sweeps.runs.plan import Point
from capsule_sweeps.runs.provenance import SUBMISSION
from capsule_sweeps.runs.run import Busy
from capsule_sweeps.runs.signature import columns, science

log = logging.getLogger(__name__)
SECONDS_BETWEEN_LOOKS = 2


class Executor(SlurmExecutor):
    """submitit's, sending what is set and nothing else, with one pickle for all tasks that is there before sbatch."""

    def submit_tasks(self, job: SlurmJob, num_tasks: int) -> str:
        """The job's number. Raises FailedJobError when sbatch refuses."""
        delayed = DelayedSubmission(job)
        delayed.set_timeout(1, sys.maxsize)  # attempts are counted by run, in SlurmJob
        delayed.dump(Path(self.folder) / "job.pkl")
        self.parameters["map_count"] = num_tasks
        with redirect_stderr(io.StringIO()):  # submitit prints what the exception says, too
            return str(self._submit_command(self._submitit_command_str).job_id)

    @staticmethod
    def options(parameters: dict[str, Any]) -> list[str]:
        """The same for a command line."""
        return [f"--{key}" if value is True else f"--{key}={value}" for key, value in parameters.items()]

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        """The options stand here as well: SBATCH_… in the environment beats the file, but not the command line."""
        sent = {"job-name": self.parameters["job_name"], **self.parameters["additional_parameters"]}
        return ["sbatch", *self.options(sent), str(submission_file_path)]

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        sent = self.parameters["additional_parameters"]
        unasked = [f"#SBATCH --{name}=" for name in ("time", "wckey") if name not in sent]
        text = super()._make_submission_file_text(command, uid)
        return "\n".join(line for line in text.splitlines() if not line.startswith(tuple(unasked))) + "\n"


def submit(todo: Sequence[Point], sweep: str, settings: Settings) -> str:
    """Queue some runs. Returns the name of the submission.

    Raises ValueError with SLURM's own sentence when it refuses; the ledger is as before then.
    """
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise ValueError("there is no SLURM here (no sbatch on the PATH): launch from a login node of the cluster")
    runs_dir = todo[0].run.folder.parent.resolve()
    if "%" in str(runs_dir):
        raise ValueError(f"runs_dir={runs_dir} has a % in it, which SLURM reads as part of a pattern; choose another")
    submission = f"{sweep}-{uuid4().hex[:6]}"
    folder = runs_dir / ".jobs" / submission
    with ExitStack() as undo:
        undo.callback(remove, folder)
        folder.mkdir(parents=True)
        write_json(folder / "launching.json", owner())
        snapshot = take_snapshot(runs_dir)  # never undone: another launcher may count on the same one
        todo = [point for point in todo if enqueue(point, submission, undo)]
        if not todo:
            undo.close()
            return ""
        job: dict[str, Any] = {
            "submission": submission,
            "sweep": sweep,
            "runs": [str(point.run.folder.resolve()) for point in todo],
            "snapshot": str(snapshot),
            "settings": asdict(settings),
            "command": sys.argv,
            "submitted": time.time(),
            "job_ids": [],
        }
        write_json(folder / "job.json", job)
        left, most = settings.num_jobs(len(todo)), slurm.max_array_size()
        while left:
            try:
                job["job_ids"].append(send(folder, submission, snapshot, settings, min(left, most)))
            except FailedJobError as error:
                slurm.cancel(submission, "--state=PENDING")  # an answer that got lost: SLURM may have taken it
                if not job["job_ids"]:
                    raise ValueError(f"SLURM refused the jobs: {slurm_sentence(error)}") from error
                log.warning("SLURM took no more jobs, those that it took do all runs: %s", slurm_sentence(error))
                break
            undo.pop_all()  # there is no way back once a job is in the queue
            left -= min(left, most)
            write_json(folder / "job.json", job)
    (folder / "launching.json").unlink()
    slurm.forget()
    num_jobs, numbers = settings.num_jobs(len(todo)) - left, ", ".join(job["job_ids"])
    runs = f"{len(todo)} run{'s' if len(todo) > 1 else ''}"
    console().print(
        f"{runs} queued in {num_jobs} job{'s' if num_jobs > 1 else ''} ({numbers}): {submission}. "
        f"Follow with `python -m capsule_sweeps status --runs-dir {shlex.quote(os.path.relpath(runs_dir))} --watch`.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return submission


def enqueue(point: Point, submission: str, undo: ExitStack) -> bool:
    """The ticket: with it a job can run the point, and it is all that the job gets to know.

    False when somebody else runs or queued the point since it was planned.
    """
    run = point.run
    if run.state() in ("running", "queued"):
        log.warning("%s: left alone, another launcher was faster", run.folder.name)
        return False
    if point.action == "run anew":
        undo.callback(restore, run.put_aside(), run.folder)
    config = point.config.copy()
    config.runs_dir, config.data_dir = str(Path(config.runs_dir).absolute()), str(Path(config.data_dir).absolute())
    if config.dataset.root is not None:
        config.dataset.root = str(Path(config.dataset.root).absolute())
    ticket = {
        "submission": submission,
        "user": getpass.getuser(),
        "config": OmegaConf.to_container(config),
        "columns": columns(config),
        "science": science(config),
        "attempts": len(run.record().get("attempts", [])),
    }
    undo.callback(run.dequeue, submission)
    try:
        run.enqueue(ticket)
    except Busy as busy:
        log.warning("%s: left alone, %s", run.folder.name, busy)
        return False
    return True


def remove(folder: Path) -> None:
    """A folder, and the one around it if nothing else is in there."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()


def restore(aside: Path, folder: Path) -> None:
    aside.rename(folder)
    with suppress(OSError):
        aside.parent.rmdir()


def send(folder: Path, submission: str, snapshot: Path, settings: Settings, num_tasks: int) -> str:
    """One sbatch. Returns the job's number."""
    pickle = shlex.quote(str(folder)) + "/${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}_submitted.pkl"
    setup = [
        "set -e",
        *(settings.setup or []),
        f"export PYTHONPATH={shlex.quote(str(snapshot))}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1",
        f"export {SUBMISSION}={submission}",
        "export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-}" if settings.cpus else "",
        f"[ -e {pickle} ] || cp {shlex.quote(str(folder / 'job.pkl'))} {pickle}",
    ]
    executor = Executor(folder)
    executor.update_parameters(
        job_name=submission,
        setup=[line for line in setup if line],
        stderr_to_stdout=True,
        array_parallelism=num_tasks,
        additional_parameters=settings.parameters(),
    )
    return executor.submit_tasks(SlurmJob(str(folder)), num_tasks)


def slurm_sentence(error: Exception) -> str:
    """What sbatch said, without submitit's words around it."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line.partition("error: ")[2] for line in lines if line.startswith("sbatch: error: ")]
    return "; ".join(line.removeprefix("Batch job submission failed: ") for line in said) or " ".join(lines)


def follow(plan: Sequence[Point]) -> None:
    """A live table until none of these runs is queued or running. Ctrl-C ends it and leaves the jobs alone."""
    said: dict[str, str] = {}
    try:
        with Live(console=console(), auto_refresh=False, transient=True) as live:
            while True:
                states = {point.run.folder.name: point.run.state() for point in plan}
                if console().is_terminal:
                    live.update(_states_table(plan, states), refresh=True)
                else:
                    for name, state in states.items():
                        if said.get(name) != state:
                            console().print(f"{name}: {state}", markup=False, highlight=False, soft_wrap=True)
                said = states
                if not {"queued", "running"} & set(states.values()):
                    break
                time.sleep(SECONDS_BETWEEN_LOOKS)
    except KeyboardInterrupt:
        counts = Counter(said.values())
        told = ", ".join(f"{count} {state}" for state, count in counts.items())
        sys.exit(
            f"Left the jobs running ({told}); `status` shows them, `cancel` ends them, the same command follows again."
        )
    for point in plan:
        if words := lost(point.run):
            log.warning("%s: %s", point.run.folder.name, words)


def _states_table(plan: Sequence[Point], states: dict[str, str]) -> Table:
    table = Table(title="Runs", title_justify="left")
    for name in ("run", "state", "epochs", "accuracy of the last epoch"):
        table.add_column(name, overflow="fold")
    for point in plan:
        name = point.run.folder.name
        record = point.run.record()
        done, of = record.get("epochs_done", 0), point.config.training.epochs
        accuracy = record.get("accuracy_last")
        shown = f"{accuracy:.1%}" if isinstance(accuracy, float) else "–"
        table.add_row(plain_text(name), states[name], f"{done}/{of}", shown)
    return table
