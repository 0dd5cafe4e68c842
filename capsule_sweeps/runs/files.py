"""Small files that are replaced atomically, so that readers never see a part of one."""

import errno
import json
import logging
import os
import re
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

log = logging.getLogger(__name__)

MAX_BYTES = 16 * 2**20  # of a JSON file
TAIL_BYTES = 2**16
TEMPORARY = re.compile(r"\.(.+)\.(attempt-\d+|\d+)\.[0-9a-f]+\.tmp")  # file, writer
NO_LINK = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file atomically: write a temporary file beside it, flush it to disk, rename it."""
    replace_file(path, data).close()


def replace_file(path: Path, data: bytes, writer: str = "", check: Callable[[], None] | None = None) -> BinaryIO:
    """`write_atomic` that returns the new file, open for appending. If it is replaced later, this stays the old file.

    `writer` is part of the temporary file's name (by default the process number), `check` is called right before the
    rename.
    """
    beside = temporary(path, writer)
    file = None
    try:
        file = open(_create(beside), "wb")  # noqa: SIM115
        share(beside, file.fileno())
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        if check is not None:
            check()
        os.replace(beside, path)
        return file
    except BaseException as error:
        if file is not None:
            with suppress(OSError):  # flushing may fail again on a full disk
                file.close()
        with suppress(OSError):
            beside.unlink()
        if isinstance(error, OSError):  # the error of a full disk does not name the file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def temporary(path: Path, writer: str = "") -> Path:
    """A new, unpredictable name beside a file; `garbage` recognizes names of this form. Long names are cut."""
    return path.with_name(f".{path.name[:40]}.{writer or os.getpid()}.{secrets.token_hex(8)}.tmp")


def remove_temporary(folder: Path, is_dead: Callable[[str], bool]) -> None:
    """Remove the temporary files of dead writers, so that renames that they may still try fail."""
    for name in os.listdir(folder):
        if (found := TEMPORARY.fullmatch(name)) and is_dead(found[2]):
            (folder / name).unlink(missing_ok=True)


def open_append(path: Path) -> int:
    """A descriptor that appends to a regular file, which is created if missing. Raises ValueError for any other
    file."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | NO_LINK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a pipe without a reader
            raise ValueError(f"{path} is not a regular file: remove it") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is not a regular file: remove it")
    share(path, descriptor)
    return descriptor


def make_folder(path: Path) -> Path:
    """Create a folder if it is missing, shared if its parent is. Raises ValueError if it is a link."""
    try:
        if not path.parent.exists():
            make_folder(path.parent)
        path.mkdir()
        share(path)
    except FileExistsError:
        if path.is_symlink() or not path.is_dir():
            kind = "a link" if path.is_symlink() else "a file"
            raise ValueError(f"{path} is {kind} and must be a folder: remove it") from None
    return path


def share(path: Path, descriptor: int | None = None) -> None:
    """In a folder that its group may write, make a new file writable for this group (setgid and mode), ignoring the
    umask.

    Nothing changes in a folder that all users may write, where this would open files to everyone.
    """
    around, own = path.parent.stat().st_mode, os.stat(path if descriptor is None else descriptor)
    if own.st_uid != os.geteuid() or not around & stat.S_IWGRP or around & stat.S_IWOTH:
        return
    wanted = stat.S_IMODE(own.st_mode) | stat.S_IRGRP | stat.S_IWGRP
    if stat.S_ISDIR(own.st_mode):
        wanted |= stat.S_IXGRP | (around & stat.S_ISGID)
    if wanted != stat.S_IMODE(own.st_mode):
        with suppress(OSError):  # the file system may not support modes
            os.chmod(path if descriptor is None else descriptor, wanted)


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK, 0o666)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, to_json(value))


def to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, default=str) + "\n").encode()


def read_file(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes. Links, devices and pipes are not read.

    Raises OSError if the file cannot be opened, ValueError if it is not a regular file or larger.
    """
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"larger than {most:,} bytes")
    return data


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a regular file, without reading all of it; [] if it cannot be read."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            return file.read(TAIL_BYTES).decode(errors="replace").splitlines()[-count:]
    except (OSError, ValueError):
        return []


def open_regular(path: Path) -> BinaryIO:
    """A regular file, open for reading. Raises ValueError for a link, a pipe or a device."""
    try:
        descriptor = os.open(path, os.O_RDONLY | NO_LINK)
    except OSError as error:
        raise ValueError("it is a link") if error.errno == errno.ELOOP else error from None
    file = open(descriptor, "rb")  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise ValueError("it is not a regular file")
    return file


def create_json(path: Path, value: Any) -> None:
    """Like `write_json`, for a new file, which appears atomically. Raises FileExistsError if the file exists."""
    beside = temporary(path)
    write_json(beside, value)
    try:
        os.link(beside, path)
    except FileExistsError:
        raise
    except OSError:  # no links on this file system: exclusive creation, and a failed write leaves nothing
        with open(_create(path), "wb") as file:
            try:
                file.write(beside.read_bytes())
                file.flush()
            except BaseException:
                path.unlink()
                raise
    finally:
        beside.unlink(missing_ok=True)


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if the file does not exist. Raises ValueError or OSError for any other file."""
    try:
        value = json.loads(read_file(path, MAX_BYTES).decode())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """The same; {} with a warning for a file that is damaged."""
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        log.warning("%s is not readable and is ignored: %s", path, error)
        return {}
