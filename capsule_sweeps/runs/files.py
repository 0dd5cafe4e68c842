"""Small files that are replaced whole, so that a reader never sees half of one."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

log = logging.getLogger(__name__)

MAX_BYTES = 16 * 2**20  # of a JSON file
TAIL_BYTES = 2**16


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file whole: write beside it, flush to the disk, rename."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        with suppress(OSError):
            beside.unlink()
        if isinstance(error, OSError):  # a full disk does not say which file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def append_line(path: Path, line: str) -> None:
    try:
        with open(path, "a") as file:
            file.write(line + "\n")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, (json.dumps(value, indent=1, default=str) + "\n").encode())


def read_file(path: Path, most: int) -> bytes:
    """The content of a regular file; at most so many bytes, and no link, device or pipe is read.

    Raises OSError when the file cannot be opened, ValueError when it is none of these or larger.
    """
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"larger than {most:,} bytes")
    return data


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a regular file, without reading all of it; none when it cannot be read."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            return file.read(TAIL_BYTES).decode(errors="replace").splitlines()[-count:]
    except (OSError, ValueError):
        return []


def open_regular(path: Path) -> BinaryIO:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ValueError("it is a link") if error.errno == errno.ELOOP else error from None
    file = open(descriptor, "rb")  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise ValueError("it is not a regular file")
    return file


def create_json(path: Path, value: Any) -> None:
    """Like `write_json`, for a new file that appears whole or not at all. Raises FileExistsError when there is one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    write_json(beside, value)
    try:
        os.link(beside, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links: creation is exclusive as well, and a failed write leaves nothing
        with open(path, "x") as file:
            try:
                file.write(beside.read_text())
                file.flush()
            except BaseException:
                path.unlink()
                raise
    finally:
        beside.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; {} when there is none, and with a warning when it is damaged."""
    try:
        value = json.loads(read_file(path, MAX_BYTES).decode())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        log.warning("%s is not readable and is ignored: %s", path, error)
        return {}
    if isinstance(value, dict):
        return value
    log.warning("%s is not readable and is ignored: it holds no object", path)
    return {}
