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

import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from omegaconf import DictConfig, OmegaConf

from capsule_sweeps.runs.files import create_json, read_json, write_json
from capsule_sweeps.runs.lock import alive, describe, owner
from capsule_sweeps.runs.queue import FIRST, Entry, find_queue
from capsule_sweeps.runs.record import JOB, QUEUE_ENTRY, read_record, read_typed
from capsule_sweeps.runs.signature import NEUTRAL, signed_config

log = logging.getLogger(__name__)

STATES = ("new", "queued", "running", "interrupted", "failed", "finished")
HEARTBEAT_SECONDS = 10.0


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


def find_runs(runs_dir: Path) -> dict[str, Run]:
    """Signature → run, for every run folder under runs_dir."""
    try:
        with os.scandir(runs_dir) as entries:
            named = [
                entry for entry in entries if re.fullmatch("[^.\ud800-\udfff][^\ud800-\udfff]*-[0-9a-f]{8}", entry.name)
            ]
            names = [entry.name for entry in named if os.path.isdir(entry.path)]  # False for a link to itself, too
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ValueError(
            f"runs_dir={runs_dir} cannot be read ({error.strerror}); set runs_dir to another one"
        ) from error
    return {name[-8:]: Run(runs_dir / name) for name in sorted(names)}


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
        self.folder.mkdir(parents=True, exist_ok=True)
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
        shelf = self.folder.parent / ".superseded"
        shelf.mkdir(exist_ok=True)
        number = 1
        while (target := shelf / f"{self.folder.name}.{number}").exists():
            number += 1
        self.folder.rename(target)
        return target

    def request_cancel(self) -> bool:
        """Ask the process that works here, on whatever host, to save and stop. False when there is none."""
        if self.state() != "running":
            return False
        (self.folder / "cancel").touch()
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

    def compare(self, asked: dict[str, Any], record: dict[str, Any]) -> None:
        """Raises ValueError when the folder's signed config is not the one asked for: never reuse another run."""
        stored = record.get("signed_config")
        if stored is None and (self.folder / "config.yaml").exists():
            try:
                stored = signed_config(DictConfig(OmegaConf.load(self.folder / "config.yaml")))
            except Exception as error:
                reason = " ".join(str(error).split())
                raise ValueError(
                    f"{self.folder / 'config.yaml'} is damaged ({reason}); move the folder away"
                ) from error
        if stored is None or stored == asked:
            return
        stored = {key: value for key, value in stored.items() if not (key in NEUTRAL and value == NEUTRAL[key])}
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
        self.folder.mkdir(parents=True, exist_ok=True)
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

    def update(self, **changes: Any) -> None:
        """Change fields of run.json."""
        self.check()
        write_json(self.run.folder / "run.json", {**self.run.record(), **changes})

    def _beat(self) -> None:
        beat = time.monotonic()
        while not self._done.wait(1.0):
            self.cancelled = self.cancelled or self._cancel_file.exists()
            if time.monotonic() - beat >= HEARTBEAT_SECONDS:
                beat = time.monotonic()
                with suppress(OSError):
                    os.utime(self._path)
