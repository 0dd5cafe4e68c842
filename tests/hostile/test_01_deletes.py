"""What lies in a runs folder never makes us delete anything outside of it, or anything that is not of our kind."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from capsule_sweeps.runs.garbage import garbage, remove
from capsule_sweeps.runs.run import Run

pytestmark = pytest.mark.usefixtures("untouched")
OURS = ("0123456789abcdef", "sweep-01234567-012345")  # names of a snapshot and of a submission


class Idle:
    """A queue that answers: none of its jobs is left."""

    def is_active(self, entry: object) -> bool:
        return False


@pytest.fixture(autouse=True)
def queue(monkeypatch) -> None:
    monkeypatch.setattr("capsule_sweeps.runs.garbage.find_queue", lambda name: Idle())


@pytest.mark.parametrize("shelf", [".code", ".jobs", ".superseded", ".sweeps"])
def test_gc_follows_no_link(make_run, capsule_sweeps, victim, shelf) -> None:
    make_run()
    Path("runs", shelf).symlink_to(victim)
    for name in OURS:
        (victim / name).mkdir()
        os.utime(victim / name, (time.time() - 10 * 86_400,) * 2)
    ended = capsule_sweeps("gc", "--yes")
    assert ended.code == 0 and "Nothing to remove" in ended.out
    for name in OURS:
        (victim / name).rmdir()


@pytest.mark.parametrize("shelf", [".code", ".jobs"])
def test_gc_leaves_what_we_do_not_make(make_run, capsule_sweeps, victim, shelf) -> None:
    make_run()
    mine = Path("runs", shelf, "thesis")
    mine.mkdir(parents=True)
    for name in OURS:
        Path("runs", shelf, name).symlink_to(victim)
    os.utime(mine, (time.time() - 10 * 86_400,) * 2)
    assert "Nothing to remove" in capsule_sweeps("gc", "--yes").out and mine.is_dir()


def test_gc_removes_what_we_make(make_run) -> None:
    make_run()
    ours = [Path("runs/.code/0123456789abcdef"), Path("runs/.code/.staged-x1_y2")]
    for path in ours:
        path.mkdir(parents=True)
        os.utime(path, (time.time() - 10 * 86_400,) * 2)
    assert [path for path, _, _ in garbage(Path("runs"))] == sorted(ours)


def test_removal_stays_in_runs_dir(make_run, victim) -> None:
    make_run()
    Path("runs/way").symlink_to(victim)
    for path in (victim / ".ssh", Path("runs/way/.ssh"), Path("runs/../../victim/.ssh")):
        with pytest.raises(ValueError, match="nothing there is removed"):
            remove(path, Path("runs"))
    remove(Path("runs/way"), Path("runs"))
    assert not os.path.lexists("runs/way"), "a link is removed, not what it names"


@pytest.mark.parametrize("identity", ["x/../../../../victim", "..", ".", "*", "a[b]", "x\n", "-x"])
def test_an_identifier_is_no_path_and_no_pattern(make_run, identity) -> None:
    folder = make_run()
    record = json.loads((folder / "run.json").read_text())
    attempts = [{"submission": identity, "snapshot": identity}]
    (folder / "run.json").write_text(json.dumps({**record, "wandb_id": identity, "attempts": attempts}))
    found = Run(folder).record()
    assert "wandb_id" not in found and found["attempts"] == [{}] and Run(folder).entry() is None
