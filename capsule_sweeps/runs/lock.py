"""Who works in a run folder or launches a sweep: a process of a host, and whether it still lives."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from capsule_sweeps.runs.files import MAX_BYTES, read_file, read_json
from capsule_sweeps.runs.queue import this_job

STALE_SECONDS = 120.0


def _host() -> str:
    """This machine as far as process numbers mean the same: name, boot, and process namespace where there are such."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _process_start(pid: int) -> str | None:
    """When a process of this host started, in a unit that no clock change moves; None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    import psutil  # where there is no /proc

    try:
        return str(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


def owner() -> dict[str, Any]:
    """This process, as claims and sweeps name it."""
    process = {"host": _host(), "pid": os.getpid(), "start": _process_start(os.getpid())}
    return {**process, **this_job(), "time": time.time()}


def alive(path: Path) -> bool:
    """Whether the process that a claim or sweep file names still works.

    It does not, at once when its process on this host is gone or an earlier start of this job made it, and after
    STALE_SECONDS without a heartbeat when it came from another host.
    """
    try:
        owner = json.loads(read_file(path, MAX_BYTES).decode())
        if "released" in owner:
            return False
        here = this_job()
        if here and owner.get("job") == here["job"] and owner["restart"] < here["restart"]:
            return False  # a queue starts a job again only when its processes are gone
        if owner["host"] == _host():
            return _process_start(owner["pid"]) == owner["start"]
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # being written at this moment, or damaged: its age decides
    try:
        return time.time() - path.stat().st_mtime < STALE_SECONDS  # a clock set back makes it young: alive
    except OSError:
        return False


def process_here(path: Path) -> int | None:
    """The living process on this host that a claim or sweep file names; None for any other."""
    owner = read_json(path)
    here = owner.get("host") == _host() and isinstance(owner.get("pid"), int)
    return owner["pid"] if here and _process_start(owner["pid"]) == owner.get("start") else None


def other_host(path: Path) -> str | None:
    """The other host whose process a sweep file names; None when it names one of this host, or none."""
    host = read_json(path).get("host")
    return host.split()[0] if isinstance(host, str) and host.split() and host != _host() else None


def describe(path: Path) -> str:
    owner = read_json(path)
    return f"process {owner.get('pid', '?')} on {(str(owner.get('host')).split() or ['?'])[0]}"
