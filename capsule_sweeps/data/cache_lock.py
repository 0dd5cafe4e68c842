"""The lock of a name in the decoded cache: of several processes that start together one decodes, and waiting ends."""

import logging
import os
from pathlib import Path

from filelock import FileLock, Timeout

from capsule_sweeps.data.cache_files import user

SAY_AFTER = 2.0  # seconds
WAIT = 60.0  # seconds, in all

log = logging.getLogger(__name__)


def acquire(lock: FileLock) -> bool:
    """Wait for the lock; after 2 s a warning says who holds it, after 60 s False is returned. Raises OSError."""
    try:
        lock.acquire(timeout=SAY_AFTER)
        return True
    except Timeout:
        path = Path(lock.lock_file)
        log.warning("%s is locked by %s, which may be decoding; waiting up to %.0f s.", path, holder(path), WAIT)
    try:
        lock.acquire(timeout=WAIT - SAY_AFTER)
        return True
    except Timeout:
        log.warning("%s is still locked by %s; the data are decoded without the cache.", path, holder(path))
        return False


def holder(path: Path) -> str:
    """Who holds a lock, as far as this machine knows."""
    try:
        status = path.stat()
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()  # 1: FLOCK ADVISORY WRITE <pid> <device>:<inode> …
            if len(words) > 5 and words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(status.st_ino):
                return f"process {words[4]} of {user(os.stat(f'/proc/{words[4]}').st_uid)}"
    except OSError:  # no Linux, or the process is hidden
        pass
    try:
        return f"a process on another machine, or that is hidden; the file belongs to {user(path.stat().st_uid)}"
    except OSError:
        return "another process"
