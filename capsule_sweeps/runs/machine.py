"""The CPU cores and the memory that this process may use, within the limits of its container or job."""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from math import ceil
from pathlib import Path

from capsule_sweeps.display import counted

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def num_cores() -> int:
    """CPU cores that this process may use: its affinity and the CPU quota of its control groups, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [_quota(folder) for folder in _groups("cpu")]
    return max(1, min([cores, *(ceil(quota) for quota in quotas if quota)]))


def busy_hint(threads: int) -> str:
    """A sentence if there are more threads than idle cores; empty otherwise."""
    cores = num_cores()
    free = max(1, min(cores, round(cores - os.getloadavg()[0])))
    if threads <= free:
        return ""
    idle = counted(free, "is", "are")
    used = f"{counted(threads, 'thread')} on {counted(cores, 'core')}, of which about {idle} idle"
    return f"{used}: training may take several times as long; set OMP_NUM_THREADS={free}"


def free_memory() -> int:
    """Bytes of main memory that are available to this process, within the memory limits of its control groups."""
    import psutil

    return max(0, min([psutil.virtual_memory().available, *filter(None, map(_room, _groups("memory")))]))


def forget_peak() -> None:
    """From now on `peak_memory` is that since now, where the system can forget an earlier one (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float | None:
    """MB of main memory that this process, all threads together, has had at most; None where it is not known."""
    peaks = [line.split()[1] for line in _lines(Path("/proc/self/status")) if line.startswith("VmHWM:")]
    if peaks:
        return round(int(peaks[0]) * 1024 / 1e6, 1)
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)


def _groups(controller: str) -> Iterator[Path]:
    """The folders of the control groups that this process is in, from its own to the root; versions 1 and 2."""
    for line in _lines(OWN_GROUPS):
        names, path = [*line.split(":", 2), "", ""][1:3]
        if names and controller not in names.split(","):
            continue
        top = GROUPS if not names else GROUPS / controller
        own = top / path.lstrip("/")
        yield from (folder for folder in [own, *own.parents] if folder.is_relative_to(top))


def _quota(folder: Path) -> float | None:
    """Cores, from cpu.max (version 2) or cpu.cfs_quota_us and cpu.cfs_period_us (version 1)."""
    first_version = [line for name in ("quota", "period") for line in _lines(folder / f"cpu.cfs_{name}_us")]
    quota = list(map(_number, " ".join(_lines(folder / "cpu.max")).split() or first_version))
    return quota[0] / quota[1] if len(quota) == 2 and quota[0] and quota[1] else None  # max and -1: no limit


def _room(folder: Path) -> int | None:
    """Bytes left below a limit. Cached pages of files count as free, because they are released on demand."""
    for limit, used, pages in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        most, now = (_number("".join(_lines(folder / name))) for name in (limit, used))
        if most and now is not None:
            cached = next((line.split()[1] for line in _lines(folder / "memory.stat") if line.startswith(pages)), "0")
            return max(1, most - now + (_number(cached) or 0))
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None
