"""Checks before a sweep is submitted to SLURM: settings of the cluster, and what its nodes can see."""

import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from omegaconf import DictConfig

from capsule_sweeps.console import duration
from capsule_sweeps.display import counted
from capsule_sweeps.launchers.slurm import queue as slurm
from capsule_sweeps.launchers.slurm.settings import GRACE_SECONDS, Settings, minutes_of
from capsule_sweeps.launchers.snapshot import take_snapshot
from capsule_sweeps.launchers.submit import remove
from capsule_sweeps.runs.costs import Rates
from capsule_sweeps.runs.files import make_folder, read_json
from capsule_sweeps.runs.folders import check_runs_dir, find_runs
from capsule_sweeps.runs.queue import Entry, Refused
from capsule_sweeps.runs.signature import signed_config

PROBE_SECONDS = 180  # waiting for the probe to start and answer
PROBE = """
import json, os, sys, time
import torch, capsule_sweeps
found = {"python": sys.version.split()[0], "torch": torch.__version__, "code": capsule_sweeps.__file__,
         "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
         "cpus": len(os.sched_getaffinity(0)), "node": os.environ.get("SLURMD_NODENAME")}
path = sys.argv[1] + "/answer.json"
with open(path + ".tmp", "w") as file:
    json.dump(found, file)
os.replace(path + ".tmp", path)
"""


def examine_cluster(config: DictConfig, settings: Settings, submit: bool) -> Iterator[tuple[str, bool, str]]:
    """(what, all right?, what was found or what to do), as `preflight.examine`; `submit` also sends a probe."""
    checks: list[tuple[str, Callable[[DictConfig, Settings], str]]] = [
        ("SLURM", answers),
        ("submission", accepted),
        ("time limit", enough_time),
        ("signals", signals),
    ]
    for name, look in [*checks, *([("node", probe)] if submit else [])]:
        try:
            yield name, True, look(config, settings)
        except Exception as error:
            yield name, False, " ".join(str(error).split()) or type(error).__name__


def answers(_: DictConfig, __: Settings) -> str:
    if shutil.which("sbatch") is None:
        raise ValueError("sbatch is not available on the PATH: run this command on a login node of the cluster")
    site = slurm.settings()
    if site is None or slurm.jobs() is None:
        raise ValueError("squeue and scontrol do not answer: is the controller up (`scontrol ping`)?")
    name, version = site.get("ClusterName"), site.get("SLURM_VERSION")
    size, here = slurm.max_array_size(), slurm.QUEUE.this_job().get("job")
    arrays = f"arrays of up to {counted(size, 'task')}" if size else "no arrays: each job is submitted by itself"
    inside = f"; this is inside of job {here}, whose settings do not reach the jobs" if here else ""
    return f"SLURM {version}, cluster {name}, {arrays}{inside}"


def accepted(_: DictConfig, settings: Settings) -> str:
    try:
        said = slurm.sbatch("--test-only", "--job-name=doctor", *slurm.options(settings.parameters()), "--wrap", "true")
    except Refused as refused:
        raise ValueError(f"SLURM would refuse the jobs: {refused}") from refused
    return " ".join(line.removeprefix("sbatch: ") for line in said.splitlines())


def enough_time(config: DictConfig, settings: Settings) -> str:
    limit = settings.time or partition_limit(settings.partition)
    minutes = minutes_of(limit)
    records = (run.record() for run in find_runs(Path(config.runs_dir)).values())
    seconds = Rates.of(records).seconds(signed_config(config))
    shown = "no limit" if minutes is None else duration(60 * minutes)
    if minutes is not None and 60 * minutes <= GRACE_SECONDS and "signal" not in (settings.sbatch or {}):
        raise ValueError(f"the limit of {shown} is too short: jobs are asked to save {GRACE_SECONDS} s before it")
    if not seconds:
        return f"{shown}; no similar run was measured yet. At the limit runs are saved and the job requeued"
    needed = seconds * config.training.epochs / 60
    if minutes is None or needed < minutes:
        return f"{shown}; a run takes about {duration(60 * needed)}"
    times = f"its job is requeued {counted(round(needed / minutes), 'time')} or more"
    return f"{shown}; a run takes about {duration(60 * needed)}, so {times}"


def partition_limit(partition: str | None) -> str:
    """The time limit of a partition, or of the default one, as SLURM writes it."""
    lines = [line.split("|") for line in (slurm.ask("sinfo", "-h", "-o", "%P|%L|%l") or "").split()]
    limits = {name: most if usual in ("n/a", "NONE") else usual for name, usual, most in lines}
    default = next((limit for name, limit in limits.items() if name.endswith("*")), "UNLIMITED")
    return limits.get(partition or "", limits.get(f"{partition}*", default))


def signals(_: DictConfig, settings: Settings) -> str:
    seconds = str(settings.parameters()["signal"]).partition("@")[2] or "60"
    site = slurm.settings() or {}
    kill, preempt = site.get("KillWait", "?"), site.get("PreemptMode", "OFF")
    text = f"USR2 {seconds} s before the time limit; {kill} between SIGTERM and SIGKILL"
    if preempt == "OFF":
        return f"{text}; nothing is preempted"
    user = "preempt_send_user_signal" in site.get("SlurmctldParameters", "")
    return f"{text}; preemption ({preempt}) comes with {'USR2' if user else 'SIGTERM'} and the partition's GraceTime"


def probe(config: DictConfig, settings: Settings) -> str:
    """A job of one minute, with the settings of a real one, that imports torch and this package and writes a file."""
    runs_dir = Path(config.runs_dir).resolve()
    folder = runs_dir / ".jobs" / f"doctor-{uuid4().hex[:6]}"
    check_runs_dir(runs_dir, (".jobs", ".code"))
    snapshot = take_snapshot(runs_dir, settings.snapshot_include or ())
    make_folder(folder.parent)
    folder.mkdir()
    folder.chmod(0o755)
    write_probe(folder, snapshot, settings)
    sent = slurm.options({**settings.parameters(), "time": 1, "signal": "USR2@10", "export": "ALL"})
    named = f"--job-name={folder.name}", f"--output={folder / 'log.txt'}"
    try:
        slurm.sbatch("--parsable", *named, *sent, str(folder / "probe.sh"))
        found = await_answer(folder)
    except Refused as refused:
        raise ValueError(f"SLURM refused the probe: {refused}") from refused
    finally:
        slurm.ask("scancel", "--me", f"--name={folder.name}")
        remove(folder)
    if not Path(found["code"]).resolve().is_relative_to(snapshot):
        raise ValueError(f"the node imports {found['code']} and not {snapshot}: does `setup` change PYTHONPATH?")
    if settings.asks_for_gpus() and not found["gpus"] and not str(config.device).startswith("cpu"):
        raise ValueError(
            f"the job asked for GPUs, and torch {found['torch']} finds none on {found['node']}: check that torch is a "
            "CUDA build and that its driver is new enough; set hydra.launcher.gpus=0, or device=cpu, to train on CPUs"
        )
    gpus = ", ".join(found["gpus"]) or "no GPU"
    return f"{found['node']} sees runs_dir and runs Python {found['python']}, torch {found['torch']}, on {gpus}"


def write_probe(folder: Path, snapshot: Path, settings: Settings) -> None:
    """Write the program of the probe, and the script of its job."""
    (folder / "probe.py").write_text(PROBE)
    lines = [
        "#!/bin/bash -l" if settings.setup else "#!/bin/bash",
        "set -e",
        *(settings.setup or []),
        f"export PYTHONPATH={shlex.quote(str(snapshot))}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1",
        "export SLURM_EXPORT_ENV=ALL",
        shlex.join(["srun", sys.executable, str(folder / "probe.py"), str(folder)]),
    ]
    (folder / "probe.sh").write_text("\n".join(lines) + "\n")


def await_answer(folder: Path) -> dict[str, Any]:
    """What the probe found. Raises ValueError if it ends without an answer, or gives none in time."""
    answer, log = folder / "answer.json", folder / "log.txt"
    until = time.monotonic() + PROBE_SECONDS
    slurm.forget()
    while not answer.exists():
        if not slurm.QUEUE.is_active(Entry("slurm", folder)):
            time.sleep(2)  # a shared file system may be slower than the queue
            if answer.exists():
                break
            words = log.read_text().strip().splitlines()[-1] if log.exists() and log.read_text().strip() else ""
            raise ValueError(f"the probe ended and left nothing in {folder}: {words or 'does the node see it?'}")
        if time.monotonic() > until:
            waiting = next((str(job) for job in slurm.jobs() or [] if job.name == folder.name), "unknown")
            raise ValueError(f"the probe did not answer in {PROBE_SECONDS} s and was cancelled: it is {waiting}")
        time.sleep(1)
    return read_json(answer)
