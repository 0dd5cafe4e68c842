"""The settings of the launcher `slurm`, and the options of sbatch made from them."""

import math
import re
from dataclasses import asdict, dataclass
from typing import Any

GRACE_SECONDS = 120  # before the time limit, SLURM asks the job to save
RESERVED = {"job-name", "array", "output", "error", "open-mode", "parsable", "wait", "wrap", "test-only"}
GPU_OPTIONS = {"gpus", "gres", "gpus-per-node", "gpus-per-task", "gpus-per-socket", "tres-per-task"}
ATTEMPTS = ("max_attempts", "max_attempts_without_progress")
SUBMITIT = {"timeout_min": "time", "gpus_per_node": "gpus", "cpus_per_task": "cpus"}
SUBMITIT["array_parallelism"] = "max_parallel"
OWN = {"setup", "max_parallel", "runs_per_job", "packing", "wait", "max_attempts", "sbatch"}
OWN |= {"max_attempts_without_progress", "snapshot_include"}  # the others are sbatch's


@dataclass(frozen=True)
class Settings:
    """The settings `hydra.launcher.<name>` of submissions to SLURM; None is not sent.

    Memory in GiB, time in minutes or as SLURM writes it. Raises ValueError for values out of range.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus: int | str | None = "auto"  # 1, or as set by gpus_per_node
    cpus: int | None = None
    mem_gb: float | None = None
    time: int | str | None = None
    max_parallel: int | None = None
    setup: list[str] | None = None
    sbatch: dict[str, Any] | None = None
    snapshot_include: list[str] | None = None
    runs_per_job: int = 1
    packing: str = "parallel"
    wait: bool = False
    max_attempts: int = 50
    max_attempts_without_progress: int = 3
    timeout_min: int | None = None  # submitit's names of time, gpus, cpus and max_parallel
    gpus_per_node: int | str | None = None
    cpus_per_task: int | None = None
    array_parallelism: int | None = None

    def __post_init__(self) -> None:
        for theirs, name in SUBMITIT.items():
            asked, own = getattr(self, theirs), getattr(self, name)
            if asked is None:
                continue
            if own not in (None, asked, Settings.__dataclass_fields__[name].default):
                raise ValueError(
                    f"hydra.launcher.{name}={own} and hydra.launcher.{theirs}={asked} differ, but are one setting: "
                    f"set {name} only"
                )
            object.__setattr__(self, name, asked)
            object.__setattr__(self, theirs, None)
        if self.gpus == "auto":
            object.__setattr__(self, "gpus", 1)
        if isinstance(self.gpus, str) and not re.fullmatch(r"([\w.-]+:)?[0-9]+", self.gpus):
            raise ValueError(f"hydra.launcher.gpus={self.gpus} must be a number of GPUs, or type:number such as a100:2")
        self._check_types()
        for name in ("gpus", "cpus", "max_parallel", "runs_per_job", *ATTEMPTS):
            value = getattr(self, name)
            if isinstance(value, int) and value < (0 if name == "gpus" else 1):
                raise ValueError(f"hydra.launcher.{name}={value} must be a whole number of at least 1")
        if self.mem_gb is not None and not self.mem_gb > 0:
            raise ValueError(f"hydra.launcher.mem_gb={self.mem_gb} must be a number of GiB greater than 0")
        if self.packing not in ("parallel", "sequential"):
            raise ValueError(f"hydra.launcher.packing={self.packing} must be parallel or sequential")
        minutes = None if self.time is None else minutes_of(self.time)
        if minutes is not None and 60 * minutes <= GRACE_SECONDS and "signal" not in (self.sbatch or {}):
            raise ValueError(
                f"hydra.launcher.time={self.time} is too short: jobs are asked to save {GRACE_SECONDS} s before the "
                "end; set a longer time, or set hydra.launcher.sbatch.signal (such as USR2@30)"
            )
        asked = str((self.sbatch or {}).get("signal", "USR2"))
        if not re.fullmatch(r"(R:)?(SIG)?USR2(@[0-9]+)?", asked):
            raise ValueError(
                f"hydra.launcher.sbatch.signal={asked} does not reach runs, which are saved at USR2; set it to "
                f"USR2@<seconds>, such as USR2@{GRACE_SECONDS}"
            )
        if ours := sorted({str(key).replace("_", "-") for key in self.sbatch or {}} & RESERVED):
            raise ValueError(f"hydra.launcher.sbatch.{ours[0]} is reserved: jobs are tracked by it")

    def _check_types(self) -> None:
        """Hydra checks neither the settings of a user's own YAML file nor the items of lists."""
        whole = dict.fromkeys(("runs_per_job", *ATTEMPTS), int) | dict.fromkeys(("cpus", "max_parallel"), int | None)
        types = {**whole, "gpus": int | str | None, "mem_gb": int | float | None, "wait": bool, "sbatch": dict | None}
        for name, kind in types.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                words = {"wait": "true or false", "sbatch": "sbatch options by name"}.get(name, "a number")
                raise ValueError(f"hydra.launcher.{name}={value} must be {words}")
        for name, words in (("setup", "shell lines, in quotes"), ("snapshot_include", "patterns")):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
                raise ValueError(f"hydra.launcher.{name}={value} must be a list of {words}")

    def asks_for_gpus(self) -> bool:
        none = (None, False, 0, "0", "none")
        options = {key: value for key, value in self.parameters().items() if key in GPU_OPTIONS | {"gpus-per-node"}}
        return any(value not in none and "gpu" in f"{key}={value}" for key, value in options.items())

    def parameters(self) -> dict[str, Any]:
        names = {"gpus": "gpus-per-node", "cpus": "cpus-per-task"}
        free = {str(key).replace("_", "-"): value for key, value in (self.sbatch or {}).items()}
        given = {key: value for key, value in asdict(self).items() if key not in OWN and value is not None}
        if self.mem_gb is not None:
            given["mem"] = f"{math.ceil(1024 * given.pop('mem_gb'))}M"
        sent = {names.get(key, key): value for key, value in given.items()}
        own = {"signal": f"USR2@{GRACE_SECONDS}", "requeue": True}
        if free.keys() & GPU_OPTIONS:  # two requests for GPUs contradict each other: the user's own is sent
            sent.pop("gpus-per-node", None)
        every = {**own, **sent, **free}
        return {key: value for key, value in every.items() if value is not None and value is not False}


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
        raise ValueError(f"hydra.launcher.time={limit} is not a valid time; use minutes or HH:MM:SS") from None
