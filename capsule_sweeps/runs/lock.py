"""Who works in a run folder or launches a sweep: a process of a host, and whether it still lives."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from capsule_sweeps.runs.files import MAX_BYTES, read_file, read_json
from capsule_sweeps.runs.queue import this_job

STALE_SECONDS = 120.0
HIDDEN = "hidden"  # the start of a process that is alive, and nothing else is known of it


def _host() -> str:
    """This machine as far as process numbers mean the same: name, boot, and process namespace where there are such."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _process_start(pid: Any) -> str | None:
    """When a process of this host started, in a unit that no clock change moves; None when it is gone.

    HIDDEN when it lives and /proc does not show it, as on nodes that hide the processes of other users (hidepid).
    """
    if not isinstance(pid, int) or not 0 < pid < 2**31:
        return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return HIDDEN if _exists(pid) else None
    import psutil  # where there is no /proc

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
    """This process, as claims and sweeps name it."""
    process = {"host": _host(), "pid": os.getpid(), "start": _process_start(os.getpid())}
    return {**process, **this_job(), "time": time.time()}


def alive(path: Path) -> bool:
    """Whether the process that a claim or sweep file names still works.

    It does not, at once when its process on this host is gone or an earlier start of this job made it, and after
    STALE_SECONDS without a heartbeat when it came from another host, or is a process that this host hides from us.
    """
    try:
        owner = json.loads(read_file(path, MAX_BYTES).decode())
        if "released" in owner:
            return False
        here = this_job()
        if here and owner.get("job") == here["job"] and owner["restart"] < here["restart"]:
            return False  # a queue starts a job again only when its processes are gone
        if owner["host"] == _host():
            start = _process_start(owner["pid"])
            if start != HIDDEN:
                return start == owner["start"]
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # being written at this moment, or damaged: its age decides
    try:
        return time.time() - path.stat().st_mtime < STALE_SECONDS  # a clock set back makes it young: alive
    except OSError:
        return False


def launcher_here(path: Path) -> int | None:
    """The living process on this host that launches the sweep of a file; None for any other.

    Files come from others, so the word of the file is not enough: the process runs our code, and it holds this very
    file open, as a launcher does (`hold`).
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
    """Keep a sweep file open, which shows `launcher_here` that this process is the launcher that the file names."""
    with open(path, "rb"):
        yield


def other_host(path: Path) -> str | None:
    """The other host whose process a sweep file names; None when it names one of this host, or none."""
    host = read_json(path).get("host")
    return host.split()[0] if isinstance(host, str) and host.split() and host != _host() else None


def describe(path: Path) -> str:
    owner = read_json(path)
    return f"process {owner.get('pid', '?')} on {(str(owner.get('host')).split() or ['?'])[0]}"
