"""The files of the decoded cache, which other users may have written: which are opened, trusted and replaced.

A folder or file is used only if it is not a link and belongs to a trusted user: this user, or the owner of the
data. Arrays are believed when they have the hash that stands beside them, which is computed once per file and change
time in a process.
"""

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

MAX_BYTES = 16 * 2**20  # of about.json
Arrays = dict[str, NDArray[Any]]  # <split>_<kind>, in the order in which they are hashed

log = logging.getLogger(__name__)


@cache
def warn(text: str) -> None:
    """Once in a process: a command opens the same data several times."""
    log.warning(text)


def is_refused(path: Path, trusted: set[int]) -> bool:
    """Whether what is at `path`, if anything is, must not be used; a warning says why."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    if stat.S_ISLNK(status.st_mode):
        warn(f"{path} is a link, which is not followed; the cache there is not used.")
    elif status.st_uid not in trusted:
        warn(f"{path} belongs to {user(status.st_uid)}, neither to you nor to the owner of the data, and is not used.")
    return stat.S_ISLNK(status.st_mode) or status.st_uid not in trusted


def user(uid: int) -> str:
    """The name of a user, or `user UID` where there is none."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def sha256(arrays: Arrays) -> str:
    """The hash of all shapes and contents, in their order."""
    digest = hashlib.sha256()
    for array in map(np.ascontiguousarray, arrays.values()):
        digest.update(str(array.shape).encode())
        digest.update(array.data)
    return digest.hexdigest()


def read_about(path: Path, trusted: set[int]) -> dict[str, Any]:
    """about.json of a folder of the cache. Raises OSError or ValueError if it is missing or invalid."""
    with _opened_folder(path, trusted) as folder, _opened(folder, "about.json", trusted) as file:
        content = file.read(MAX_BYTES + 1)
    about = json.loads(content[:MAX_BYTES])
    if not isinstance(about, dict):
        raise ValueError("about.json is not an object")
    return about


def map_arrays(path: Path, names: list[str], expected: str, trusted: set[int]) -> Arrays:
    """The arrays <name>.npy of a folder, memory-mapped. Raises OSError or ValueError unless they have this hash."""
    arrays, changes = {}, []
    with _opened_folder(path, trusted) as folder:
        for name in names:
            with _opened(folder, f"{name}.npy", trusted) as file:
                arrays[name] = _map(file)
                status = os.fstat(file.fileno())
                changes.append((status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns))
    _check_content(arrays, expected, tuple(changes))
    return arrays


_checked: set[Any] = set()


def _check_content(arrays: Arrays, expected: str, changes: Any) -> None:
    if (expected, changes) not in _checked:
        if sha256(arrays) != expected:
            raise ValueError("the content does not have the hash that is recorded")
        _checked.add((expected, changes))


def _map(file: IO[bytes]) -> NDArray[Any]:
    """Copy on write: torch warns about read-only arrays, and the file stays unchanged."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("another version of the .npy format")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran or dtype not in (np.uint8, np.int64):
        raise ValueError("neither images nor labels")
    return np.asarray(np.memmap(file, dtype, "c", offset=file.tell(), shape=shape))


def write(path: Path, about: dict[str, Any], arrays: Arrays) -> None:
    """Replace a folder atomically, prepared under an unpredictable name. The caller holds the lock."""
    _remove_leftovers(path)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    beside.mkdir()
    try:
        with _opened_folder(beside, {os.geteuid()}) as folder:
            for name, array in arrays.items():
                with _created(folder, f"{name}.npy") as file:
                    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
            with _created(folder, "about.json") as file:
                file.write(json.dumps(about).encode())
        shutil.rmtree(path, ignore_errors=True)  # a damaged one
        os.rename(beside, path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _remove_leftovers(path: Path) -> None:
    """Remove what killed processes left while they wrote data of this name."""
    stem = path.name.rpartition("-")[0]
    for entry in os.scandir(path.parent):
        ours = re.fullmatch(rf"\.{re.escape(stem)}-[0-9a-f]{{16}}\.[0-9a-f]{{16}}\.tmp", entry.name)
        if ours and entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
            shutil.rmtree(entry.path, ignore_errors=True)


@contextmanager
def _opened_folder(path: Path, trusted: set[int]) -> Iterator[int]:
    """A handle of a folder, through which its files are opened even if the folder is replaced meanwhile."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(handle).st_uid not in trusted:
            raise ValueError(f"{path} belongs to another user")
        yield handle
    finally:
        os.close(handle)


@contextmanager
def _opened(folder: int, name: str, trusted: set[int]) -> Iterator[IO[bytes]]:
    handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    with open(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in trusted:
            raise ValueError(f"{name} is not a regular file, or belongs to another user")
        yield file


@contextmanager
def _created(folder: int, name: str) -> Iterator[IO[bytes]]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(name, flags, 0o666, dir_fd=folder), "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
