"""The ledger: one folder per run, `<runs_dir>/<readable name>-<signature>/`, with everything known about the run.

Every file in it except the append-only metrics is replaced atomically, so readers never see a part of one and a process
may be killed at any moment. The folder is claimed by creating `attempt-<n>.json`, with n one above the last: creation
is exclusive on local disks and on NFS, numbers only grow, and the highest number owns the folder. A claim of a process
on this host ends with the process; one of another host ends some time after its last heartbeat.

A run in a queue has a queue entry, `queued.json`, which names the queue. The jobs of that submission may claim the run.
The entry is removed when the run finishes, fails or is cancelled, and has no effect once no such job is left.
"""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from omegaconf import DictConfig

from capsule_sweeps.display import listed
from capsule_sweeps.runs.claim import Claim, attempt_path, attempts, last_attempt
from capsule_sweeps.runs.files import NO_LINK, create_json, make_folder, remove_temporary
from capsule_sweeps.runs.lock import alive, describe, owner
from capsule_sweeps.runs.queue import FIRST, Entry, find_queue
from capsule_sweeps.runs.record import JOB, QUEUE_ENTRY, read_record, read_typed
from capsule_sweeps.runs.signature import signature, signed_config, without_neutral
from capsule_sweeps.runs.stored import checked_config, plain_config, read_config

log = logging.getLogger(__name__)

SHELVES = (".superseded", ".conflicts")  # below runs_dir, for folders put aside as <name>.<number>


class Busy(Exception):
    """Another process holds this run folder."""


class Run:
    """A run folder, which may not exist yet. With a `submission`, a claim needs the queue entry of that submission."""

    def __init__(self, folder: Path, submission: str | None = None) -> None:
        self.folder, self.submission = folder, submission

    @property
    def name(self) -> str:
        """The name of the run; a folder that was put aside has a number behind it."""
        name = self.folder.name
        return re.sub(r"\.\d+$", "", name) if self.folder.parent.name in SHELVES else name

    @property
    def signature(self) -> str:
        """The signature in the name of the folder, also of one that was put aside."""
        return self.name[-8:]

    @property
    def _entry_path(self) -> Path:
        return self.folder / "queued.json"

    def queue_entry(self) -> dict[str, Any]:
        """The queue entry: queue, submission, user, config, columns, signed_config, attempts; {} if there is none."""
        return read_typed(self._entry_path, QUEUE_ENTRY)

    def entry(self) -> Entry | None:
        """The run in a queue, by its queue entry or its last attempt; None if it never was in a queue."""
        found, attempt = self.queue_entry(), (self.record().get("attempts") or [{}])[-1]
        submission = found.get("submission") or attempt.get("submission")
        if not submission:
            return None
        folder = self.folder.parent / ".jobs" / Path(str(submission)).name
        queue = found.get("queue") or read_typed(folder / "job.json", JOB).get("queue") or FIRST
        job = attempt.get("job") if attempt.get("submission") == submission else None
        return Entry(str(queue), folder, found.get("user"), job)

    def is_queued(self) -> bool:
        """Whether the queue has a job for the queue entry, or the launcher is about to submit one."""
        if not self._entry_path.exists() or (entry := self.entry()) is None:
            return False
        return find_queue(entry.queue).is_active(entry) or alive(entry.folder / "launching.json")

    def enqueue(self, entry: dict[str, Any]) -> None:
        """Write the queue entry. Raises Busy if another process holds the run or has just queued it.

        Raises ValueError for a configuration with interpolations.
        """
        plain_config(entry.get("config", {}))
        make_folder(self.folder)
        if self.state() in ("running", "queued"):
            raise Busy(f"{self.folder} is in use")
        self._entry_path.unlink(missing_ok=True)  # its jobs are gone
        try:
            create_json(self._entry_path, entry)
        except FileExistsError:
            raise Busy(f"{self.folder} was queued a moment ago") from None

    def dequeue(self, submission: str | None = None) -> None:
        """Remove the queue entry (only of this submission, if one is named), and the folder if it is empty then."""
        if submission is not None and self.queue_entry().get("submission") != submission:
            return
        with suppress(OSError):
            self._entry_path.unlink(missing_ok=True)
            self.folder.rmdir()

    def waits_for(self, submission: str) -> bool:
        """Whether a job of this submission may start the run."""
        finished = (self.folder / "summary.json").exists()
        return not self._is_held() and not finished and self.queue_entry().get("submission") == submission

    def put_aside(self) -> Path:
        """Move the folder to `.superseded/` beside it, so that the run can start from scratch. Raises Busy if in
        use."""
        if self.state() == "running":
            raise Busy(f"{self.folder} is in use by {describe(attempt_path(self.folder, last_attempt(self.folder)))}")
        shelf = make_folder(self.folder.parent / ".superseded")
        number = 1
        while (target := shelf / f"{self.folder.name}.{number}").exists():
            number += 1
        self.folder.rename(target)
        return target

    def request_cancel(self) -> bool:
        """Ask the process that holds the run, on any host, to save and stop. False if there is none."""
        if self.state() != "running":
            return False
        with suppress(FileExistsError):
            os.close(os.open(self.folder / "cancel", os.O_CREAT | os.O_EXCL | NO_LINK, 0o666))
        self.dequeue()  # so that a restarted job does not resume it
        return True

    def record(self) -> dict[str, Any]:
        """The content of run.json: the columns of `load_runs`, signed_config, provenance, execution, attempts."""
        return read_record(self.folder)

    def state(self, record: dict[str, Any] | None = None) -> str:
        """finished, running, queued, failed, interrupted or new.

        The folder decides: a summary means finished, a claim of a live process means running. A run is queued as long
        as the queue has a job for its entry.
        """
        if (self.folder / "summary.json").exists():
            return "finished"
        if self._is_held():
            return "running"
        if self.is_queued():
            return "queued"
        record = self.record() if record is None else record
        if record.get("state") == "failed":
            return "failed"
        return "interrupted" if last_attempt(self.folder) else "new"

    def damage(self, record: dict[str, Any] | None = None) -> str:
        """Why the folder is damaged; empty if its name and its configuration agree."""
        record, name = self.record() if record is None else record, self.name
        signed = record.get("signed_config") or self.queue_entry().get("signed_config")
        if not signed and (self.folder / "config.yaml").exists():
            try:
                signed = signed_config(checked_config(self.folder / "config.yaml"))
            except ValueError as error:
                return str(error)
        if not signed:
            begun = bool(record) or (self.folder / "summary.json").exists()
            return "run.json has no configuration, and there is no config.yaml" if begun else ""
        if not name.endswith(f"-{signature(signed)}") and not name.endswith(f"-{signature(without_neutral(signed))}"):
            return f"its configuration has the signature {signature(signed)}"
        recorded = record.get("signature", self.signature)
        return "" if recorded == self.signature else f"run.json has the signature {recorded}"

    def config(self) -> DictConfig:
        """The checked configuration of the run; for an imported run the known part of it.

        Raises ValueError if config.yaml is damaged or belongs to another run.
        """
        path = self.folder / "config.yaml"
        if "imported" in self.record():
            return read_config(path)
        config = checked_config(path)
        self.compare(signed_config(config), self.record())
        if not self.name.endswith(f"-{signature(signed_config(config))}"):
            raise ValueError(
                f"{path} describes another run than {self.folder.name}: it was edited; restore the original file"
            )
        return config

    def compare(self, asked: dict[str, Any], record: dict[str, Any]) -> None:
        """Raises ValueError if the signed config of the folder is not `asked`, so that no other run is ever reused."""
        stored = record.get("signed_config")
        if stored is None and (self.folder / "config.yaml").exists():
            stored = signed_config(checked_config(self.folder / "config.yaml"))
        if stored is None or stored == asked:
            return
        stored = without_neutral(stored)
        keys = sorted(key for key in stored.keys() | asked.keys() if stored.get(key) != asked.get(key))
        if keys:
            differences = ", ".join(f"{key}: stored {stored.get(key)}, requested {asked.get(key)}" for key in keys)
            raise ValueError(
                f"{self.folder} contains a different run with this signature ({differences}); move or delete the folder"
            )

    def compare_data(self, sha256: str, classes: Sequence[str]) -> None:
        """Raises ValueError if the run was trained on data with another hash or other classes.

        Records of older versions, which have neither, are not compared.
        """
        record = self.record()
        what, then = "", record.get("classes")
        if record.get("data_sha256", sha256) != sha256:
            what = "their hash differs"
        elif then and list(classes) != then:
            what = f"their classes are {listed(classes, 20)} instead of {listed(then, 20)}"
        if what:
            raise ValueError(
                f"the images under data_dir or dataset.root are not those that {self.folder} was trained on ({what}); "
                "restore the old images, set another dataset.name for the new ones, or move the folder away to train "
                "from scratch"
            )

    @contextmanager
    def claim(self) -> Iterator[Claim]:
        """Hold the folder inside a `with`. Raises Busy if another process holds it, or the queue entry is gone."""
        make_folder(self.folder)
        last = last_attempt(self.folder)
        if alive(before := attempt_path(self.folder, last)):
            raise Busy(f"{self.folder} is in use by {describe(before)}")
        path, nonce = attempt_path(self.folder, last + 1), uuid4().hex
        try:
            create_json(path, {**owner(), "nonce": nonce})
        except FileExistsError:
            raise Busy(f"{self.folder} was claimed a moment ago by {describe(path)}") from None
        claim = Claim(self.folder, last + 1, nonce)
        if last_attempt(self.folder) != last + 1:  # others came and went since `last` was read: they know more
            path.unlink()
            raise Busy(f"{self.folder} is in use")
        if self.submission and self.queue_entry().get("submission") != self.submission:
            path.unlink()
            with suppress(OSError):
                self.folder.rmdir()
            raise Busy(f"{self.folder} was taken out of the queue")
        # An earlier attempt may still be blocked in a write. Without its temporary files, its renames fail.
        remove_temporary(self.folder, lambda writer: writer.startswith("attempt-") and int(writer[8:]) <= last)
        for number in attempts(self.folder):
            if number <= last:
                for suffix in (".json", ".released"):
                    attempt_path(self.folder, number).with_suffix(suffix).unlink(missing_ok=True)
        claim.start()
        try:
            yield claim
        finally:
            claim.stop()

    def _is_held(self) -> bool:
        return alive(attempt_path(self.folder, last_attempt(self.folder)))
