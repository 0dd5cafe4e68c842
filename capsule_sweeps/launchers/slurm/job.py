"""The program of a SLURM job: it works through the runs of its submission, claiming them one by one in the ledger.

All jobs of a submission are alike: each takes whichever run still has this submission's entry, so an early finisher
takes the next one, and a job that is requeued after a preemption continues with the remaining runs.
"""

import logging
import os
import re
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from capsule_sweeps.config.check import check
from capsule_sweeps.console import SweepProgress
from capsule_sweeps.display import Formatter, counted, say
from capsule_sweeps.launchers.pool import Slot, Worker, run_pool
from capsule_sweeps.launchers.slurm import queue as slurm
from capsule_sweeps.launchers.slurm.settings import Settings
from capsule_sweeps.launchers.snapshot import check_snapshot
from capsule_sweeps.runs.files import last_lines, read_json
from capsule_sweeps.runs.machine import num_cores
from capsule_sweeps.runs.plan import PlannedRun
from capsule_sweeps.runs.provenance import ROOT, code
from capsule_sweeps.runs.queue import this_job
from capsule_sweeps.runs.run import Busy, Run
from capsule_sweeps.runs.signals import GRACE_SECONDS, Stop
from capsule_sweeps.runs.stored import digest, plain_config

log = logging.getLogger(__name__)

KILLED = "it was killed, perhaps because it needs more memory than it has"


class SlurmJob:
    """The callable that submitit keeps: it holds a path only, `<runs_dir>/.jobs/<submission>`.

    The job.json in this folder has the runs (folders), sweep, snapshot, and the settings of `submit`.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self) -> None:
        """Raises RuntimeError, so that SLURM says FAILED, when a run failed here; ValueError for damaged code."""
        handler = logging.StreamHandler(sys.stdout)  # submitit's own logger has one
        handler.setFormatter(Formatter("%(asctime)s %(message)s"))
        logging.getLogger("capsule_sweeps").addHandler(handler)
        logging.getLogger("capsule_sweeps").setLevel(logging.INFO)
        self.job = read_json(Path(self.folder) / "job.json")
        self.settings = self.job["settings"]
        if Path(self.job["snapshot"]).resolve() != ROOT:
            raise ValueError(
                f"the job runs the code in {ROOT} and not its own, {self.job['snapshot']}: is PYTHONPATH set?"
            )
        check_snapshot(ROOT)
        self.stop, self.workers = Stop(), set[Worker]()
        self.starts, self.begun, self.given_up = Counter[str](), dict[str, int](), list[str]()
        signal.signal(signal.SIGTERM, self._terminate)
        progress, slots = SweepProgress(len(self.job["runs"])), self._slots()
        run_pool(self.take, progress, self.job["sweep"], slots, self.stop, self.ended, self.workers)
        if self.stop.signum:
            slurm.requeue_if_running(os.environ["SLURM_JOB_ID"])  # a preemption: save before SLURM's grace time ends
            sys.exit(128 + self.stop.signum)
        if failed := [*self.given_up, *self._failed()]:
            raise RuntimeError("these runs did not finish; the log has the reasons: " + ", ".join(failed))

    def checkpoint(self) -> Any:
        """Called by submitit at SIGUSR2, before the time limit or a preemption: let runs save, then start again."""
        from submitit.helpers import DelayedSubmission

        for worker in self.workers:
            worker.process.send_signal(signal.SIGTERM)
        for worker in self.workers:
            worker.process.wait()
        return DelayedSubmission(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def _terminate(self, signum: int, _: Any) -> None:
        self.stop.signum = signum

    def _slots(self) -> list[Slot]:
        num_slots = self.settings["runs_per_job"] if self.settings["packing"] == "parallel" else 1
        allotted = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE")
        cpus = int(allotted or num_cores())
        gpus = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        threads, asked = max(1, cpus // num_slots), Settings(**self.settings).asks_for_gpus()
        waits = re.match(r"\d+", (slurm.settings() or {}).get("KillWait", ""))
        grace = max(1.0, min(GRACE_SECONDS, int(waits[0]) - 5)) if waits else GRACE_SECONDS
        return [Slot(gpus[i % len(gpus)] if gpus else None, threads, asked, grace) for i in range(num_slots)]

    def take(self) -> PlannedRun | None:
        """The next waiting run; each job starts at another one, so that jobs that start together do not collide."""
        folders = self.job["runs"]
        first = int(os.environ.get("SLURM_ARRAY_TASK_ID") or 0) * self.settings["runs_per_job"] % len(folders)
        here = {worker.planned.run.folder for worker in self.workers}
        for folder in [*folders[first:], *folders[:first]]:
            run = Run(Path(folder), self.job["submission"])
            if run.folder in here or not run.waits_for(self.job["submission"]):
                continue
            entry = run.queue_entry()
            if entry.get("submission") != self.job["submission"]:
                continue  # cancelled at this moment
            record = run.record()
            tried = len(record.get("attempts", []))
            unrecorded = self.starts[folder] - (tried - self.begun.setdefault(folder, tried))  # killed while preparing
            stuck, most = unrecorded + fruitless(record, entry["attempts"]), self.settings["max_attempts"]
            if unrecorded + tried - entry["attempts"] >= most:
                self._give_up(run, f"not finished after {counted(most, 'attempt')}")
                continue
            if stuck >= self.settings.get("max_attempts_without_progress", 3):
                self._give_up(run, f"given up after {counted(stuck, 'attempt')} without progress", unrecorded > 0)
                continue
            self.starts[folder] += 1
            try:
                return PlannedRun(self._config(folder, entry), run, "", run.state(), "run")
            except ValueError as error:
                self._give_up(run, f"its queue entry is invalid ({error})")
        return None

    def _config(self, folder: str, entry: dict[str, Any]) -> DictConfig:
        """The configuration of a run. Raises ValueError if it is not the one that was submitted: others may write into
        the folder of a run, but not into that of a submission."""
        submitted = dict(zip(self.job["runs"], self.job.get("configs", []), strict=False))
        if submitted.get(folder, digest(entry["config"])) != digest(entry["config"]):
            raise ValueError("its configuration was changed after the submission; rerun the command")
        return check(plain_config(entry["config"]))

    def ended(self, worker: Worker) -> None:
        """Called when a worker's process is gone. Killed or interrupted runs keep their entry."""
        run, status = worker.planned.run, worker.process.returncode
        if status == 1:
            try:
                if run.record().get("state") != "failed" and run.waits_for(self.job["submission"]):
                    config = OmegaConf.to_yaml(worker.planned.config)
                    self._record_failure(run, worker.last_words(), "other", worker.errors_text(), config)
                say("\n".join(last_lines(run.folder / "error.txt", 1000)), sys.stderr)
            except OSError as error:  # its folder is gone or the disk is full: other runs are not affected
                say(f"{worker.errors_text()}\n{error}", sys.stderr)
                self._give_up(run, f"failed, and the failure cannot be recorded ({error})")
        elif status > 128:
            self.stop.signum = status - 128  # SLURM ends the whole job

    def _record_failure(self, run: Run, error: str, failure: str, text: str = "", config: str = "") -> None:
        """Record a failure that the run itself could not record: it was killed, or failed before its claim, for example
        without data on this node."""
        entry = run.queue_entry()
        record = {**entry.get("columns", {}), "signed_config": entry.get("signed_config", {}), **run.record()}
        record |= {"state": "failed", "failure": failure, "error": error, "ended": time.time()}
        attempts = record.pop("attempts", [])
        if text:
            record |= entry.get("columns", {})  # as in the config.yaml that is written
            attempt = {"started": time.time(), "code": code(entry.get("signed_config", {})), **this_job()}
            record["attempts"] = [*attempts, {**attempt, "submission": self.job["submission"]}]
        with suppress(Busy), run.claim() as claim:  # another process may have claimed it meanwhile
            if text:
                claim.write("config.yaml", config.encode())
            claim.write("error.txt", (text or error + "\n").encode())
            claim.update(**record)
            run.dequeue()

    def _failed(self) -> list[str]:
        """Runs that failed in this job, in an earlier start of it as well."""
        names = []
        for folder in self.job["runs"]:
            record = Run(Path(folder)).record()
            attempt = (record.get("attempts") or [{}])[-1]
            mine = attempt.get("submission") == self.job["submission"] and attempt.get("job") == this_job().get("job")
            if record.get("state") == "failed" and mine:
                names.append(Path(folder).name)
        return names

    def _give_up(self, run: Run, reason: str, was_killed: bool = False) -> None:
        log.error("%s: %s", run.folder.name, reason)
        was_killed = was_killed or run.record().get("state") == "running"  # no end is recorded, as after SIGKILL
        error = f"{reason}: {KILLED}" if was_killed else reason
        with suppress(OSError):  # where the disk is full or the folder is gone nothing can be recorded
            self._record_failure(run, error, "oom" if was_killed else "other")
        run.dequeue()
        self.given_up.append(run.folder.name)


def fruitless(record: dict[str, Any], first: int = 0) -> int:
    """The number of attempts at the end of a record, not counting the `first` ones, that made no progress.

    Progress is a checkpoint beyond the one from which the attempt resumed, after an epoch or at a signal.
    """
    reached, number = record.get("steps_done", 0), 0
    for attempt in reversed(record.get("attempts", [])[first:]):
        if attempt.get("steps_done", -1) < reached:  # attempts of older versions have no such number
            break
        number += 1
    return number
