"""The process that holds a run folder or launches a sweep, and whether it is alive."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from capsule_sweeps.runs.files import MAX_BYTES, read_file, read_json
from capsule_sweeps.runs.queue import find_queue, this_job

STALE_SECONDS = 120.0
SILENT_SECONDS = 40.0  # without a heartbeat, after which a queue is asked; much longer than its answer is old
MOST_AHEAD = 86400.0  # seconds: clocks are wrong by hours, as those of another time zone, not by more than a day
HIDDEN = "hidden"  # in place of the start time of a process that is alive but not visible


def _host() -> str:
    """The scope of process numbers: name of the machine, boot, and process namespace if there are namespaces."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _process_start(pid: Any) -> str | None:
    """When a process of this host started, independently of clock changes; None if it is gone.

    HIDDEN if it is alive and not visible in /proc, as on nodes that hide the processes of other users (hidepid).
    """
    if not isinstance(pid, int) or not 0 < pid < 2**31:
        return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return HIDDEN if _exists(pid) else None
    import psutil  # on systems without /proc

    try:
        return str(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def owner() -> dict[str, Any]:
    """The description of this process in claims and sweep files."""
    process = {"host": _host(), "pid": os.getpid(), "start": _process_start(os.getpid())}
    return {**process, **this_job(), "time": time.time()}


def alive(path: Path) -> bool:
    """Whether the process that a claim or sweep file names is still at work.

    A process of this host that is gone, or an earlier start of this job, is not. A process of another host, or one that
    this host hides from us, is not after STALE_SECONDS without a heartbeat, or after SILENT_SECONDS if a queue says
    that its job is over. A heartbeat in the future counts as new up to MOST_AHEAD, so that the claim of a host with a
    wrong clock ends at some time.
    """
    try:
        owner = json.loads(read_file(path, MAX_BYTES).decode())
        if "released" in owner:
            return False
        here = this_job()
        same_job = here and all(owner.get(key) == here.get(key) for key in ("job", "cluster"))
        if same_job and owner["restart"] < here["restart"]:
            return False  # a queue restarts a job only when its processes are gone
        if owner["host"] == _host():
            start = _process_start(owner["pid"])
            if start != HIDDEN:
                return start == owner["start"]
        if abs(_age(path)) > SILENT_SECONDS and _job_is_over(owner, path):
            return False
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # just being written, or damaged: its age decides
    try:
        return -MOST_AHEAD < _age(path) < STALE_SECONDS
    except OSError:
        return False


def _age(path: Path) -> float:
    """Seconds since the last heartbeat; negative if this clock was set back, or that of the other host is ahead."""
    return time.time() - path.stat().st_mtime


def _job_is_over(owner: dict[str, Any], path: Path) -> bool:
    """Whether the queue of the job in a claim knows that the job is over."""
    queue, job, cluster = (owner.get(key) for key in ("queue", "job", "cluster"))
    named = isinstance(queue, str) and isinstance(job, str) and isinstance(cluster, str)
    return named and find_queue(str(queue)).is_over(str(job), str(cluster), path.owner())


def launcher_here(path: Path) -> int | None:
    """The live process on this host that launches the sweep of a file; None if there is none.

    Files may be forged, so their content is not sufficient: the process must run our code and hold this very file open,
    as a launcher does (`hold`).
    """
    owner = read_json(path)
    pid, start = owner.get("pid"), owner.get("start")
    if owner.get("host") != _host() or start == HIDDEN or _process_start(pid) != start or start is None:
        return None
    import psutil

    try:
        process = psutil.Process(pid)
        ours = any(Path(word).name == "launch.py" or "capsule_sweeps" in word for word in process.cmdline())
        holds = any(os.path.samefile(file.path, path) for file in process.open_files() if os.path.exists(file.path))
    except (psutil.Error, OSError):
        return None
    return pid if ours and holds else None


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Keep a sweep file open, by which `launcher_here` recognizes the launcher that the file names."""
    with open(path, "rb"):
        yield


def other_host(path: Path) -> str | None:
    """The host of the process that a sweep file names, if it is another host; None otherwise."""
    host = read_json(path).get("host")
    return host.split()[0] if isinstance(host, str) and host.split() and host != _host() else None


def describe(path: Path) -> str:
    owner = read_json(path)
    return f"process {owner.get('pid', '?')} on {(str(owner.get('host')).split() or ['?'])[0]}"
