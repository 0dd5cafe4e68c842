"""The settings of the launcher `slurm`, and what sbatch is told of them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

GRACE_SECONDS = 120  # before the time limit SLURM tells the job to save
RESERVED = {"job-name", "array", "output", "error", "open-mode", "parsable", "wait", "wrap", "test-only"}
OWN = {"setup", "max_parallel", "runs_per_job", "packing", "wait", "max_attempts", "sbatch"}  # the others are sbatch's


@dataclass(frozen=True)
class Settings:
    """The settings `hydra.launcher.<name>` that say how a sweep is given to SLURM; None is not sent.

    Memory in GiB, time in minutes or as SLURM writes it. Raises ValueError for values out of range.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus: int | None = None
    cpus: int | None = None
    mem_gb: float | None = None
    time: int | str | None = None
    max_parallel: int | None = None
    setup: list[str] | None = None
    sbatch: dict[str, Any] | None = None
    runs_per_job: int = 1
    packing: str = "parallel"
    wait: bool = False
    max_attempts: int = 50

    def __post_init__(self) -> None:
        for name in ("gpus", "cpus", "max_parallel", "runs_per_job", "max_attempts"):
            value = getattr(self, name)
            required = name in ("runs_per_job", "max_attempts")
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= (0 if name == "gpus" else 1)
            if not whole and (required or value is not None):
                raise ValueError(f"hydra.launcher.{name}={value} must be a whole number of at least 1")
        if self.mem_gb is not None and not (isinstance(self.mem_gb, int | float) and self.mem_gb > 0):
            raise ValueError(f"hydra.launcher.mem_gb={self.mem_gb} must be a number of GiB greater than 0")
        if self.packing not in ("parallel", "sequential"):
            raise ValueError(f"hydra.launcher.packing={self.packing} must be parallel or sequential")
        if not isinstance(self.wait, bool):
            raise ValueError(f"hydra.launcher.wait={self.wait} must be true or false")
        for name, kind, words in (("setup", list, "a list of shell lines"), ("sbatch", dict, "sbatch options by name")):
            if not isinstance(getattr(self, name), kind) and getattr(self, name) is not None:
                raise ValueError(f"hydra.launcher.{name}={getattr(self, name)} must be {words}")
        if not all(isinstance(line, str) for line in self.setup or []):
            raise ValueError(f"hydra.launcher.setup={self.setup} must be a list of shell lines, in quotes")
        minutes = None if self.time is None else minutes_of(self.time)
        if minutes is not None and 60 * minutes <= GRACE_SECONDS and "signal" not in (self.sbatch or {}):
            raise ValueError(
                f"hydra.launcher.time={self.time} leaves no time: jobs are told to save {GRACE_SECONDS} s before the "
                "end; give more, or set hydra.launcher.sbatch.signal (such as USR2@30)"
            )
        if ours := sorted({str(key).replace("_", "-") for key in self.sbatch or {}} & RESERVED):
            raise ValueError(f"hydra.launcher.sbatch.{ours[0]} is not for you to set: the ledger finds its jobs by it")

    def parameters(self) -> dict[str, Any]:
        """Options of sbatch by their long names."""
        names = {"gpus": "gpus-per-node", "cpus": "cpus-per-task"}
        given = {key: value for key, value in asdict(self).items() if key not in OWN and value is not None}
        if self.mem_gb is not None:
            given["mem"] = f"{math.ceil(1024 * given.pop('mem_gb'))}M"
        sent = {names.get(key, key): value for key, value in given.items()}
        own = {"signal": f"USR2@{GRACE_SECONDS}", "requeue": True}
        free = {str(key).replace("_", "-"): value for key, value in (self.sbatch or {}).items()}
        return {
            key: value for key, value in {**own, **sent, **free}.items() if value is not None and value is not False
        }

    def num_jobs(self, num_runs: int) -> int:
        """Each job takes another run when one of its own is done, so there need not be more than may run at once."""
        return min(math.ceil(num_runs / self.runs_per_job), self.max_parallel or num_runs)

    def num_parallel(self, num_runs: int) -> int:
        """How many of so many runs may be at work at once."""
        return self.num_jobs(num_runs) * (self.runs_per_job if self.packing == "parallel" else 1)


def minutes_of(limit: int | str) -> float | None:
    """Minutes of a time as SLURM writes it: 90, 90:00, 1:30:00, 1-12:00; None for no limit. Raises ValueError."""
    if str(limit).upper() in ("UNLIMITED", "INFINITE"):
        return None
    days, dash, clock = str(limit).rpartition("-")
    try:
        parts = [int(part) for part in clock.split(":")]
        units = (60, 1, 1 / 60) if dash or len(parts) == 3 else (1, 1 / 60)
        return 1440 * int(days or 0) + sum(part * units[place] for place, part in enumerate(parts))
    except (ValueError, IndexError):
        raise ValueError(f"hydra.launcher.time={limit} is no time; write minutes, or hours:minutes:seconds") from None
