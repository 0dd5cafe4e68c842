"""Sends run folders to Weights & Biases: every missing epoch, the summary, the end. Asks the server what it has.

Only the folder is read, so a run that was offline, lost its server or is running right now is sent in the same way.
"""

import math
import os
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from capsule_sweeps.config.compose import compose_config
from capsule_sweeps.display import counted
from capsule_sweeps.runs.files import open_append
from capsule_sweeps.runs.labels import Labels
from capsule_sweeps.runs.run import Run
from capsule_sweeps.tracking.base import one_line, own_folder, tracker_class
from capsule_sweeps.tracking.wandb import WandbTracker
from capsule_sweeps.tracking.wandb_client import end_service, find, obstacle
from capsule_sweeps.tracking.wandb_send import (
    DELETED,
    SEND_SECONDS,
    Folder,
    agent_id,
    following,
    home,
    is_foreign,
    send,
)

ABSENT = "does not exist"
LOOK_AGAIN = (0.0, 1.0, 2.0, 4.0, 8.0)  # seconds; what has arrived is not always shown at once


def sync(
    runs: Sequence[Run], rebuild: bool, merged: bool = False, to: str | None = None
) -> Iterator[tuple[str, bool, str]]:
    """(run, whether all of it is in W&B, what was done or is missing), one run after the other.

    Runs go to `to`, ENTITY/PROJECT, or else to the place that the user's own configuration names; a folder that names
    another place is not sent there. Runs that have not begun and imported ones, which have no epochs, are left out,
    those that were taken from others unless `merged`, and those with tracking=none unless `rebuild`, which also sends
    again, under another id, what W&B has wrong. Raises ValueError when there is no key or no server.
    """
    if to is not None and not re.fullmatch("[^/]+/[^/]+", to):
        raise ValueError(f"--to {to} must be ENTITY/PROJECT, such as my-team/capsule_sweeps")
    trouble = obstacle()
    if trouble:
        raise ValueError(f"nothing can be sent: {trouble}")
    import wandb

    own = home(compose_config(["tracking=wandb"]))
    try:
        api = None
        for run in runs:
            if run.state() in ("new", "queued") and not (run.folder / "config.yaml").exists():
                continue
            if "imported" in (record := run.record()) or (not merged and from_others(record)):
                continue
            try:
                folder = Folder.read(run)
                if tracker_class(folder.config) is not WandbTracker and not rebuild:
                    continue
                api = api or wandb.Api(timeout=30)
                named, mine = (f"{entity or api.default_entity}/{project}" for entity, project in (folder.home, own))
                place, may_send = to or named, to is not None or named == mine
                arrived, text = sync_folder(api, folder, rebuild, place, may_send)
                if arrived and may_send and folder.labels != Labels():
                    mirror_labels(api, folder, place)
                if not arrived and not text:
                    text = (
                        f"not sent: its folder names {named}, your own configuration {mine}; to send it there, add "
                        f"--to {shlex.quote(named)}"
                    )
            except Exception as error:
                arrived, text = False, one_line(error)
                api = None
                end_service(5)  # it may not answer any more: the next run gets another
            yield run.folder.name, arrived, text
    finally:
        end_service(SEND_SECONDS)


def sync_folder(api: Any, folder: Folder, rebuild: bool, project: str, may_send: bool) -> tuple[bool, str]:
    """Send what is missing of one folder to ENTITY/PROJECT and check that it arrived.

    (False, "") if something is missing that may not be sent.
    """
    if folder.state == "running" and folder.config.tracking.get("mode") == "online":
        return True, "is running online, its own process sends it"
    identity, remote, note = own_run(api, folder, project)
    lacks, fixable = look(remote, folder)
    if not lacks:
        return True, "is there" + (f" as {identity}{note}" if note else "")
    if not fixable or lacks == ABSENT:
        others = list(api.runs(project, filters={"config.signature": folder.run.signature}, lazy=False))
        if copy := complete_copy(api, folder, project, others):
            return True, f"is there as {copy}"
    if not may_send:
        return False, ""
    if not fixable:
        if not rebuild:
            return False, f"{identity} in W&B {lacks} and takes no earlier epochs; `sync --rebuild` sends it again"
        taken = {identity, *(other.id for other in others)}
        identity = next(free for n in range(2, 1000) if (free := f"{folder.run.signature}-{n}") not in taken)
    identity, note = send_as(folder, identity, project, note)
    if lacks := what_did_not_arrive(api, folder, identity, project):
        return False, f"did not arrive: {identity} in W&B {lacks}"
    if folder.state != "running":
        mark_as_sent(folder.run)
    return True, f"sent, {counted(len(folder.rows), 'epoch is', 'epochs are')} there as {identity}{note}"


def own_run(api: Any, folder: Folder, project: str) -> tuple[str, Any, str]:
    """The id of a folder in a project, its W&B run there or None, and words about the run of another folder that has
    the id before."""
    identity, note = folder.identity, ""
    while (remote := find(*place_of(project), identity, api)) and not agent_id():
        if not is_foreign(remote, folder.record, True):
            break
        note, identity = f"; {identity} there is the run of another run folder", following(identity)
    return identity, remote, note


def complete_copy(api: Any, folder: Folder, project: str, others: Sequence[Any]) -> str | None:
    """The id of a W&B run of the same signature that lacks nothing of a folder."""
    for other in others:
        if not is_foreign(other, folder.record, True):
            remote = find(*place_of(project), other.id, api)
            if not look(remote, folder)[0]:
                return str(other.id)
    return None


def send_as(folder: Folder, identity: str, project: str, note: str) -> tuple[str, str]:
    """Send a folder under an id, or under the next one if W&B has deleted that. Returns the id, and words about it."""
    while True:
        try:
            send(folder, identity, place_of(project))
            return identity, note
        except Exception as error:
            if DELETED not in str(error):
                raise
            note, identity = f"; {identity} was deleted there", following(identity)


def what_did_not_arrive(api: Any, folder: Folder, identity: str, project: str) -> str:
    """What a W&B run still lacks of a folder that was sent, in words; W&B may take some seconds."""
    lacks = ""
    for seconds in LOOK_AGAIN:
        time.sleep(seconds)
        lacks, _ = look(find(*place_of(project), identity, api), folder)
        if not lacks:
            break
    return lacks


def place_of(project: str) -> tuple[str, str]:
    """Entity and name of ENTITY/PROJECT."""
    entity, _, name = project.partition("/")
    return entity, name


def mark_as_sent(run: Run) -> None:
    """Mark the offline logs of a run, as `wandb sync` does, which then leaves them alone. No link is followed."""
    for path in own_folder(run, "wandb").glob("*run-*/run-*.wandb"):
        if not path.parent.is_symlink():
            with suppress(ValueError):
                os.close(open_append(Path(f"{path}.synced")))


def from_others(record: dict[str, Any]) -> bool:
    """Whether a run was taken from others by `merge`, and no attempt was made here since."""
    taken = record.get("merged")
    before = taken.get("attempts") if isinstance(taken, dict) else None
    return taken is not None and len(record.get("attempts", [])) <= (before if isinstance(before, int) else 0)


def mirror_labels(api: Any, folder: Folder, project: str) -> None:
    """Copy the tags and the note of a folder to its W&B run, and keep other tags there."""
    labels, signature = folder.labels, folder.run.signature
    for remote in api.runs(project, filters={"config.signature": signature}, lazy=False):
        if is_foreign(remote, folder.record, True):
            continue
        tags = [*(tag for tag in remote.tags if tag not in labels.removed), *labels.tags]
        note = labels.note if labels.note or labels.emptied else remote.notes or ""
        if (tags := list(dict.fromkeys(tags))) != list(remote.tags) or note != (remote.notes or ""):
            remote.tags, remote.notes = tags, note
            remote.update()


def look(remote: Any, folder: Folder) -> tuple[str, bool]:
    """What a W&B run (or None) lacks of a folder, in words, empty for nothing; and whether sending can add it."""
    if remote is None:
        return ABSENT, True
    history = remote.scan_history(keys=["epoch", "test_accuracy"], use_cache=False)
    theirs = {int(row["epoch"]): row["test_accuracy"] for row in history}
    ours = {row["epoch"]: row["test_accuracy"] for row in folder.rows if "test_accuracy" in row}
    missing = sorted(ours.keys() - theirs.keys())
    wrong = sorted(epoch for epoch in ours.keys() & theirs.keys() if not math.isclose(ours[epoch], theirs[epoch]))
    unsaid = [key for key, value in folder.summary.items() if remote.summary.get(key) != value]
    words = [f"lacks epochs {_spans(missing)}"] if missing else []
    words += [f"has other numbers in epochs {_spans(wrong)}"] if wrong else []
    words += [f"lacks {', '.join(unsaid)} in its summary"] if unsaid else []
    if folder.state == "finished" and remote.state != "finished":
        words.append(f"is {remote.state}, not finished")
    return " and ".join(words), not wrong and (not missing or missing[0] > max(theirs, default=0))


def _spans(epochs: list[int]) -> str:
    """1–3, 7 for [1, 2, 3, 7]."""
    ends = [epoch for epoch in epochs if epoch + 1 not in epochs]
    starts = [epoch for epoch in epochs if epoch - 1 not in epochs]
    return ", ".join(f"{a}–{b}" if a < b else f"{a}" for a, b in zip(starts, ends, strict=True))
