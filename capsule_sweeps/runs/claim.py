"""The claim of a run folder: the right to write in it, with a heartbeat."""

import errno
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from capsule_sweeps.runs.files import read_json, replace_file, to_json, write_json
from capsule_sweeps.runs.lock import owner
from capsule_sweeps.runs.record import read_record, read_unchecked

HEARTBEAT_SECONDS = 10.0


def attempts(folder: Path) -> list[int]:
    """The numbers of the attempts whose claims are in a run folder."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return [int(found[1]) for name in names if (found := re.fullmatch(r"attempt-(\d+)\.(?:json|released)", name))]


def last_attempt(folder: Path) -> int:
    return max(attempts(folder), default=0)


def attempt_path(folder: Path, number: int) -> Path:
    return folder / f"attempt-{number}.json"


class Claim:
    """The right to write into a run folder. The mtime of its file is the heartbeat."""

    def __init__(self, folder: Path, attempt: int, nonce: str) -> None:
        self.folder, self.attempt, self.nonce = folder, attempt, nonce
        self._path = attempt_path(folder, attempt)
        self.cancelled = False  # set by `request_cancel`, also from other processes
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")

    def start(self) -> None:
        self._cancel_file.unlink(missing_ok=True)
        self._thread.start()

    @property
    def _cancel_file(self) -> Path:
        return self.folder / "cancel"

    def stop(self) -> None:
        self._done.set()
        self._thread.join()
        with suppress(OSError, ValueError):  # nothing to release if the folder is gone or was taken over
            self.check()
            self._cancel_file.unlink(missing_ok=True)
            try:
                write_json(self._path, {**owner(), "released": time.time()})
            except OSError:  # a full disk: renaming needs no space
                self._path.rename(self._path.with_suffix(".released"))

    def check(self) -> None:
        """Raises ValueError if the folder was removed or taken over; called before every write."""
        if last_attempt(self.folder) != self.attempt or read_json(self._path).get("nonce") != self.nonce:
            raise ValueError(
                f"{self.folder} was removed or taken over while the run was in progress; nothing more is written"
            )

    def write(self, name: str, data: bytes) -> None:
        """Replace a file of the run folder atomically, unless the folder was taken over.

        A successor removes the temporary files of earlier attempts before it reads the folder, so the rename of a late
        write fails, however long the write takes.
        """
        self._replace(name, data).close()

    @contextmanager
    def lines(self, name: str, lines: Iterable[str]) -> Iterator[Callable[[str], None]]:
        """Replace a file by one with these lines; yields a function that appends one more line.

        Late lines of an earlier attempt go to the replaced file, which is no longer read.
        """
        with self._replace(name, "".join(f"{line}\n" for line in lines).encode()) as file:

            def append(line: str) -> None:
                self.check()
                data = f"{line}\n".encode()
                try:
                    if os.write(file.fileno(), data) < len(data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError as error:
                    raise OSError(error.errno, error.strerror, str(self.folder / name)) from error

            yield append

    def _replace(self, name: str, data: bytes) -> BinaryIO:
        self.check()
        try:
            return replace_file(self.folder / name, data, f"attempt-{self.attempt}", self.check)
        except FileNotFoundError:  # a successor removed the temporary file
            self.check()
            raise

    def update(self, **changes: Any) -> None:
        """Change fields of run.json. All others stay, including those that readers reject."""
        try:
            stored = read_unchecked(self.folder / "run.json")
        except (OSError, ValueError):
            stored = {}
        self.write("run.json", to_json({**stored, **changes}))

    def begin(self, attempt: dict[str, Any], **changes: Any) -> list[Any]:
        """Change fields of run.json and add an attempt. Returns the earlier attempts."""
        try:
            stored = read_unchecked(self.folder / "run.json").get("attempts")
        except (OSError, ValueError):
            stored = None
        before = stored if isinstance(stored, list) else read_record(self.folder).get("attempts", [])
        attempts = [*before, attempt]
        self.update(**changes, attempts=attempts)
        return attempts

    def _beat(self) -> None:
        beat = time.monotonic()
        while not self._done.wait(1.0):
            self.cancelled = self.cancelled or self._cancel_file.exists()
            if time.monotonic() - beat >= HEARTBEAT_SECONDS:
                beat = time.monotonic()
                with suppress(OSError):
                    os.utime(self._path)
