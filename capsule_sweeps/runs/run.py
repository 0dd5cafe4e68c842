"""The ledger: one folder a run, `<runs_dir>/<readable name>-<signature>/`, which is all that is known of the run.

Every file in it but the append-only metrics is replaced atomically, so a reader never sees half of one and a process
may be killed at any moment. The folder is claimed by creating `attempt-<n>.json`, n one above the last: creation is
exclusive on local disks and on NFS alike, numbers never fall, and the highest number owns the folder. A claim is void
at once when its process on this host is gone, and some time after its last heartbeat when it came from another.

A run that was given to a queue has a queue entry, `queued.json`, which names the queue. The jobs of that submission may
claim the run; the entry is removed when the run finishes, fails or is cancelled, and has no effect once no such job is
left.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from omegaconf import DictConfig

from capsule_sweeps.runs.files import (
    NO_LINK,
    create_json,
    make_folder,
    read_json,
    remove_temporary,
    replace_file,
    to_json,
    write_json,
)
from capsule_sweeps.runs.lock import alive, describe, owner
from capsule_sweeps.runs.queue import FIRST, Entry, find_queue
from capsule_sweeps.runs.record import JOB, QUEUE_ENTRY, read_object, read_record, read_typed, say_damaged
from capsule_sweeps.runs.signature import NEUTRAL, signature, signed_config
from capsule_sweeps.runs.stored import checked_config, read_config

log = logging.getLogger(__name__)

STATES = ("new", "queued", "running", "interrupted", "failed", "finished")
HEARTBEAT_SECONDS = 10.0
RUN_NAME = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9_.+-]*-[0-9a-f]{8}")  # as `run_name` makes them


class Busy(Exception):
    """Somebody else works in this run folder now."""


def check_runs_dir(runs_dir: Path) -> None:
    """Raises ValueError when nothing can be written under runs_dir. Leaves nothing behind."""
    try:
        existing = next(path for path in [runs_dir.absolute(), *runs_dir.absolute().parents] if path.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(
            f"runs_dir={runs_dir} cannot be written ({error.strerror}); set runs_dir=… to a folder that can"
        ) from error


def run_folders(runs_dir: Path) -> list[Run]:
    """Every run folder under runs_dir, sorted by name. Links, and names that no run has, are reported and left out."""
    found = []
    try:
        with os.scandir(runs_dir) as entries:
            for entry in entries:
                if not re.fullmatch(r"[^.].*-[0-9a-f]{8}", entry.name, re.DOTALL):
                    continue
                if entry.is_symlink():
                    say_damaged(entry.name, "it is a link", Path(entry.path))
                elif not RUN_NAME.fullmatch(entry.name):
                    say_damaged(entry.name, "its name has letters that the name of a run has not", Path(entry.path))
                elif entry.is_dir():
                    found.append(entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ValueError(
            f"runs_dir={runs_dir} cannot be read ({error.strerror}); set runs_dir to another one"
        ) from error
    return [Run(runs_dir / name) for name in sorted(found)]


def find_runs(runs_dir: Path) -> dict[str, Run]:
    """Signature → run, for the run folders under runs_dir; of several with one signature, the one that was not renamed.

    The others are reported, and all of them where none or several bear the name that their record has.
    """
    runs: dict[str, list[Run]] = {}
    for run in run_folders(runs_dir):
        runs.setdefault(run.folder.name[-8:], []).append(run)
    for identity, several in [(identity, some) for identity, some in runs.items() if len(some) > 1]:
        genuine = [run for run in several if run.record().get("run") == run.folder.name and not run.damage()]
        runs[identity] = genuine if len(genuine) == 1 else []
        for run in (run for run in several if run not in runs[identity]):
            other = next(other for other in genuine or several if other is not run)
            why = f"it has the signature of {other.folder.name}: move one of them away"
            say_damaged(run.folder.name, why, run.folder)
    return {identity: found[0] for identity, found in runs.items() if found}


def names_of(classes: Sequence[str]) -> str:
    """The names of classes as a sentence shows them: the first 20."""
    return ", ".join(classes[:20]) + (f" and {len(classes) - 20} more" if len(classes) > 20 else "")


class Run:
    """One run folder, whether it exists yet or not. With a `submission`, only its queue entry allows a claim."""

    def __init__(self, folder: Path, submission: str | None = None) -> None:
        self.folder, self.submission = folder, submission

    @property
    def _entry_path(self) -> Path:
        return self.folder / "queued.json"

    def queue_entry(self) -> dict[str, Any]:
        """The queue entry: queue, submission, user, config, columns, signed_config, attempts. {} if there is none."""
        return read_typed(self._entry_path, QUEUE_ENTRY)

    def entry(self) -> Entry | None:
        """How a queue knows the run, by its queue entry or its last attempt; None if no queue had a part in it."""
        found, attempt = self.queue_entry(), (self.record().get("attempts") or [{}])[-1]
        submission = found.get("submission") or attempt.get("submission")
        if not submission:
            return None
        folder = self.folder.parent / ".jobs" / Path(str(submission)).name
        queue = found.get("queue") or read_typed(folder / "job.json", JOB).get("queue") or FIRST
        job = attempt.get("job") if attempt.get("submission") == submission else None
        return Entry(str(queue), folder, found.get("user"), job)

    def is_queued(self) -> bool:
        """Whether the queue has a job for the entry, or the run's launcher is about to submit one."""
        if not self._entry_path.exists():
            return False
        found = self.queue_entry()
        folder = self.folder.parent / ".jobs" / Path(str(found.get("submission"))).name
        entry = Entry(str(found.get("queue", FIRST)), folder, found.get("user"))
        return find_queue(entry.queue).is_active(entry) or alive(folder / "launching.json")

    def enqueue(self, entry: dict[str, Any]) -> None:
        """Raises Busy when somebody else works on the run or has just queued it."""
        make_folder(self.folder)
        if self.state() in ("running", "queued"):
            raise Busy(f"{self.folder} is in use")
        self._entry_path.unlink(missing_ok=True)  # of jobs that are gone
        try:
            create_json(self._entry_path, entry)
        except FileExistsError:
            raise Busy(f"{self.folder} was queued a moment ago") from None

    def dequeue(self, submission: str | None = None) -> None:
        """Take the entry away (of this submission only, if one is named), and the folder if that was all in it."""
        if submission is not None and self.queue_entry().get("submission") != submission:
            return
        with suppress(OSError):
            self._entry_path.unlink(missing_ok=True)
            self.folder.rmdir()

    def waits_for(self, submission: str) -> bool:
        """Whether a job of this submission may start the run now."""
        number = self._last_attempt()
        busy = bool(number) and alive(self._attempt_path(number))
        finished = (self.folder / "summary.json").exists()
        return not busy and not finished and self.queue_entry().get("submission") == submission

    def put_aside(self) -> Path:
        """Move the folder to `.superseded/` beside it, so that the run can be made anew. Raises Busy when in use."""
        if self.state() == "running":
            raise Busy(f"{self.folder} is in use by {describe(self._attempt_path(self._last_attempt()))}")
        shelf = make_folder(self.folder.parent / ".superseded")
        number = 1
        while (target := shelf / f"{self.folder.name}.{number}").exists():
            number += 1
        self.folder.rename(target)
        return target

    def request_cancel(self) -> bool:
        """Ask the process that works here, on whatever host, to save and stop. False when there is none."""
        if self.state() != "running":
            return False
        with suppress(FileExistsError):
            os.close(os.open(self.folder / "cancel", os.O_CREAT | os.O_EXCL | NO_LINK, 0o666))
        self.dequeue()  # a job that starts again leaves it alone
        return True

    def record(self) -> dict[str, Any]:
        """What run.json holds: the columns of `load_runs`, signed_config, provenance, execution, attempts."""
        return read_record(self.folder)

    def state(self, record: dict[str, Any] | None = None) -> str:
        """One of STATES. The folder decides: a summary means finished, a living claim means running.

        A run is queued while the queue still has a job for its entry.
        """
        if (self.folder / "summary.json").exists():
            return "finished"
        number = self._last_attempt()
        if number and alive(self._attempt_path(number)):
            return "running"
        if self.is_queued():
            return "queued"
        record = self.record() if record is None else record
        if record.get("state") == "failed":
            return "failed"
        return "interrupted" if number else "new"

    def damage(self, record: dict[str, Any] | None = None) -> str:
        """Why the folder is no record of the run that its name says; empty when name and configuration agree."""
        record, name = self.record() if record is None else record, self.folder.name
        signed = record.get("signed_config") or self.queue_entry().get("signed_config")
        if not signed and (self.folder / "config.yaml").exists():
            try:
                signed = signed_config(checked_config(self.folder / "config.yaml"))
            except ValueError as error:
                return str(error)
        if not signed:
            begun = bool(record) or (self.folder / "summary.json").exists()
            return "run.json has no configuration, and there is no config.yaml" if begun else ""
        if not name.endswith(f"-{signature(signed)}") and not name.endswith(f"-{signature(_without_neutral(signed))}"):
            return f"its configuration has the signature {signature(signed)}"
        told = record.get("signature", name[-8:])
        return "" if told == name[-8:] else f"run.json has the signature {told}"

    def config(self) -> DictConfig:
        """The configuration that the run was made with, checked; of an imported run what of it is known.

        Raises ValueError when config.yaml is damaged or describes another run.
        """
        path = self.folder / "config.yaml"
        if "imported" in self.record():
            return read_config(path)
        config = checked_config(path)
        self.compare(signed_config(config), self.record())
        if not self.folder.name.endswith(f"-{signature(signed_config(config))}"):
            raise ValueError(
                f"{path} describes another run than {self.folder.name}: it was edited; bring the old one back"
            )
        return config

    def compare(self, asked: dict[str, Any], record: dict[str, Any]) -> None:
        """Raises ValueError when the folder's signed config is not the one asked for: never reuse another run."""
        stored = record.get("signed_config")
        if stored is None and (self.folder / "config.yaml").exists():
            stored = signed_config(checked_config(self.folder / "config.yaml"))
        if stored is None or stored == asked:
            return
        stored = _without_neutral(stored)
        keys = sorted(key for key in stored.keys() | asked.keys() if stored.get(key) != asked.get(key))
        if keys:
            differences = ", ".join(f"{key}: stored {stored.get(key)}, requested {asked.get(key)}" for key in keys)
            raise ValueError(
                f"{self.folder} contains a different run with this signature ({differences}); move or delete the folder"
            )

    def compare_data(self, sha256: str, classes: Sequence[str]) -> None:
        """Raises ValueError when the run was trained on other data than those with this hash and these classes.

        A record that has none of the two is not compared: it was made before there was one.
        """
        record = self.record()
        what, then = "", record.get("classes")
        if record.get("data_sha256", sha256) != sha256:
            what = "their hash differs"
        elif then and list(classes) != then:
            what = f"their classes are {names_of(classes)} instead of {names_of(then)}"
        if what:
            raise ValueError(
                f"the images under data_dir or dataset.root are not those that {self.folder} was trained on ({what}); "
                "bring the old data back, give the new ones another dataset.name, or move the folder away to train "
                "from scratch"
            )

    @contextmanager
    def claim(self) -> Iterator[Claim]:
        """Own the folder for the time of a `with`. Raises Busy when somebody else does, or the entry is gone."""
        make_folder(self.folder)
        last = self._last_attempt()
        if last and alive(self._attempt_path(last)):
            raise Busy(f"{self.folder} is in use by {describe(self._attempt_path(last))}")
        path, nonce = self._attempt_path(last + 1), uuid4().hex
        try:
            create_json(path, {**owner(), "nonce": nonce})
        except FileExistsError:
            raise Busy(f"{self.folder} was claimed a moment ago by {describe(path)}") from None
        claim = Claim(self, last + 1, nonce)
        if self._last_attempt() != last + 1:  # others came and went since `last` was read: they know more
            path.unlink()
            raise Busy(f"{self.folder} is in use")
        if self.submission and self.queue_entry().get("submission") != self.submission:
            path.unlink()
            with suppress(OSError):
                self.folder.rmdir()
            raise Busy(f"{self.folder} was taken out of the queue")
        # An earlier attempt may still hang in a write. Without its temporary files, its renames fail.
        remove_temporary(self.folder, lambda writer: writer.startswith("attempt-") and int(writer[8:]) <= last)
        for number in self._attempts():
            if number <= last:
                for suffix in (".json", ".released"):
                    self._attempt_path(number).with_suffix(suffix).unlink(missing_ok=True)
        claim.start()
        try:
            yield claim
        finally:
            claim.stop()

    def _attempts(self) -> list[int]:
        try:
            names = os.listdir(self.folder)
        except OSError:
            return []
        return [int(found[1]) for name in names if (found := re.fullmatch(r"attempt-(\d+)\.(?:json|released)", name))]

    def _last_attempt(self) -> int:
        return max(self._attempts(), default=0)

    def _attempt_path(self, number: int) -> Path:
        return self.folder / f"attempt-{number}.json"


def _without_neutral(signed: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in signed.items() if not (key in NEUTRAL and value == NEUTRAL[key])}


class Claim:
    """The right to write in a run folder; its file's time is the heartbeat."""

    def __init__(self, run: Run, attempt: int, nonce: str) -> None:
        self.run, self.attempt, self.nonce = run, attempt, nonce
        self._path = run._attempt_path(attempt)
        self.cancelled = False  # somebody asked for the run's end: `request_cancel`
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")

    def start(self) -> None:
        self._cancel_file.unlink(missing_ok=True)
        self._thread.start()

    @property
    def _cancel_file(self) -> Path:
        return self.run.folder / "cancel"

    def stop(self) -> None:
        self._done.set()
        self._thread.join()
        with suppress(OSError, ValueError):  # the folder may be gone or another's; then there is nothing to release
            self.check()
            self._cancel_file.unlink(missing_ok=True)
            try:
                write_json(self._path, {**owner(), "released": time.time()})
            except OSError:  # a full disk: a new name needs no room
                self._path.rename(self._path.with_suffix(".released"))

    def check(self) -> None:
        """Raises ValueError when the folder was removed or taken over; called before anything is written."""
        if self.run._last_attempt() != self.attempt or read_json(self._path).get("nonce") != self.nonce:
            raise ValueError(
                f"{self.run.folder} was removed or taken over while the run was in it; nothing more is written"
            )

    def write(self, name: str, data: bytes) -> None:
        """Replace a file of the run folder whole, unless the folder was taken over, however long the write takes.

        A successor removes the temporary files of the attempts before it, and only then reads the folder. So a rename
        that comes late finds nothing to rename.
        """
        self._replace(name, data).close()

    @contextmanager
    def lines(self, name: str, lines: Iterable[str]) -> Iterator[Callable[[str], None]]:
        """Replace a file by one with these lines; what is yielded appends one more.

        Lines that an earlier attempt appends late go to the file that was replaced, which nobody reads any more.
        """
        with self._replace(name, "".join(f"{line}\n" for line in lines).encode()) as file:

            def append(line: str) -> None:
                self.check()
                data = f"{line}\n".encode()
                try:
                    if os.write(file.fileno(), data) < len(data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError as error:
                    raise OSError(error.errno, error.strerror, str(self.run.folder / name)) from error

            yield append

    def _replace(self, name: str, data: bytes) -> BinaryIO:
        self.check()
        try:
            return replace_file(self.run.folder / name, data, f"attempt-{self.attempt}", self.check)
        except FileNotFoundError:  # a successor took the temporary file away
            self.check()
            raise

    def update(self, **changes: Any) -> None:
        """Change fields of run.json. All others stay, also those that readers refuse."""
        try:
            stored = read_object(self.run.folder / "run.json")
        except (OSError, ValueError):
            stored = {}
        self.write("run.json", to_json({**stored, **changes}))

    def begin(self, attempt: dict[str, Any], **changes: Any) -> list[Any]:
        """Change fields of run.json and add an attempt to those that it has, which are returned."""
        try:
            stored = read_object(self.run.folder / "run.json").get("attempts")
        except (OSError, ValueError):
            stored = None
        before = stored if isinstance(stored, list) else self.run.record().get("attempts", [])
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
