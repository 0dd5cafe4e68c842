"""Tags and a note of a run: `labels.json` in its folder. They are not signed and only affect what is shown."""

import fcntl
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from capsule_sweeps.runs.files import write_json
from capsule_sweeps.runs.record import Check, each, flag, read_typed, text

FILE = "labels.json"
TAG = r"[^\W_][\w.-]{0,49}"  # letters and digits of any language, _ . -
MAX_NOTE = 2000  # characters
MAX_TAGS = 100
LABELS: dict[str, Check] = {
    **dict.fromkeys(("tags", "removed"), each(text(50, TAG), MAX_TAGS)),
    "note": text(MAX_NOTE),
    "emptied": flag,
}


@dataclass(frozen=True)
class Labels:
    """`removed` are tags that the run once had, and `emptied` means that it had a note: mirrors remove both."""

    tags: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    note: str = ""
    emptied: bool = False


def read_labels(folder: Path) -> Labels:
    """The labels of a run folder, empty if there are none. Damaged parts are left out and reported."""
    found = read_typed(folder / FILE, LABELS) if (folder / FILE).exists() else {}
    values = tuple(found.get("tags", ())), tuple(found.get("removed", ())), str(found.get("note", ""))
    return Labels(*values, found.get("emptied", False))


def change_tags(folder: Path, add: Iterable[str], remove: Iterable[str]) -> Labels:
    """Add and remove tags of a run. Raises ValueError for an invalid tag."""
    add, remove = list(add), list(remove)
    for tag in (*add, *remove):
        if not re.fullmatch(TAG, tag):
            raise ValueError(f"tag={tag} is invalid: a tag is up to 50 letters, digits, dots, - and _")
    with _alone(folder):
        before = read_labels(folder)
        tags = tuple(sorted({*before.tags, *add} - {*remove}))
        removed = tuple(sorted(({*before.removed, *before.tags} - {*tags}) - {*add}))
        if len(tags) > MAX_TAGS:
            raise ValueError(f"{folder.name} would have {len(tags)} tags, more than {MAX_TAGS}: remove some with -TAG")
        return _write(folder, replace(before, tags=tags, removed=removed[:MAX_TAGS]))


def change_note(folder: Path, note: str) -> Labels:
    """Set the note of a run; an empty note removes it. Raises ValueError for a note that is too long."""
    if len(note) > MAX_NOTE:
        raise ValueError(f"the note has {len(note):,} letters: a note has up to {MAX_NOTE:,}")
    if wrong := text(MAX_NOTE)(note := note.strip()):
        raise ValueError(f"the note {wrong}: set another one")
    with _alone(folder):
        before = read_labels(folder)
        return _write(folder, replace(before, note=note, emptied=not note and bool(before.note or before.emptied)))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While open, no other process changes the labels of a run, whose other files it may write."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(folder: Path, labels: Labels) -> Labels:
    if labels != read_labels(folder):
        write_json(folder / FILE, asdict(labels))
    return labels
