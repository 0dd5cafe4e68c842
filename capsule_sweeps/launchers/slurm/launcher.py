"""Submits to SLURM: a job array for each piece of a submission, whose tasks submitit starts and starts again."""

import math
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from capsule_sweeps.launchers.slurm import queue as slurm
from capsule_sweeps.launchers.slurm.check import examine_cluster
from capsule_sweeps.launchers.slurm.settings import Settings
from capsule_sweeps.launchers.snapshot import is_private
from capsule_sweeps.launchers.submit import QueueLauncher
from capsule_sweeps.runs.plan import PlannedRun
from capsule_sweeps.runs.provenance import SUBMISSION


@dataclass(frozen=True)
class Launcher(Settings, QueueLauncher):
    """`launch.Launcher` for SLURM."""

    queue = "slurm"

    @property
    def waits(self) -> bool:  # type: ignore[override]
        return self.wait

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def included(self) -> Sequence[str]:
        return self.snapshot_include or ()

    def available(self) -> bool:
        return shutil.which("sbatch") is not None and shutil.which("srun") is not None

    def check(self, runs_dir: Path) -> None:
        if not self.available():
            raise ValueError("SLURM is not available (no sbatch on the PATH): launch from a login node of the cluster")
        if "%" in str(runs_dir) or not str(runs_dir).isprintable():
            raise ValueError(
                f"runs_dir={str(runs_dir)!r} has a % or a control character in it, which SLURM reads as part of a "
                "pattern or of a script; set another"
            )

    def examine(self, config: DictConfig, submit: bool) -> Iterator[tuple[str, bool, str]]:
        return examine_cluster(config, self, submit)

    def num_jobs(self, num_runs: int) -> int:
        """At most as many jobs as may run at once: each takes another run when one of its own is done."""
        return min(math.ceil(num_runs / self.runs_per_job), self.max_parallel or num_runs)

    def num_parallel(self, todo: Sequence[PlannedRun], dry_run: bool) -> int:
        return self.num_jobs(len(todo)) * (self.runs_per_job if self.packing == "parallel" else 1)

    def max_jobs(self) -> int:
        return max(1, slurm.max_array_size())

    def send(self, job: dict[str, Any], folder: Path, num_jobs: int) -> str:
        from submitit.helpers import DelayedSubmission

        from capsule_sweeps.launchers.slurm.job import SlurmJob

        delayed = DelayedSubmission(SlurmJob(str(folder)))
        delayed.set_timeout(1, sys.maxsize)  # attempts are counted by run, in SlurmJob
        delayed.dump(folder / "job.pkl")
        (folder / "job.pkl").chmod(0o644)
        arrays = slurm.max_array_size() > 0  # 0: this cluster has none
        name = "%A_%a" if arrays else "%j"
        sent = {
            "job-name": job["submission"],
            **({"array": f"0-{num_jobs - 1}"} if arrays else {}),
            "output": f"{folder}/{name}_0_log.out",
            "open-mode": "append",
            "nodes": 1,
            "export": "ALL",
            **self.parameters(),
        }
        path = folder / f"{len(job['job_ids'])}_submission.sh"
        path.write_text(self.script(job, folder, name, sent))
        # On the command line as well: SBATCH_… in the environment beats the file
        said = slurm.sbatch("--parsable", *slurm.options(sent), str(path))
        slurm.forget()
        return said.split(";")[0].strip()

    def script(self, job: dict[str, Any], folder: Path, name: str, sent: dict[str, Any]) -> str:
        """A job copies the pickle to where submitit looks for its own, unless others can write there."""
        quoted, snapshot = shlex.quote(str(folder)), shlex.quote(job["snapshot"])
        executed = f"{quoted} {quoted}/job.pkl {quoted}/job.json {snapshot}"
        private = all(is_private(path) for path in (folder, folder / "job.pkl", Path(job["snapshot"])))
        checked = [  # by this script, of which SLURM keeps a copy
            f'if [ -n "$(find -L {executed} -maxdepth 0 \\( -perm /022 -o ! -user "$(id -u)" \\) 2>&1)" ]; then',
            f"echo {shlex.quote(f'{folder} or its code can be written by others: not executed')} >&2; exit 1",
            "fi",
        ]
        lines = [
            "#!/bin/bash -l" if self.setup else "#!/bin/bash",  # in a login shell modules exist
            *(f"#SBATCH {shlex.quote(option)}" for option in slurm.options(sent)),
            "set -e",
            *(self.setup or []),
            f"export PYTHONPATH={snapshot}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1",
            f"export {SUBMISSION}={job['submission']} SUBMITIT_EXECUTOR=slurm SLURM_EXPORT_ENV=ALL",
            *(["export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-}"] if self.cpus else []),
            "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}",
            f"pickle={quoted}/${{job:-$SLURM_JOB_ID}}_submitted.pkl",
            *(checked if private else []),  # a file system without modes lets everybody write
            f'rm -f "$pickle"; (umask 022; cp {quoted}/job.pkl "$pickle")',
            shlex.join(["srun", "--unbuffered", "--output", f"{folder}/{name}_%t_log.out", sys.executable])
            + f" -u -m submitit.core._submit {quoted}",  # private: what the scripts of submitit itself execute
        ]
        return "\n".join(lines) + "\n"
